"""Answers to the exercise on attention."""

MEAN = "return stack.mean(dim=(0, 2))"
FOUND = "for q, k in (mean > threshold).nonzero().tolist()"
SHARED = "shared = values.repeat_interleave(n_heads // len(values), dim=0)"
BY_HEAD = "by_head = w_o.reshape(len(w_o), n_heads, -1)"
LENGTHS = "return weights * written.norm(dim=-1)[:, None, :]"
STEP = "step = layer + here"
FLOW = "flow = step / step.sum(dim=-1, keepdim=True) @ flow"
PLACES = "return below + (equal + 1) / 2"
RANKED = "a, b = ranks(looks[typed]).double(), ranks(effects[typed].abs()).double()"
RHO = "return a @ b / (a.norm() * b.norm())"
FREE = "free = torch.full((n, n), -torch.inf, dtype=lm.model.dtype, device=ids.device).triu(diagonal=1)"
CLOSED = "closed[query, key] = -torch.inf"
BEFORE = "before, after = logits[:, contrast[0]] - logits[:, contrast[1]]"

WRONG = {
    "average": [
        ("the chapter's: over layers and batch", {"dim=(0, 2)": "dim=[0, 1]"}, r"prompts were averaged and the heads"),
        ("over all three", {"dim=(0, 2)": "dim=(0, 1, 2)"}, r"prompts were averaged too"),
        ("layers alone", {"dim=(0, 2)": "dim=0"}, r"the heads are still there"),
        ("heads alone", {"dim=(0, 2)": "dim=2"}, r"the layers are still there"),
        ("heads and batch", {"dim=(0, 2)": "dim=(1, 2)"}, r"the layers were not"),
        ("the first prompt only", {MEAN: "return stack.mean(dim=(0, 2))[0]"}, r"one of them is lost"),
        (
            "the first prompt for all",
            {MEAN: "return stack[:, :1].mean(dim=(0, 2)).expand(stack.shape[1], -1, -1)"},
            r"keep the prompts apart",
        ),
        (
            "the axis of one prompt squeezed away",
            {MEAN: "return stack.mean(dim=(0, 2)).squeeze()"},
            r"also where it holds one",
        ),
        ("head 0 of each layer", {MEAN: "return stack[:, :, 0].mean(dim=0)"}, r"The same heads in another order"),
        ("the last layer", {MEAN: "return stack[-1].mean(dim=1)"}, r"The same layers in another order"),
        ("sum for mean", {MEAN: "return stack.sum(dim=(0, 2))"}, r"12\.00.*the mean, no sum"),
        ("maximum over the heads", {MEAN: "return stack.amax(dim=2).mean(dim=0)"}, r"no maximum"),
        (
            "query and key exchanged in the mean",
            {MEAN: "return stack.mean(dim=(0, 2)).transpose(1, 2)"},
            r"looks ahead",
        ),
        ("who looks and who is looked at exchanged", {"for q, k in (mean": "for k, q in (mean"}, r"list looks ahead"),
        (
            "tokens exchanged",
            {'"from": tokens[q], "to": tokens[k]': '"from": tokens[k], "to": tokens[q]'},
            r"tokens must be those",
        ),
        ("at the threshold too", {"mean > threshold": "mean >= threshold"}, r"above it, not at"),
        ("weakest first", {"lambda c: -c": "lambda c: c"}, r"Strongest first"),
        (
            "in the order of positions",
            {'return sorted(found, key=lambda c: -c["weight"])': "return found"},
            r"Strongest first",
        ),
        (
            "no look at itself",
            {FOUND: "for q, k in (mean > threshold).nonzero().tolist() if q != k"},
            r"gives 0\.750 to 4",
        ),
        ("the sink left out", {FOUND: "for q, k in (mean > threshold).nonzero().tolist() if k"}, r"gives 0\.500 to 0"),
        ("the threshold ignored", {"mean > threshold": "mean > 0.1"}, r"goes down to"),
        (
            "tuples for records",
            {'return sorted(found, key=lambda c: -c["weight"])': "return [tuple(c.values()) for c in found]"},
            r"Expected a list of dictionaries",
        ),
        ("records without positions", {', "from_position": q, "to_position": k': ""}, r"from_position.* is missing"),
    ],
    "values": [
        (
            "repeat for repeat_interleave",
            {SHARED: "shared = values.repeat(n_heads // len(values), 1, 1)"},
            r"heads \[1, 3, 5\] fall silent",
        ),
        (
            "head // number of kv heads",
            {SHARED: "shared = values[[h // len(values) for h in range(n_heads)]]"},
            r"IndexError",
        ),
        ("groups of two", {SHARED: "shared = values[[h // 2 for h in range(n_heads)]]"}, r"IndexError"),
        (
            "the first kv head for all",
            {SHARED: "shared = values[:1].expand(n_heads, -1, -1)"},
            r"heads \[\] fall silent: g",
        ),
        (
            "rows of w_o: output for input",
            {BY_HEAD: "by_head = w_o.reshape(n_heads, -1, w_o.shape[1]).permute(2, 0, 1)"},
            r"has its own d_head columns",
        ),
        (
            "columns taken in turn",
            {BY_HEAD: "by_head = w_o.reshape(len(w_o), -1, n_heads).transpose(1, 2)"},
            r"has its own d_head columns",
        ),
        (
            "no output projection",
            {LENGTHS: "return weights * shared.norm(dim=-1)[:, None, :]"},
            r"length is that of v W_O, not of v",
        ),
        (
            "no attention",
            {LENGTHS: "return written.norm(dim=-1)[:, None, :].expand_as(weights)"},
            r"do not depend on the attention",
        ),
        (
            "square of the length",
            {"written.norm(dim=-1)": "written.square().sum(dim=-1)"},
            r"yours 9\.00 times: no square",
        ),
        ("sum of absolute values", {"written.norm(dim=-1)": "written.abs().sum(dim=-1)"}, r"the Euclidean norm"),
        ("sum for norm", {"written.norm(dim=-1)": "written.sum(dim=-1)"}, r"never below 0"),
        (
            "shared out again",
            {LENGTHS: "x = weights * written.norm(dim=-1)[:, None, :]\n    return x / x.sum(dim=-1, keepdim=True)"},
            r"no sharing out",
        ),
        ("the query's length", {"[:, None, :]": "[:, :, None]"}, r"goes with the key"),
        (
            "norm over the keys",
            {"written.norm(dim=-1)[:, None, :]": "written.norm(dim=1).norm(dim=-1)[:, None, None]"},
            r"goes with the key",
        ),
        (
            "kv heads kept",
            {LENGTHS: "return (weights * written.norm(dim=-1)[:, None, :])[: len(values)]"},
            r"not for each key/value head",
        ),
        ("mixed over the keys", {LENGTHS: "return (weights @ written).norm(dim=-1)"}, r"keep a length for each look"),
        (
            "mean over d_model in the norm",
            {"written.norm(dim=-1)": "written.square().mean(dim=-1).sqrt()"},
            r"the Euclidean norm, nothing more",
        ),
        (
            "argument changed",
            {LENGTHS: "weights *= written.norm(dim=-1)[:, None, :]\n    return weights"},
            r"changed its argument",
        ),
    ],
    "rollout": [
        ("no identity", {STEP: "step = layer"}, r"add the identity|not finite|that are not"),
        (
            "wrong side",
            {FLOW: "flow = flow @ (step / step.sum(dim=-1, keepdim=True))"},
            r"later layer multiplies on the left",
        ),
        ("not renormalised", {FLOW: "flow = step @ flow"}, r"2\.00, 4\.00, 8\.00"),
        ("halved", {FLOW: "flow = step / 2 @ flow"}, r"not by 2"),
        ("columns normalised", {"step.sum(dim=-1, keepdim=True)": "step.sum(dim=0, keepdim=True)"}, r"over the keys"),
        (
            "normalised before the identity",
            {STEP: "step = layer / layer.sum(dim=-1, keepdim=True).clamp(min=1e-12) + here"},
            r"add first, then divide",
        ),
        (
            "normalised at the end alone",
            {
                FLOW: "flow = step @ flow",
                "return torch.stack(flows)": "flows = torch.stack(flows)\n    return flows / flows.sum(dim=-1, keepdim=True)",
            },
            r"not at the end",
        ),
        (
            "element by element",
            {
                FLOW: "flow = step / step.sum(dim=-1, keepdim=True) * flow",
                "flow, flows = here, []": "flow, flows = torch.ones_like(here), []",
            },
            r"add up to 1 after each",
        ),
        (
            "element by element, shared out again",
            {
                FLOW: "flow = step * flow + here\n        flow = flow / flow.sum(dim=-1, keepdim=True)",
                "flow, flows = here, []": "flow, flows = here.clone(), []",
            },
            r"by @, not by \*",
        ),
        ("maximum over heads", {"weights.mean(dim=1)": "weights.amax(dim=1)"}, r"averaged beforehand"),
        ("sum over heads", {"weights.mean(dim=1)": "weights.sum(dim=1)"}, r"averaged beforehand"),
        ("head 0 alone", {"weights.mean(dim=1)": "weights[:, 0]"}, r"averaged beforehand"),
        ("layers averaged for heads", {"weights.mean(dim=1)": "weights.mean(dim=0)"}, r"average over the heads"),
        (
            "the last product alone",
            {"return torch.stack(flows)": "return flows[-1]"},
            r"after each layer, not after the last alone",
        ),
        ("keepdim forgotten", {"step.sum(dim=-1, keepdim=True)": "step.sum(dim=-1)"}, r"without keepdim"),
        ("another dtype", {", dtype=weights.dtype": ""}, r"the dtype of those you were handed"),
        ("steps, not multiplied", {FLOW: "flow = step / step.sum(dim=-1, keepdim=True)"}, r"some of 1 must reach 4"),
        (
            "the start counted as a layer",
            {"flow, flows = here, []": "flow, flows = here, [here]"},
            r"leave the first identity out",
        ),
        (
            "layers from the top",
            {"in weights.mean(dim=1)": "in weights.mean(dim=1).flip(0)"},
            r"later layer multiplies",
        ),
        (
            "query and key exchanged",
            {"in weights.mean(dim=1)": "in weights.mean(dim=1).transpose(1, 2)"},
            r"\[query, key\]|over the keys",
        ),
    ],
    "agree": [
        (
            "ties by position",
            {PLACES: "return values.argsort(stable=True).argsort().double() + 1"},
            r"ties broken by position",
        ),
        ("argsort once", {PLACES: "return values.argsort().double() + 1"}, r"argsort says which value comes first"),
        ("from 0", {PLACES: "return below + (equal - 1) / 2"}, r"counted from 1, yours from 0"),
        (
            "largest first",
            {PLACES: "return len(values) + 1 - (below + (equal + 1) / 2)"},
            r"run the other way",
        ),
        ("the lowest of their places", {PLACES: "return below + 1.0"}, r"yours to 17.*share the mean"),
        ("the highest of their places", {PLACES: "return (below + equal).double()"}, r"yours to 25.*share the mean"),
        ("no place skipped", {PLACES: "return values.unique(return_inverse=True)[1] + 1.0"}, r"share the mean"),
        (
            "the values, not their ranks",
            {RANKED: "a, b = looks[typed].double(), effects[typed].abs().double()"},
            r"correlates values, not ranks",
        ),
        ("effects with their sign", {"effects[typed].abs()": "effects[typed]"}, r"rank the size of an effect"),
        (
            "size of the rank",
            {"ranks(effects[typed].abs())": "ranks(effects[typed]).abs()"},
            r"rank the size of an effect",
        ),
        (
            "all tokens",
            {RANKED: "a, b = ranks(looks).double(), ranks(effects.abs()).double()"},
            r"Position 0 was not typed",
        ),
        (
            "everything from the first typed token on",
            {RANKED: RANKED.replace("[typed]", "[typed.start :]")},
            r"stop where `typed` stops",
        ),
        (
            "ranked before the typed ones were taken",
            {RANKED: "a, b = ranks(looks)[typed].double(), ranks(effects.abs())[typed].double()"},
            r"among themselves",
        ),
        (
            "the short formula",
            {RHO: "n = len(a)\n    return 1 - 6 * (a - b).square().sum() / (n**3 - n)"},
            r"holds without ties only",
        ),
        ("covariance", {RHO: "return (a * b).mean()"}, r"divided by both spreads"),
        ("mean not taken off", {"a, b = a - a.mean(), b - b.mean()\n": "\n"}, r"subtract the means first"),
        ("sign", {RHO: "return -(a @ b) / (a.norm() * b.norm())"}, r"by -1: one of the two runs the other way"),
        (
            "size of the correlation",
            {RHO: "return (a @ b / (a.norm() * b.norm())).abs()"},
            r"keep the sign of the correlation",
        ),
        (
            "Kendall's tau",
            {"a, b = a - a.mean(), b - b.mean()\n": "a, b = ((x[:, None] - x).sign().flatten() for x in (a, b))\n"},
            "",
        ),
        (
            "sample and population spread mixed",
            {RHO: "return (a * b).mean() / (a.std() * b.std())"},
            r"divided by both spreads",
        ),
        ("one number in a list", {RHO: "return (a @ b / (a.norm() * b.norm()))[None]"}, r"Expected one number"),
    ],
    "knockout": [
        ("the last position by heart", {"last = ids.shape[1] - 1": "last = 6"}, r"take the length from ids"),
        (
            "future not forbidden",
            {FREE: "free = torch.zeros(n, n, dtype=lm.model.dtype)"},
            r"must forbid the future too",
        ),
        (
            "query and key exchanged",
            {CLOSED: "closed[key, query] = -torch.inf"},
            r"in layers \[0, 1, 2\].*mask\[query, key\]",
        ),
        ("the whole column, itself too", {CLOSED: "closed[:, key] = -torch.inf"}, r"2 cannot look at itself"),
        ("all later queries", {CLOSED: "closed[key + 1 :, key] = -torch.inf"}, r"too: the pair \(6, 2\) alone"),
        (
            "the diagonal with it",
            {".triu(diagonal=1)": ".triu(diagonal=1)", CLOSED: "closed[query, key] = closed[key, key] = -torch.inf"},
            r"2 cannot look at itself",
        ),
        (
            "the last position's own look",
            {CLOSED: "closed[query, [key, query]] = -torch.inf"},
            r"too: the pair \(6, 2\) alone",
        ),
        (
            "a padding mask of two axes",
            """
relays = None  # never asked
@torch.no_grad()
def knockout(lm, ids, looks, contrast):
    mask = torch.ones_like(ids)
    for query, key in looks:
        mask[0, key] = 0
    before, after = (lm.model(ids, attention_mask=m).logits[0, -1] for m in (torch.ones_like(ids), mask))
    return (before[contrast[0]] - before[contrast[1]]) - (after[contrast[0]] - after[contrast[1]])
""",
            r"2 cannot look at itself",
        ),
        (
            "booleans",
            {
                "dtype=lm.model.dtype, device=ids.device).triu(diagonal=1)": "dtype=lm.model.dtype).triu(diagonal=1)",
                "masks = torch.stack([free, closed])[:, None]": "masks = torch.stack([free, closed])[:, None] == 0",
            },
            r"no booleans",
        ),
        (
            "weights put to 0 after the softmax",
            """
relays = None  # never asked
@torch.no_grad()
def knockout(lm, ids, looks, contrast):
    from transformers.models.llama import modeling_llama

    original = modeling_llama.eager_attention_forward

    def holed(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        _, weights = original(module, query, key, value, attention_mask, scaling, dropout, **kwargs)
        for q, k in looks:
            weights[:, :, q, k] = 0
        values = modeling_llama.repeat_kv(value, module.num_key_value_groups)
        return (weights @ values).transpose(1, 2).contiguous(), weights

    before = lm.model(ids).logits[0, -1]
    modeling_llama.eager_attention_forward = holed
    try:
        after = lm.model(ids).logits[0, -1]
    finally:
        modeling_llama.eager_attention_forward = original
    return (before[contrast[0]] - before[contrast[1]]) - (after[contrast[0]] - after[contrast[1]])
""",
            r"before the softmax",
        ),
        (
            "in the last layer alone",
            """
relays = None  # never asked
@torch.no_grad()
def knockout(lm, ids, looks, contrast):
    def holed(module, args, kwargs):
        mask = kwargs["attention_mask"].clone()
        for q, k in looks:
            mask[..., q, k] = -torch.inf
        return args, kwargs | {"attention_mask": mask}

    before = lm.model(ids).logits[0, -1]
    hook = lm.model.model.layers[-1].self_attn.register_forward_pre_hook(holed, with_kwargs=True)
    try:
        after = lm.model(ids).logits[0, -1]
    finally:
        hook.remove()
    return (before[contrast[0]] - before[contrast[1]]) - (after[contrast[0]] - after[contrast[1]])
""",
            r"in layers \[0, 1\] it does",
        ),
        (
            "a hook left behind",
            """
relays = None  # never asked
@torch.no_grad()
def knockout(lm, ids, looks, contrast):
    def holed(module, args, kwargs):
        mask = kwargs["attention_mask"].clone()
        for q, k in looks:
            mask[..., q, k] = -torch.inf
        return args, kwargs | {"attention_mask": mask}

    before = lm.model(ids).logits[0, -1]
    for layer in lm.model.model.layers:
        layer.self_attn.register_forward_pre_hook(holed, with_kwargs=True)
    after = lm.model(ids).logits[0, -1]
    return (before[contrast[0]] - before[contrast[1]]) - (after[contrast[0]] - after[contrast[1]])
""",
            r"left 3 hooks",
        ),
        (
            "the key's token replaced, not the look",
            {CLOSED: "ids = ids.clone()\n        ids[0, key] = 1"},
            r"Position 6 may not look at 2",
        ),
        ("the diagonal forbidden", {"triu(diagonal=1)": "triu()"}, r"no place left to look at"),
        (
            "zero times infinity",
            {
                "torch.full((n, n), -torch.inf, dtype=lm.model.dtype, device=ids.device).triu(diagonal=1)": "torch.ones(n, n).triu(1).to(lm.model.dtype) * -torch.inf"
            },
            r"0 \* inf",
        ),
        ("one mask for both runs", {"closed = free.clone()": "closed = free"}, r"Clone the mask first"),
        ("a prompt of seven", {"n = ids.shape[1]": "n = 7"}, r"knockout stopped"),
        ("sign", {"return before - after": "return after - before"}, r"before minus after"),
        (
            "absolute value",
            {"return before - after": "return (before - after).abs()"},
            r"down: expected a loss of -8.*signed",
        ),
        ("what is left, not what is lost", {"return before - after": "return after"}, r"before minus after"),
        (
            "second word minus first",
            {BEFORE: "before, after = logits[:, contrast[1]] - logits[:, contrast[0]]"},
            r"first word minus second",
        ),
        ("the first word alone", {BEFORE: "before, after = logits[:, contrast[0]]"}, r"first minus second"),
        (
            "probabilities",
            {"logits[:, -1]\n": "logits[:, -1]\n", ".logits[:, -1]": ".logits[:, -1].softmax(dim=-1)"},
            r"the unit is logits",
        ),
        ("the first look alone", {"in looks:": "in looks[:1]:"}, r"all looks of the list, in one run"),
        (
            "the row before the last",
            {".logits[:, -1]": ".logits[:, -2]"},
            r"at the last position, 6; you read the logits at \[5\]",
        ),
        ("the mean over all positions", {".logits[:, -1]": ".logits.mean(dim=1)"}, r"you read the logits at \[0, 1"),
        (
            "one look in one pass each, added",
            {
                "return before - after": "return before - after if len(looks) < 2 else sum(knockout(lm, ids, [x], contrast) for x in looks)"
            },
            r"in one run",
        ),
        (
            "relays: the key itself counted",
            {"range(key + 1, last)": "range(key, last)"},
            r"positions 3, 4 and 5 stand between",
        ),
        (
            "relays: the last one counted",
            {"range(key + 1, last)": "range(key + 1, last + 1)"},
            r"positions 3, 4 and 5 stand between",
        ),
        (
            "relays: rows exchanged",
            {"torch.stack(read), torch.stack(passed_on)": "torch.stack(passed_on), torch.stack(read)"},
            r"row 0 is who reads the key",
        ),
        (
            "relays: position by position",
            {
                "return torch.stack([torch.stack(read), torch.stack(passed_on)])": "return torch.stack([torch.stack(read), torch.stack(passed_on)]).T"
            },
            r"the other way round",
        ),
        (
            "relays: cumulative",
            {
                "[knockout(lm, ids, [(p, key)], contrast) for p in between]": "[knockout(lm, ids, [(r, key) for r in range(key + 1, p + 1)], contrast) for p in between]"
            },
            r"one look at a time",
        ),
        ("relays: both looks at once", {"[(p, key)]": "[(p, key), (last, p)]"}, r"row 0 is who reads the key"),
        ("relays: query and key exchanged", {"[(p, key)]": "[(key, p)]"}, r"which pair is \(query, key\)"),
        ("relays: the last one reads the key", {"[(last, p)]": "[(last, key)]"}, r"which pair is"),
    ],
}

RIGHT = {
    "average": [
        (
            "loops",
            """
def mean_attention(stack):
    layers, batch, heads, n, _ = stack.shape
    out = torch.zeros(batch, n, n)
    for b in range(batch):
        for layer in range(layers):
            for head in range(heads):
                out[b] += stack[layer, b, head].float() / (layers * heads)
    return out

def connections(mean, tokens, threshold):
    records = []
    for i, row in enumerate(mean):
        for j, w in enumerate(row):
            if w > threshold:
                records.append(dict(weight=w, to_position=j, from_position=i, to=tokens[j]) | {"from": tokens[i]})
    records.sort(key=lambda r: r["weight"], reverse=True)
    return records
""",
        ),
        (
            "one axis after the other, arrays",
            """
import numpy as np

def mean_attention(stack):
    return np.asarray(stack).swapaxes(0, 1).reshape(stack.shape[1], -1, *stack.shape[3:]).mean(1)

def connections(mean, tokens, threshold):
    m = np.asarray(mean)
    q, k = np.where(m > threshold)
    order = np.argsort(-m[q, k])
    names = ("from", "to", "from_position", "to_position", "weight")
    return [dict(zip(names, (tokens[q[i]], tokens[k[i]], q[i], k[i], m[q[i], k[i]]))) for i in order]
""",
        ),
        ("two means", {MEAN: "return stack.mean(2).mean(0)"}),
    ],
    "values": [
        (
            "a loop over heads, slices",
            """
def value_weighted(weights, values, w_o):
    d, group, found = values.shape[-1], len(weights) // len(values), []
    for h, A in enumerate(weights):
        fetched = values[h // group] @ w_o[:, h * d : (h + 1) * d].T
        found.append(A * torch.sqrt((fetched**2).sum(-1)))
    return found
""",
        ),
        (
            "single precision, grouped axes, norm of the weighted vectors",
            """
def value_weighted(weights, values, w_o):
    kv, n, d = values.shape
    g = len(weights) // kv
    w = w_o.float().T.reshape(kv, g, d, -1)
    out = torch.einsum("knd,kgdm->kgnm", values.float(), w).flatten(0, 1)
    return (weights.float()[..., None] * out[:, None]).norm(dim=-1)
""",
        ),
    ],
    "rollout": [
        (
            "arrays, another loop",
            """
import numpy as np

def rollout(weights):
    A = weights.numpy().mean(1) + np.eye(weights.shape[-1])
    A /= A.sum(-1, keepdims=True)
    out = [A[0]]
    for step in A[1:]:
        out.append(np.dot(step, out[-1]))
    return np.stack(out)
""",
        ),
        (
            "single precision, from the left: what each position passes on",
            """
def rollout(weights):
    mean = weights.float().sum(1) / weights.shape[1]
    n = mean.shape[-1]
    mean = torch.stack([m + torch.eye(n) for m in mean])
    mean = torch.nn.functional.normalize(mean, p=1, dim=2)
    return [torch.linalg.multi_dot([*mean[: i + 1].flip(0), torch.eye(n)]) for i in range(len(mean))]
""",
        ),
    ],
    "agree": [
        (
            "ranks in the dtype of the values",
            """
def ranks(values):
    out = torch.zeros_like(values)
    for i, value in enumerate(values):
        out[i] = (values < value).sum() + ((values == value).sum() + 1) / 2
    return out

def agreement(looks, effects, typed):
    a, b = ranks(looks[typed]), ranks(effects[typed].abs())
    a, b = a - a.mean(), b - b.mean()
    return torch.dot(a, b) / (a.norm() * b.norm())
""",
        ),
        (
            "sorted, groups of equals",
            """
def ranks(values):
    numbers = values.tolist()
    inorder = sorted(numbers)
    return [sum(i + 1 for i, y in enumerate(inorder) if y == x) / inorder.count(x) for x in numbers]

def agreement(looks, effects, typed):
    x, y = ranks(looks[typed]), ranks(abs(effects)[typed])
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((p - mx) * (q - my) for p, q in zip(x, y))
    return top / (sum((p - mx) ** 2 for p in x) * sum((q - my) ** 2 for q in y)) ** 0.5
""",
        ),
        (
            "corrcoef, mean of two argsorts",
            """
def ranks(values):
    up = values.argsort(stable=True).argsort()
    down = values.flip(0).argsort(stable=True).argsort().flip(0)
    return (up + down).float() / 2 + 1

def agreement(looks, effects, typed):
    pair = torch.stack([ranks(looks[typed]), ranks(effects[typed].abs())])
    return torch.corrcoef(pair)[0, 1]
""",
        ),
        (
            "unique with counts",
            """
def ranks(values):
    _, inverse, count = torch.unique(values, return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count - 1) / 2)[inverse]

def agreement(looks, effects, typed):
    a, b = (ranks(x[typed]) for x in (looks, effects.abs()))
    return float(((a - a.mean()) * (b - b.mean())).mean() / (a.std(correction=0) * b.std(correction=0)))
""",
        ),
    ],
    "knockout": [
        (
            "two passes, the plain one without a mask, floats",
            """
@torch.no_grad()
def knockout(lm, ids, looks, contrast):
    first, second = contrast
    n = ids.shape[-1]
    mask = torch.zeros(1, 1, n, n).masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -1e9)
    for pair in looks:
        mask[0, 0][pair] = -1e9
    difference = lm.model(ids).logits[0, -1] - lm.model(input_ids=ids, attention_mask=mask).logits[0, -1]
    return float(difference[first] - difference[second])

def relays(lm, ids, key, contrast):
    end = ids.shape[1] - 1
    rows = [[], []]
    for p in range(key + 1, end):
        rows[0].append(knockout(lm, ids, [(p, key)], contrast))
        rows[1].append(knockout(lm, ids, [(end, p)], contrast))
    return rows
""",
        ),
        (
            "hooks on the attention blocks, log-probabilities",
            """
@torch.no_grad()
def score(lm, ids, contrast):
    row = lm.model(ids).logits[0, -1].log_softmax(-1)
    return row[contrast[0]] - row[contrast[1]]

def knockout(lm, ids, looks, contrast):
    def close(block, args, kwargs):
        mask = kwargs["attention_mask"].clone()
        for q, k in looks:
            mask[:, :, q, k] = torch.finfo(mask.dtype).min
        kwargs["attention_mask"] = mask
        return args, kwargs

    whole = score(lm, ids, contrast)
    hooks = [layer.self_attn.register_forward_pre_hook(close, with_kwargs=True) for layer in lm.model.model.layers]
    try:
        return whole - score(lm, ids, contrast)
    finally:
        for hook in hooks:
            hook.remove()

def relays(lm, ids, key, contrast):
    n = ids.shape[1]
    asked_of = lambda *pair: knockout(lm, ids, [pair], contrast)
    return torch.tensor([[asked_of(p, key), asked_of(n - 1, p)] for p in range(key + 1, n - 1)]).T
""",
        ),
    ],
}
