"""Answers to the exercise on ablation."""

ZERO = "new[:, where, head * width : (head + 1) * width] = 0"
ATTACH = "handle = lm.model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(zeroed)"
AT_LAST = "at_last = kept[0][range(len(reference)), last]  # [prompt, head * width]"
MEAN = "return at_last[:, head * width : (head + 1) * width].mean(dim=0)"
PUT = "new[:, -1, head * width : (head + 1) * width] = mean"
LOST = "return before - score(lm, ids, contrast)"
TAKE = 'new[..., columns] = theirs["heads", layer][..., columns]'
TOGETHER = "together = before - resampled(lm, ids, other, heads, contrast)"
SINGLES = "singles = [before - resampled(lm, ids, other, [one], contrast) for one in heads]"
STACK = "return torch.stack([together, sum(singles)])"
CLOSED = "closed = [((start - resampled(lm, ids, other, [*team, one], contrast)) / gap).item() for one in left]"
BEST = "best = max(range(len(left)), key=lambda i: closed[i])"
LOOP = "while left and (not shares or shares[-1] < enough):"
GAP = "gap = start - score(lm, other, contrast)"

OUTPUT = {
    "def zeroed(module, args):\n        new = args[0].clone()": "def zeroed(module, args, output):\n        new = output.clone()",
    "return (new,)": "return new",
    "register_forward_pre_hook": "register_forward_hook",
}
LOOP_OF_HOOKS = """
@torch.no_grad()
def resampled(lm, ids, other, heads, contrast):
    width, handles, kept = lm.d_model // lm.n_heads, [], {}
    with record(lm, {("heads", n) for n, _ in heads}) as seen:
        lm.model(other)
    for layer, head in heads:
        def swap(module, args):
            new = args[0].clone()
            own = slice(head * width, (head + 1) * width)
            new[..., own] = seen["heads", layer][..., own]
            return (new,)

        handles.append(lm.model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(swap))
    try:
        return score(lm, ids, contrast)
    finally:
        for handle in handles:
            handle.remove()

def joint_and_sum(lm, ids, other, heads, contrast):
    before = score(lm, ids, contrast)
    together = before - resampled(lm, ids, other, heads, contrast)
    singles = [before - resampled(lm, ids, other, [one], contrast) for one in heads]
    return torch.stack([together, sum(singles)])
"""

WRONG = {
    "zero": [
        ("what leaves o_proj, not what enters", OUTPUT, r"zeroed 8 columns of what leaves o_proj"),
        (
            "one column too far",
            {ZERO: "new[:, where, head * width + 1 : (head + 1) * width + 1] = 0"},
            r"changes heads \[2, 3\]: each has d_head neighbouring columns",
        ),
        ("one column each: the slice too narrow", {ZERO: "new[:, where, head * width] = 0"}, r"still gives up to"),
        ("interleaved", {ZERO: "new[:, where, head :: lm.n_heads] = 0"}, r"changes heads \[0, 1, 2, 3\]: each has"),
        ("counted from 1", {ZERO: "new[:, where, (head - 1) * width : head * width] = 0"}, r"changes heads \[1\]"),
        (
            "key/value heads: twice as wide",
            {ZERO: "new[:, where, head // 2 * 2 * width : (head // 2 + 1) * 2 * width] = 0"},
            r"heads \[2, 3\]: .*not the heads that share their keys",
        ),
        (
            "key/value heads: the group's number",
            {ZERO: "head_ = head // 2\n        new[:, where, head_ * width : (head_ + 1) * width] = 0"},
            r"changes heads \[1\]",
        ),
        ("the layer after", {"layers[layer]": "layers[min(layer + 1, 2)]"}, r"layer 2 is the first that you change"),
        ("the layer counted from 1", {"layers[layer]": "layers[layer - 1]"}, r"layer 0 is the first that you change"),
        (
            "all positions",
            {"new[:, where, head": "new[:, :, head"},
            r"at positions \[2, 5\], and you change it at \[0, 1",
        ),
        ("the last position alone", {"new[:, where, head": "new[:, -1, head"}, r"you change it at \[6\]"),
        (
            "the first prompt alone",
            {"new[:, where, head": "new[0, where, head"},
            r"prompt 1 was run with nothing changed",
        ),
        ("nothing returned by the hook", {"        return (new,)\n": ""}, r"does your hook return the new tensor"),
        (
            "in place",
            {"new = args[0].clone()": "new = args[0]"},
            r"in place, and another hook holds that tensor",
        ),
        (
            "in place, nothing returned",
            {"new = args[0].clone()": "new = args[0]", "        return (new,)\n": ""},
            r"in place, and another hook holds that tensor",
        ),
        ("hook left behind", {"    finally:\n        handle.remove()": "    finally:\n        pass"}, r"left a hook"),
        (
            "clears all hooks",
            {
                "    finally:\n        handle.remove()": "    finally:\n        lm.model.model.layers[layer].self_attn.o_proj._forward_pre_hooks.clear()"
            },
            r"Somebody else's hook is gone",
        ),
        (
            "no finally",
            {
                "    try:\n        return score(lm, ids, contrast)\n    finally:\n        handle.remove()": "    left = score(lm, ids, contrast)\n    handle.remove()\n    return left"
            },
            r"when the run stops with an error, left a hook",
        ),
        (
            "what is lost, not what is left",
            {
                "return score(lm, ids, contrast)": "handle.remove()\n        lost = -score(lm, ids, contrast)\n        handle = lm.model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(zeroed)\n        return lost + score(lm, ids, contrast)"
            },
            r"what is left, not what is lost",
        ),
        (
            "a share of what was",
            {
                "    try:\n        return score(": "    handle.remove()\n    whole = score(lm, ids, contrast)\n    "
                + ATTACH
                + "\n    try:\n        return score(lm, ids, contrast) / whole\n        return score("
            },
            r"nor a share",
        ),
        (
            "mean over the prompts",
            {"return score(lm, ids, contrast)": "return score(lm, ids, contrast).mean()"},
            r"keep the prompts apart",
        ),
        ("halved, not zero", {"] = 0": "] *= 0.5"}, r"was to give zero, and still gives"),
        (
            "its mean over the columns",
            {"] = 0": "] = new[..., :width].mean(dim=-1, keepdim=True)[:, where]"},
            r"was to give zero, and still gives",
        ),
        (
            "the weights zeroed",
            """
def without_head(lm, ids, layer, head, contrast, *, where=slice(None)):
    weight, width = lm.model.model.layers[layer].self_attn.o_proj.weight, lm.d_model // lm.n_heads
    weight.data[:, head * width : (head + 1) * width] = 0
    return score(lm, ids, contrast)
""",
            r"changed the model's weights",
        ),
        (
            "the rows of the query projection",
            {
                "def zeroed(module, args):\n        new = args[0].clone()": "def zeroed(module, args, output):\n        new = output.clone()",
                "return (new,)": "return new",
                "o_proj.register_forward_pre_hook": "q_proj.register_forward_hook",
            },
            "",
        ),
    ],
    "mean": [
        (
            "all prompts at all last positions",
            {"kept[0][range(len(reference)), last]": "kept[0][:, last]", "return at_last[:, ": "return at_last[..., "},
            r"each read at its own last position",
        ),
        (
            "what leaves the layer's attention",
            {
                "register_forward_pre_hook(lambda module, args: kept.append(args[0]))": "register_forward_hook(lambda module, args, out: kept.append(out))"
            },
            r"of what enters o_proj take the d_head columns",
        ),
        (
            "the last column, filling or not",
            {AT_LAST: "at_last = kept[0][:, -1]"},
            r"The filling was given another value",
        ),
        (
            "one past the last real token",
            {"mask.sum(dim=1) - 1": "mask.sum(dim=1).clamp(max=mask.shape[1] - 1)"},
            r"The filling was given another value",
        ),
        ("mean over all columns", {AT_LAST: "at_last = kept[0].mean(dim=1)"}, r"The filling was given another value"),
        (
            "mean over all real tokens",
            {AT_LAST: "at_last = kept[0][mask.bool()]"},
            r"Tokens before the last were given another value",
        ),
        (
            "mean over each prompt's real tokens",
            {AT_LAST: "at_last = (kept[0] * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)"},
            r"Tokens before the last were given another value",
        ),
        ("the last but one", {"mask.sum(dim=1) - 1": "mask.sum(dim=1) - 2"}, r"Tokens before the last"),
        ("the first token", {"mask.sum(dim=1) - 1": "0 * mask.sum(dim=1)"}, r"Tokens before the last"),
        ("the first prompt's length for all", {"mask.sum(dim=1) - 1": "mask.sum(dim=1)[:1] - 1"}, r"The filling"),
        ("sum", {".mean(dim=0)": ".sum(dim=0)"}, r"rose by 3\.00 times that"),
        ("median", {".mean(dim=0)": ".median(dim=0).values"}, r"rose by .* times that|counts once"),
        (
            "the first prompt alone",
            {MEAN: "return at_last[0, head * width : (head + 1) * width]"},
            r"last token of reference prompt \[1, 2\] does not count",
        ),
        (
            "mean over the columns",
            {".mean(dim=0)": ".mean(dim=1)"},
            r"Expected \[d_head\] of shape \[8\], got shape \[3\]",
        ),
        ("one number", {".mean(dim=0)": ".mean()"}, r"keep the d_head numbers apart"),
        (
            "mean over the heads",
            {MEAN: "return at_last.unflatten(-1, (lm.n_heads, width)).mean(dim=(0, 1))"},
            r"your mean depends on head 0",
        ),
        ("all heads", {MEAN: "return at_last.mean(dim=0)"}, r"one head alone"),
        (
            "one column too far",
            {MEAN: "return at_last[:, head * width + 1 : (head + 1) * width + 1].mean(dim=0)"},
            r"depends on head 3",
        ),
        ("interleaved", {MEAN: "return at_last[:, head :: lm.n_heads].mean(dim=0)"}, r"depends on head 0"),
        (
            "what leaves o_proj",
            {
                "o_proj.register_forward_pre_hook(lambda module, args: kept.append(args[0]))": "o_proj.register_forward_hook(lambda module, args, out: kept.append(out))"
            },
            r"depends on head 0",
        ),
        (
            "the layer after",
            {"o_proj = lm.model.model.layers[layer]": "o_proj = lm.model.model.layers[min(layer + 1, 2)]"},
            r"depends on what heads of layer 2 give",
        ),
        (
            "hook left behind",
            {
                "lm.model(reference)\n    finally:\n        handle.remove()": "lm.model(reference)\n    finally:\n        pass"
            },
            r"left a hook",
        ),
        ("zero in its place", {PUT: PUT.replace("= mean", "= 0")}, r"gives zero at the last position"),
        ("added", {PUT: PUT.replace("= mean", "+= mean")}, r"added to what the head gives"),
        (
            "at all positions",
            {PUT: PUT.replace(":, -1", "..., :, ").replace("..., :, , ", "..., ")},
            r"the last position, 6, alone; you change the head at \[0",
        ),
        ("at the first position", {PUT: PUT.replace("-1", "0")}, r"you change the head at \[0\]"),
        (
            "its own mean over the positions",
            {
                PUT: "own = slice(head * width, (head + 1) * width)\n        new[:, -1, own] = new[:, :, own].mean(dim=1)"
            },
            r"does not give the mean that it was given",
        ),
        (
            "the mean of the mean",
            {PUT: PUT.replace("= mean", "= mean.mean()")},
            r"does not give the mean that it was given",
        ),
        (
            "in all heads",
            {PUT: "new[:, -1] = mean.repeat(lm.n_heads)"},
            r"you change \['1\.0', '1\.1', '1\.3'\] as well",
        ),
        (
            "the wrong head",
            {PUT: PUT.replace("head * width : (head + 1)", "(head - 1) * width : head")},
            r"you change \['1\.1'\] as well",
        ),
        ("sign", {LOST: "return score(lm, ids, contrast) - before"}, r"before minus after"),
        ("what is left", {LOST: "return score(lm, ids, contrast)"}, r"before minus after"),
        (
            "absolute value",
            {LOST: "return (before - score(lm, ids, contrast)).abs()"},
            r"down, by 6: expected a loss of -6.*signed",
        ),
        ("a share", {LOST: "return (before - score(lm, ids, contrast)) / before"}, r"in logits"),
        (
            "measured with the hook in place",
            {
                "    before = score(lm, ids, contrast)\n": "",
                LOST: "return score(lm, ids, contrast) - score(lm, ids, contrast)",
            },
            r"before minus after",
        ),
        ("nothing returned by the hook", {"        return (new,)\n": ""}, r"does your hook return the new tensor"),
    ],
    "joint": [
        ("a function made in a loop", LOOP_OF_HOOKS, r"(?i)a function made in a loop sees the last value"),
        (
            "the first head alone",
            {"in heads if n == layer]": "in heads[:1] if n == layer]"},
            r"of the list, \[\(0, 3\)\] do",
        ),
        (
            "the last of each layer",
            {"own.clone()": "own.clone()", "in heads if n == layer]:": "in heads[::-1] if n == layer][:1]:"},
            r"of the list, .* do: all heads in one run",
        ),
        (
            "whole layers",
            {TAKE: 'new[...] = theirs["heads", layer]'},
            r"you change \[0, 1, 2, 3\]: d_head neighbouring columns",
        ),
        ("zero", {TAKE: "new[..., columns] = 0"}, r"gives zero"),
        (
            "the last position alone",
            {TAKE: 'new[:, -1, columns] = theirs["heads", layer][:, -1, columns]'},
            r"does so at the last position, not at all",
        ),
        (
            "the first counterpart for all",
            {TAKE: 'new[..., columns] = theirs["heads", layer][:1, :, columns]'},
            r"for prompt 0 of it: row by row",
        ),
        (
            "the mean over the counterparts",
            {TAKE: 'new[..., columns] = theirs["heads", layer][..., columns].mean(dim=0)'},
            r"gives the mean over the prompts",
        ),
        (
            "the two prompts exchanged",
            {
                "lm.model(other)": "lm.model(ids)",
                "return score(lm, ids, contrast)": "return score(lm, other, contrast)",
            },
            r"You replace heads in a run over `other`",
        ),
        (
            "one column too far",
            {"slice(h * width, (h + 1) * width)": "slice(h * width + 1, (h + 1) * width + 1)"},
            r"\(0, 3\) was to give|head \(0, 3\)",
        ),
        (
            "interleaved",
            {"slice(h * width, (h + 1) * width)": "slice(h, None, lm.n_heads)"},
            r"Of layer 0 only head 3 is on the list",
        ),
        (
            "layer and head exchanged",
            {"for n, h in heads if": "for h, n in heads if"},
            r"does each hook know its own head",
        ),
        ("recorded in a run over the prompts themselves", {"lm.model(other)": "lm.model(ids)"}, r"nothing changed"),
        (
            "what leaves o_proj",
            {
                '("heads", layer) for layer, _': '("attention", layer) for layer, _',
                '"heads", layer]': '"attention", layer]',
            },
            r"Of layer 0 only head 3 is on the list",
        ),
        (
            "added up in place of together",
            {TOGETHER: "together = sum(before - resampled(lm, ids, other, [one], contrast) for one in heads)"},
            r"replace all of them in one run",
        ),
        (
            "the joint loss twice",
            {STACK: "return torch.stack([together, together])"},
            r"begins with the unchanged model",
        ),
        ("rows exchanged", {STACK: "return torch.stack([sum(singles), together])"}, r"row 0 is what is lost together"),
        (
            "mean for sum",
            {STACK: "return torch.stack([together, sum(singles) / len(singles)])"},
            r"sum of all single losses, no mean",
        ),
        (
            "one after another, without a reset",
            {
                SINGLES: "singles = [before - resampled(lm, ids, other, heads[: i + 1], contrast) for i in range(len(heads))]"
            },
            r"begins with the unchanged model",
        ),
        ("sign", {STACK: "return -torch.stack([together, sum(singles)])"}, r"before minus after"),
        ("absolute value", {STACK: "return torch.stack([together, sum(singles)]).abs()"}, r"keep the sign"),
        (
            "absolute singles",
            {STACK: "return torch.stack([together, sum(x.abs() for x in singles)])"},
            r"keep the sign",
        ),
        (
            "lost against the counterpart",
            {"before = score(lm, ids, contrast)": "before = score(lm, other, contrast)"},
            r"from the unchanged score of `ids`",
        ),
        ("what is left", {"before = score(lm, ids, contrast)": "before = 0"}, r"from the unchanged score of `ids`"),
        ("a share of the score", {STACK: "return torch.stack([together, sum(singles)]) / before"}, r"no share"),
        (
            "the last head left out",
            {"for one in heads]": "for one in heads[:-1]]"},
            "",
        ),
        ("the first head alone, singly", {"for one in heads]": "for one in heads[:1]]"}, r"sum of all single losses"),
        ("the singles not added up", {STACK: "return torch.stack([together, *singles])"}, r"the single losses"),
        (
            "prompts averaged",
            {STACK: "return torch.stack([together, sum(singles)]).mean(dim=1)"},
            r"a number for each prompt",
        ),
        (
            "the largest single",
            {STACK: "return torch.stack([together, torch.stack(singles).max(dim=0).values])"},
            r"sum of all single losses|unchanged model",
        ),
    ],
    "team": [
        (
            "shares of single heads added up",
            {
                "shares.append(closed[best])": "alone = (start - resampled(lm, ids, other, team[-1:], contrast)) / gap\n        shares.append(alone.item() + sum(shares[-1:]))"
            },
            r"all in one run, not single shares added up",
        ),
        (
            "in the order of the single shares",
            {
                CLOSED: "closed = [((start - resampled(lm, ids, other, [one], contrast)) / gap).item() for one in left]",
                "shares.append(closed[best])": "shares.append(((start - resampled(lm, ids, other, team, contrast)) / gap).item())",
            },
            r"try each candidate again, together with the team",
        ),
        (
            "single shares added up",
            {
                CLOSED: "closed = [((start - resampled(lm, ids, other, [one], contrast)) / gap).item() for one in left]",
                "shares.append(closed[best])": "shares.append(closed[best] + sum(shares[-1:]))",
            },
            r"try each candidate again, together with the team",
        ),
        (
            "the share of the last head alone",
            {CLOSED: "closed = [((start - resampled(lm, ids, other, [one], contrast)) / gap).item() for one in left]"},
            r"together with the team",
        ),
        (
            "stops one too late",
            {LOOP: "while left and (len(shares) < 2 or shares[-2] < enough):"},
            r"your team has 3: stop at once",
        ),
        (
            "stops one too early",
            {"    return team, shares": "    return team[:-1] or team, shares[:-1] or shares"},
            r"your team ends there",
        ),
        ("the best head and no more", {LOOP: "while not team:"}, r"your team ends there"),
        (
            "sign of the share",
            {
                "(start - resampled(lm, ids, other, [*team, one], contrast))": "(resampled(lm, ids, other, [*team, one], contrast) - start)"
            },
            r"you take .* first",
        ),
        ("sign of the gap", {GAP: "gap = score(lm, other, contrast) - start"}, r"you take .* first"),
        ("divided by the prompt's score", {"/ gap": "/ start"}, r"of the gap that is 0\.4625"),
        (
            "divided by the counterpart's score",
            {GAP: "gap = score(lm, other, contrast)"},
            r"of the gap that is 0\.4625",
        ),
        ("in logits, not divided", {" / gap": ""}, r"of the gap that is 0\.4625, in your list 3\.7"),
        (
            "what is left of the gap",
            {
                "(start - resampled(lm, ids, other, [*team, one], contrast))": "(resampled(lm, ids, other, [*team, one], contrast) - score(lm, other, contrast))"
            },
            r"you take .* first",
        ),
        ("the size of the gap", {GAP: "gap = (start - score(lm, other, contrast)).abs()"}, r"With all scores negated"),
        (
            "chosen by the loss",
            {BEST: "best = max(range(len(left)), key=lambda i: closed[i] * gap.item())"},
            r"With all scores negated.*not by the loss",
        ),
        (
            "chosen by size",
            {BEST: "best = max(range(len(left)), key=lambda i: abs(closed[i]))"},
            r"moves away from the counterpart's",
        ),
        (
            "the smallest share",
            {BEST: "best = min(range(len(left)), key=lambda i: closed[i])"},
            r"moves away from the counterpart's",
        ),
        ("candidates in their order", {BEST: "best = 0"}, r"moves away from the counterpart's"),
        ("half, whatever is enough", {"< enough": "< 0.5"}, r"stop at `enough`"),
        ("more than enough", {LOOP: "while left and (not shares or shares[-1] <= enough):"}, r"at least, not more"),
        ("steps counted, not shares", {LOOP: "while left and len(team) < 2:"}, r"at least, not more"),
        (
            "not all candidates when it is never enough",
            {LOOP: "while len(left) > 1 and (not shares or shares[-1] < enough):"},
            r"go on while one is left",
        ),
        (
            "stops where no head adds",
            {
                "        team.append(left.pop(best))": "        if shares and closed[best] <= shares[-1] + 1e-9:\n            break\n        team.append(left.pop(best))"
            },
            r"go on while one is left",
        ),
        (
            "a head may come twice",
            {
                "team.append(left.pop(best))": "team.append(left[best])\n        if len(team) > 9:\n            break",
                CLOSED: CLOSED.replace("[*team, one]", "[one]"),
            },
            r"twice",
        ),
        (
            "the gap closed shrinks with each step",
            {
                "shares.append(closed[best])": "shares.append(closed[best])\n        start = resampled(lm, ids, other, team, contrast)"
            },
            r"close 0\.8375 of the gap together",
        ),
        (
            "the shares each head adds",
            {"    return team, shares": "    return team, [b - a for a, b in zip([0, *shares], shares)]"},
            r"close 0\.8375 of the gap together",
        ),
        ("the candidates used up", {"list(candidates)": "candidates"}, r"changed a list that it was given"),
        ("the team sorted", {"    return team, shares": "    return sorted(team), shares"}, r"you take \(0, 2\) first"),
        (
            "no number for a head",
            {"    return team, shares": "    return [(float('nan'), 0)], shares[:1]"},
            r"Expected a list of heads",
        ),
        ("shares alone", {"    return team, shares": "    return shares"}, r"two lists|team"),
        (
            "(head, layer)",
            {"    return team, shares": "    return [head[::-1] for head in team], shares"},
            r"heads of the candidates, \(layer, head\)",
        ),
        (
            "never ends well: no look at what is left",
            {LOOP: "while not shares or shares[-1] < enough:"},
            r"stopped with ValueError",
        ),
        (
            "everything above half singly",
            {
                LOOP: "for _ in range(1):",
                "team.append(left.pop(best))": "team += [left[i] for i in range(len(left)) if closed[i] > 0.3]",
                "shares.append(closed[best])": "shares += [x for x in closed if x > 0.3]",
            },
            r"you take \(2, 3\) first",
        ),
        (
            "top two together, the rest not tried",
            {
                LOOP: "order = sorted(left, key=lambda one: -(start - resampled(lm, ids, other, [one], contrast)).item() / gap.item())\n    while left and (not shares or shares[-1] < enough):",
                BEST: "best = left.index(order[len(team)])",
            },
            r"try each candidate again",
        ),
    ],
}

RIGHT = {
    "zero": [
        (
            "edit of the package, four axes",
            """
def without_head(lm, ids, layer, head, contrast, *, where=slice(None)):
    def change(z):
        z = z.reshape(*z.shape[:2], lm.n_heads, -1).clone()
        z[:, where, head] = 0
        return z.flatten(2)

    with edit(lm, {("heads", layer): change}):
        return score(lm, ids, contrast)
""",
        ),
        (
            "its part taken off what leaves",
            """
def without_head(lm, ids, layer, head, contrast, *, where=slice(None)):
    o_proj = lm.model.model.layers[layer].self_attn.o_proj
    d = o_proj.in_features // lm.n_heads
    own = list(range(head * d, head * d + d))

    def hook(module, args, out):
        part = torch.zeros_like(out)
        part[:, where] = args[0][:, where][..., own] @ module.weight[:, own].T
        return out - part

    h = o_proj.register_forward_hook(hook)
    try:
        result = score(lm, ids, contrast)
    finally:
        h.remove()
    return result
""",
        ),
        (
            "a mask, prompt by prompt, single precision",
            """
def without_head(lm, ids, layer, head, contrast, *, where=slice(None)):
    out = []
    for row in ids:
        def hook(module, args):
            x = args[0]
            keep = torch.ones(x.shape[-2:])
            places = torch.arange(x.shape[1])[where]
            for p in places:
                keep[p, head * 8 : head * 8 + 8] = 0
            return x * keep

        h = lm.model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(hook)
        try:
            out.append(float(score(lm, row[None], contrast)))
        finally:
            h.remove()
    return torch.tensor(out)
""",
        ),
    ],
    "mean": [
        (
            "prompt by prompt, without the filling; record and edit",
            """
@torch.no_grad()
def head_mean(lm, reference, mask, layer, head):
    d, found = lm.d_model // lm.n_heads, []
    for row, real in zip(reference, mask.bool()):
        with record(lm, [("heads", layer)]) as seen:
            lm.model(row[real][None])
        found.append(seen["heads", layer][0, -1, d * head : d * (head + 1)])
    return sum(found) / len(found)

def lost_at_mean(lm, ids, layer, head, contrast, *, mean):
    def change(z):
        z = z.clone().unflatten(-1, (lm.n_heads, -1))
        z[:, -1, head] = torch.as_tensor(mean)
        return z.flatten(-2)

    with edit(lm, {("heads", layer): change}):
        after = score(lm, ids, contrast)
    return score(lm, ids, contrast) - after
""",
        ),
        (
            "with the attention mask, gather, single precision, a list",
            """
def head_mean(lm, reference, mask, layer, head):
    seen = {}
    def keep(module, args, out):
        seen["z"] = args[0].detach()
    handle = lm.model.model.layers[layer].self_attn.o_proj.register_forward_hook(keep)
    try:
        lm.model(reference, attention_mask=mask)
    finally:
        handle.remove()
    z = seen["z"].float().reshape(*reference.shape, lm.n_heads, -1)[:, :, head]
    last = (mask.cumsum(1) * mask).argmax(1)
    return torch.stack([z[i, p] for i, p in enumerate(last)]).mean(0)

def lost_at_mean(lm, ids, layer, head, contrast, *, mean):
    width = len(mean)
    def keep(module, args):
        z = args[0]
        end = z[:, -1:].clone()
        end[..., head * width : head * width + width] = mean
        return torch.cat([z[:, :-1], end], dim=1)
    before = score(lm, ids, contrast)
    handle = lm.model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(keep)
    try:
        after = score(lm, ids, contrast)
    finally:
        handle.remove()
    return [b.item() - a.item() for b, a in zip(before, after)]
""",
        ),
    ],
    "joint": [
        (
            "hooks of one's own, a function for each head",
            """
@torch.no_grad()
def resampled(lm, ids, other, heads, contrast):
    d = lm.d_model // lm.n_heads
    projections = [block.self_attn.o_proj for block in lm.model.model.layers]
    theirs, hooks = {}, []

    def keep(layer):
        def hook(module, args):
            theirs[layer] = args[0].clone()
        return hook

    def put(layer, head):
        def hook(module, args):
            new = args[0].clone()
            new[:, :, head * d : head * d + d] = theirs[layer][:, :, head * d : head * d + d]
            return (new,)
        return hook

    try:
        hooks = [p.register_forward_pre_hook(keep(n)) for n, p in enumerate(projections)]
        score(lm, other, contrast)
        while hooks:
            hooks.pop().remove()
        hooks = [projections[n].register_forward_pre_hook(put(n, h)) for n, h in heads]
        return score(lm, ids, contrast)
    finally:
        for hook in hooks:
            hook.remove()

def joint_and_sum(lm, ids, other, heads, contrast):
    intact = score(lm, ids, contrast)
    rows = [intact - resampled(lm, ids, other, some, contrast) for some in [heads, *([h] for h in heads)]]
    return torch.stack([rows[0], torch.stack(rows[1:]).sum(0)])
""",
        ),
        (
            "both prompts in one batch, a mask of heads",
            """
@torch.no_grad()
def resampled(lm, ids, other, heads, contrast):
    n = len(ids)

    def swap(layer):
        def change(z):
            new = z.unflatten(-1, (lm.n_heads, -1)).clone()
            for l, h in heads:
                if l == layer:
                    new[:n, :, h] = new[n:, :, h]
            return new.flatten(-2)
        return change

    with edit(lm, {("heads", layer): swap(layer) for layer in range(lm.n_layers)}):
        return score(lm, torch.cat([ids, other]), contrast)[:n]

def joint_and_sum(lm, ids, other, heads, contrast):
    intact, total = score(lm, ids, contrast), 0
    for one in heads:
        total = total + intact - resampled(lm, ids, other, [one], contrast)
    return [(intact - resampled(lm, ids, other, heads, contrast)).tolist(), total.tolist()]
""",
        ),
        (
            "prompt by prompt, single precision",
            {
                "def resampled(lm, ids, other, heads, contrast):": "def resampled(lm, ids, other, heads, contrast):\n    if len(ids) > 1:\n        parts = [resampled(lm, a[None], b[None], heads, contrast) for a, b in zip(ids, other)]\n        return torch.cat(parts).float()\n",
            },
        ),
    ],
    "team": [
        (
            "sets, arrays, a pair",
            """
import numpy as np

def greedy_team(lm, ids, other, candidates, contrast, *, enough=0.5):
    clean, goal = (score(lm, x, contrast).item() for x in (ids, other))
    def share(heads):
        return (score_with(heads) - clean) / (goal - clean)
    def score_with(heads):
        return float(resampled(lm, ids, other, heads, contrast))
    team, shares = (), []
    for _ in candidates:
        rest = [c for c in candidates if c not in team]
        values = np.array([share([*team, c]) for c in rest])
        team += (rest[values.argmax()],)
        shares.append(values.max())
        if values.max() >= enough:
            break
    return team, np.array(shares)
""",
        ),
        (
            "recursion, tensors",
            """
def greedy_team(lm, ids, other, candidates, contrast, *, enough=0.5, team=()):
    start = score(lm, ids, contrast)
    gap = start - score(lm, other, contrast)
    pool = [c for c in candidates if c not in team]
    if not pool:
        return [], []
    tried = [(start - resampled(lm, ids, other, list(team) + [c], contrast)) / gap for c in pool]
    value, best = torch.cat(tried).float().max(dim=0)
    if value >= enough:
        return [pool[best]], [value]
    heads, shares = greedy_team(lm, ids, other, candidates, contrast, enough=enough, team=(*team, pool[best]))
    return [pool[best], *heads], [value, *shares]
""",
        ),
        (
            "stops inside the loop",
            {
                LOOP: "while left:",
                "        shares.append(closed[best])\n": "        shares.append(closed[best])\n        if shares[-1] >= enough:\n            return team, shares\n",
            },
        ),
    ],
}
