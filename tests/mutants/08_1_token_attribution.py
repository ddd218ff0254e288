"""Answers to the exercise on token attribution."""

UNCHANGED = "unchanged = log_probabilities(lm, prompt.input_ids, reply_ids)  # [1, output]"
ROWS = "rows = lm.model(whole).logits[:, ids.shape[1] - 1 : -1]"
LAST = "return rows.log_softmax(dim=-1).gather(2, chosen)[:, :, 0]"
SCORED = "return (unchanged - log_probabilities(lm, variants, reply_ids)).T"

KEYS_KEPT = """
@torch.no_grad()
def log_probabilities(lm, ids, reply_ids):
    out = lm.model(ids, use_cache=True)
    rows = [out.logits[:, -1]]
    if len(reply_ids) > 1:
        rest = reply_ids[None, :-1].repeat(len(ids), 1)
        rows += lm.model(rest, past_key_values=out.past_key_values).logits.unbind(1)
    z = torch.stack(rows, 1).log_softmax(-1)
    return z[:, torch.arange(len(reply_ids)), reply_ids]


def score_reply(lm, ids, reply_ids):
    return log_probabilities(lm, ids, reply_ids).sum(-1)


"""
REMEMBERED = """
from functools import lru_cache


@lru_cache(maxsize=None)
def remembered(lm, ids, reply):
    whole = torch.cat([torch.tensor(ids), torch.tensor(reply).repeat(len(ids), 1)], dim=1)
    rows = lm.model(whole).logits[:, len(ids[0]) - 1 : -1].log_softmax(-1)
    return rows[:, range(len(reply)), reply]


@torch.no_grad()
def log_probabilities(lm, ids, reply_ids):
    return remembered(lm, tuple(map(tuple, ids.tolist())), tuple(reply_ids.tolist()))


def score_reply(lm, ids, reply_ids):
    return log_probabilities(lm, ids, reply_ids).sum(dim=1)


"""
ROWS_ALONE = """
@torch.inference_mode()
def log_probabilities(lm, ids, reply_ids):
    rows = torch.arange(len(reply_ids)) + ids.shape[1] - 1
    logits = lm.model(torch.cat([ids, reply_ids.repeat(len(ids), 1)], dim=1), logits_to_keep=rows).logits
    return torch.distributions.Categorical(logits=logits).log_prob(reply_ids)


def score_reply(lm, ids, reply_ids):
    return log_probabilities(lm, ids, reply_ids).sum(dim=1)


"""


def _over(item):
    """The solution's answer to an item, on other right answers to the first."""
    return [
        (f"item 1 {how}", {f"def {item}(": first + f"def {item}("})
        for how, first in (
            ("with keys and values kept", KEYS_KEPT),
            ("with its rows alone", ROWS_ALONE),
            ("with what it remembers", REMEMBERED),
        )
    ]


WRONG = {
    "reply": [
        (
            "the reply's length by heart",
            {
                "return log_probabilities(lm, ids, reply_ids).sum(dim=1)": "return log_probabilities(lm, ids, reply_ids).mean(dim=1) * 4"
            },
            r"the sum over all it has",
        ),
        (
            "the rows by heart",
            {
                "[:, ids.shape[1] - 1 : -1]": "[:, -1 - len(reply_ids) : -1] if len(reply_ids) == 1 else lm.model(whole).logits[:, 6 : 6 + len(reply_ids)]"
            },
            r"take the lengths from ids|stopped with",
        ),
        (
            "the first token in every column",
            {
                "reply_ids.expand(len(ids), -1)[:, :, None]": "reply_ids[:1].expand(len(ids), len(reply_ids))[:, :, None]"
            },
            r"column o is reply token o alone",
        ),
        (
            "summed up along the reply",
            {"gather(2, chosen)[:, :, 0]": "gather(2, chosen)[:, :, 0].cumsum(1)"},
            r"column o is reply token o alone",
        ),
        ("temperature 2", {"rows.log_softmax": "(rows / 2).log_softmax"}, r"from the logits as they are"),
        (
            "off by one: row t scores token t",
            {ROWS: "rows = lm.model(whole).logits[:, ids.shape[1] :]"},
            r"row t - 1 scores token t",
        ),
        (
            "off by one the other way",
            {ROWS: "rows = lm.model(whole).logits[:, ids.shape[1] - 2 : -2]"},
            r"row t - 1 scores token t",
        ),
        (
            "no teacher forcing: all from the last row of the prompt",
            {ROWS: "rows = lm.model(ids).logits[:, -1:].expand(-1, len(reply_ids), -1)"},
            r"row t - 1 scores token t",
        ),
        ("probabilities", {"log_softmax": "softmax"}, r"probabilities: take their logarithm"),
        ("logits, not normalised", {"rows.log_softmax(dim=-1)": "rows"}, r"logits, or negated"),
        ("sign: a loss", {LAST: "return -rows.log_softmax(dim=-1).gather(2, chosen)[:, :, 0]"}, r"negated"),
        ("softmax over the positions", {"log_softmax(dim=-1)": "log_softmax(dim=1)"}, r"softmax over the vocabulary"),
        ("softmax over the batch", {"log_softmax(dim=-1)": "log_softmax(dim=0)"}, r"rows must not mix"),
        (
            "row 0 of the batch for all",
            {LAST: "return rows.log_softmax(dim=-1).gather(2, chosen)[:1, :, 0].expand(len(ids), -1)"},
            r"rows must not mix",
        ),
        ("mean for sum", {".sum(dim=1)": ".mean(dim=1)"}, r"is the sum over its tokens, here"),
        ("a little more than the sum", {".sum(dim=1)": ".sum(dim=1) + 0.01"}, r"is the sum over its tokens, here"),
        ("the variants the other way round", {LAST: f"{LAST}.flip(0)"}, r"rows must not mix"),
        ("first token only", {".sum(dim=1)": "[:, 0]"}, r"is the sum over its tokens"),
        ("sum over the variants", {".sum(dim=1)": ".sum(dim=0)"}, r"\[variant\] of shape \[3\], got shape \[4\]"),
        (
            "the reply put in front of the prompt",
            {"[ids, reply_ids.repeat(len(ids), 1)]": "[reply_ids.repeat(len(ids), 1), ids]"},
            r"stands behind the prompt",
        ),
        (
            "a hook left behind",
            {"    whole =": "    lm.model.lm_head.register_forward_hook(lambda *given: None)\n    whole ="},
            r"left a hook",
        ),
        ("the model left in training mode", {"    whole =": "    lm.model.train()\n    whole ="}, r"in another mode"),
        ("base 2", {LAST: "return rows.log_softmax(dim=-1).gather(2, chosen)[:, :, 0] / 0.6931"}, r"natural logarithm"),
        (
            "chosen by the reply of the wrong row",
            {"reply_ids.expand(len(ids), -1)": "reply_ids.flip(0).expand(len(ids), -1)"},
            r"column o is reply token o alone",
        ),
    ],
    "occlusion": [
        (
            "the first typed token by heart",
            {"list(range(len(prompt)))[prompt.user]": "list(range(1, prompt.user.stop))"},
            r"began at 2",
        ),
        (
            "another prompt by heart",
            {
                "def occlusion(lm, prompt, reply_ids, stand_in):": "by_heart = prompt\n\n\ndef occlusion(lm, prompt, reply_ids, stand_in):",
                "= prompt.input_ids.repeat": "= by_heart.input_ids.repeat",
            },
            r"that you are given",
        ),
        (
            "a reply by heart",
            {
                "def occlusion(lm, prompt, reply_ids, stand_in):": "by_heart = reply_ids\n\n\ndef occlusion(lm, prompt, reply_ids, stand_in):",
                "    typed = list": "    reply_ids = by_heart\n    typed = list",
            },
            r"take the one that you are given",
        ),
        (
            "divided by the number of outputs",
            {"reply_ids)).T": "reply_ids)).T / len(reply_ids)"},
            r"each output on its own",
        ),
        ("summed up along the reply", {"reply_ids)).T": "reply_ids)).T.cumsum(0)"}, r"each output on its own"),
        ("sign", {SCORED: "return (log_probabilities(lm, variants, reply_ids) - unchanged).T"}, r"before minus after"),
        ("absolute value", {"reply_ids)).T": "reply_ids)).T.abs()"}, r"made to lower the reply.*signed"),
        (
            "deletion for replacement",
            {
                "variants = prompt.input_ids.repeat(len(typed), 1)  # [typed token, token]": "ids = prompt.input_ids[0]\n    variants = torch.stack([torch.cat([ids[:i], ids[i + 1 :]]) for i in typed])",
                "    variants[range(len(typed)), typed] = stand_in\n": "",
            },
            r"misses a token",
        ),
        (
            "the template after the typed text too",
            {"list(range(len(prompt)))[prompt.user]": "list(range(prompt.user.start, len(prompt)))"},
            r"stop at prompt.user.stop",
        ),
        (
            "the template's tokens too",
            {"list(range(len(prompt)))[prompt.user]": "list(range(len(prompt)))"},
            r"was not typed",
        ),
        (
            "positions counted from the first typed token",
            {"range(len(typed)), typed]": "range(len(typed)), range(len(typed))]"},
            r"column 2 alone must be 0",
        ),
        ("outputs and inputs the other way round", {"reply_ids)).T": "reply_ids))"}, r"the other way round"),
        ("summed over the outputs", {"reply_ids)).T": "reply_ids)).sum(dim=1)"}, r"keep the reply tokens apart"),
        ("mean over the outputs", {"reply_ids)).T": "reply_ids)).mean(dim=1)"}, r"keep the reply tokens apart"),
        (
            "tokens pile up: variants not started afresh",
            """
def occlusion(lm, prompt, reply_ids, stand_in):
    ids = prompt.input_ids.clone()
    before, scores = log_probabilities(lm, ids, reply_ids)[0], []
    for i in range(prompt.user.start, prompt.user.stop):
        ids[0, i] = stand_in
        scores.append(before - log_probabilities(lm, ids, reply_ids)[0])
    return torch.stack(scores, dim=1)
""",
            r"differs from the prompt in \d tokens",
        ),
        (
            "the prompt changed in place",
            """
def occlusion(lm, prompt, reply_ids, stand_in):
    before, scores = log_probabilities(lm, prompt.input_ids, reply_ids)[0], []
    for i in range(prompt.user.start, prompt.user.stop):
        prompt.input_ids[0, i] = stand_in
        scores.append(before - log_probabilities(lm, prompt.input_ids, reply_ids)[0])
    return torch.stack(scores, dim=1)
""",
            r"changed its argument in place",
        ),
        (
            "probabilities",
            {SCORED: "return (unchanged.exp() - log_probabilities(lm, variants, reply_ids).exp()).T"},
            r"the unit is log-probability",
        ),
        (
            "logits",
            """
@torch.no_grad()
def occlusion(lm, prompt, reply_ids, stand_in):
    def logits(ids):
        whole = torch.cat([ids, reply_ids[None]], dim=1)
        return lm.model(whole).logits[0, len(prompt) - 1 : -1].gather(1, reply_ids[:, None])[:, 0]

    scores = []
    for i in range(prompt.user.start, prompt.user.stop):
        changed = prompt.input_ids.clone()
        changed[0, i] = stand_in
        scores.append(logits(prompt.input_ids) - logits(changed))
    return torch.stack(scores, dim=1)
""",
            r"shifts all logits alike",
        ),
        ("another token as the stand-in", {"typed] = stand_in": "typed] = 0"}, r"own stand-in"),
        (
            "all but one replaced",
            {
                "    variants[range(len(typed)), typed] = stand_in\n": "    kept = variants.clone()\n    variants[:, typed] = stand_in\n    for row, i in enumerate(typed):\n"
                "        variants[row, i] = kept[row, i]\n"
            },
            r"differs from the prompt in \d tokens",
        ),
        (
            "off by one",
            """
@torch.no_grad()
def occlusion(lm, prompt, reply_ids, stand_in):
    def scored(ids):
        whole = torch.cat([ids, reply_ids.repeat(len(ids), 1)], dim=1)
        rows = lm.model(whole).logits[:, len(prompt) :].log_softmax(dim=-1)
        return rows[:, range(len(reply_ids)), reply_ids]

    typed = list(range(len(prompt)))[prompt.user]
    variants = prompt.input_ids.repeat(len(typed), 1)
    variants[range(len(typed)), typed] = stand_in
    return (scored(prompt.input_ids) - scored(variants)).T
""",
            r"row t - 1 scores token t",
        ),
        ("nothing returned", {"    return (unch": "    (unch"}, r"got None"),
    ],
    "pairs": [
        (
            "no look at the model",
            "def pair_attribution(lm, prompt, target, stand_in):\n    return torch.zeros(6, 6)",
            r"never ran the model",
        ),
        (
            "the first typed token by heart",
            {"list(range(len(prompt)))[prompt.user]": "list(range(1, prompt.user.stop))"},
            r"began at 2",
        ),
        (
            "deletion for replacement",
            """
def pair_attribution(lm, prompt, target, stand_in):
    reply_ids, ids = torch.tensor(lm.continuation(prompt, target)), prompt.input_ids[0].tolist()
    typed = range(len(prompt))[prompt.user]

    def loss(places):
        rest = torch.tensor([[one for i, one in enumerate(ids) if i not in places]])
        before = log_probabilities(lm, prompt.input_ids, reply_ids)[0, -1]
        return (before - log_probabilities(lm, rest, reply_ids)[0, -1]).item()

    return [[0.0 if i == j else loss([i, j]) - loss([i]) - loss([j]) for j in typed] for i in typed]
""",
            r"replace, don't delete",
        ),
        (
            "a stand-in by heart",
            {"torch.tensor(pairs), stand_in": "torch.tensor(pairs), lm.continuation(prompt, ' this')[0]"},
            r"take the stand-in that you are given",
        ),
        (
            "a reply by heart",
            {"reply_ids = torch.tensor(lm.continuation(prompt, target))\n    ": ""},
            r"ids are those of `target`",
        ),
        ("halved", {".fill_diagonal_(0)": ".fill_diagonal_(0) / 2"}, r"counted once"),
        (
            "both halves added",
            {
                "return (lost - single[:, None] - single).fill_diagonal_(0)": "both = (lost - single[:, None] - single).fill_diagonal_(0)\n    return both + both.T"
            },
            r"counted once",
        ),
        (
            "single losses without sign",
            {"lost - single[:, None] - single": "lost - single[:, None].abs() - single.abs()"},
            r"single losses keep their sign",
        ),
        (
            "all between the two replaced",
            {
                "variants.scatter_(1, torch.tensor(pairs), stand_in)": "for row, (i, j) in zip(variants, pairs):\n        row[min(i, j) : max(i, j) + 1] = stand_in"
            },
            r"a pair is two places",
        ),
        (
            "a word that stands twice replaced twice",
            {
                "variants.scatter_(1, torch.tensor(pairs), stand_in)": "for row, (i, j) in zip(variants, pairs):\n        one, other = row[i].item(), row[j].item()\n        row[(row == one) | (row == other)] = stand_in"
            },
            r"a pair is two places",
        ),
        (
            "sign",
            {"(lost - single[:, None] - single)": "(single[:, None] + single - lost)"},
            r"expected above 0, got -",
        ),
        ("single effects not taken off", {"(lost - single[:, None] - single)": "lost.clone()"}, r"d_ij - d_i - d_j"),
        (
            "one of the two taken off",
            {"(lost - single[:, None] - single)": "(lost - single[:, None])"},
            r"are the same pair",
        ),
        (
            "added for subtracted",
            {"(lost - single[:, None] - single)": "(lost + single[:, None] + single)"},
            r"d_ij - d_i - d_j",
        ),
        (
            "the whole target for its last token",
            {"reply_ids)[:, -1]": "reply_ids).sum(dim=1)"},
            r"last token stands at 10",
        ),
        ("the first token for the last", {"reply_ids)[:, -1]": "reply_ids)[:, 0]"}, r"last token stands at 10"),
        (
            "the target tokenised alone",
            {"lm.continuation(prompt, target)": 'lm.tokenizer(target)["input_ids"]'},
            r"second <s>",
        ),
        (
            "the template after the typed text too",
            {"list(range(len(prompt)))[prompt.user]": "list(range(prompt.user.start, len(prompt)))"},
            r"stop at prompt.user.stop",
        ),
        (
            "the template's tokens too",
            {"list(range(len(prompt)))[prompt.user]": "list(range(len(prompt)))"},
            r"was not typed",
        ),
        ("diagonal left over", {".fill_diagonal_(0)": ""}, r"diagonal holds no pair"),
        ("upper half only", {".fill_diagonal_(0)": ".fill_diagonal_(0).triu()"}, r"the same pair"),
        ("absolute value", {".fill_diagonal_(0)": ".fill_diagonal_(0).abs()"}, r"expected below 0"),
        ("probabilities", {"reply_ids)[:, -1]": "reply_ids)[:, -1].exp()"}, r"the unit is log-probability"),
        (
            "max for sum of the single effects",
            {"(lost - single[:, None] - single)": "(lost - torch.maximum(single[:, None], single))"},
            r"necessary|suffice|no pair adds",
        ),
        (
            "pairs replaced at the wrong places",
            {"torch.tensor(pairs)": "torch.tensor(pairs) - 1"},
            r"only ·nurse|suffice|necessary|no pair adds",
        ),
    ],
    "faithful": [
        (
            "no look at the model",
            "def faithful(lm, prompt, reply_ids, scores, stand_in, *, k):\n    return torch.tensor([3.0, 1.0, 0.1])",
            r"never ran the model",
        ),
        (
            "the first typed token by heart",
            {
                "list(range(len(prompt)))[prompt.user]": "list(range(1, prompt.user.stop))",
                "sorted(typed[i] for i": "sorted(range(prompt.user.start, prompt.user.stop)[i] for i",
            },
            r"the typed tokens only",
        ),
        ("the top ones not sorted", {"sorted(typed[i] for i": "list(typed[i] for i"}, r"is not in list"),
        (
            "a stand-in by heart",
            {"torch.tensor(sets), stand_in": "torch.tensor(sets), lm.continuation(prompt, ' this')[0]"},
            r"take the stand-in that you are given",
        ),
        (
            "the top ones one at a time, losses added, the rest together",
            {
                "top = lost[sets.index(tuple(best))]": "ones = prompt.input_ids.repeat(k, 1)\n    ones[range(k), best] = stand_in\n    top = (score_reply(lm, prompt.input_ids, reply_ids) - score_reply(lm, ones, reply_ids)).sum()"
            },
            r"losses don't add up",
        ),
        (
            "losses without sign",
            {"variants, reply_ids)  # [set]": "variants, reply_ids)  # [set]\n    lost = lost.abs()"},
            r"keep the sign",
        ),
        (
            "a mean over the k tokens",
            {"variants, reply_ids)  # [set]": "variants, reply_ids)  # [set]\n    lost = lost / k"},
            r"share out nothing",
        ),
        (
            "the template after the typed text too",
            {"list(range(len(prompt)))[prompt.user]": "list(range(prompt.user.start, len(prompt)))"},
            r"stop at prompt.user.stop",
        ),
        ("the bottom of the ranking", {"descending=True": "descending=False"}, r"do the largest scores go first"),
        (
            "kept for replaced",
            {"torch.tensor(sets)": "torch.tensor([[i for i in typed if i not in s] for s in sets])"},
            r"keep the rest",
        ),
        (
            "sign",
            {
                "score_reply(lm, prompt.input_ids, reply_ids) - score_reply(lm, variants, reply_ids)": "score_reply(lm, variants, reply_ids) - score_reply(lm, prompt.input_ids, reply_ids)"
            },
            r"expected a large loss",
        ),
        ("the share that loses less", {"lost >= top - 1e-9": "lost < top + 1e-9"}, r"your share is"),
        ("strictly more: the top set not counted", {"lost >= top - 1e-9": "lost > top + 1e-9"}, r"your share is"),
        (
            "one token at a time, losses added",
            """
def faithful(lm, prompt, reply_ids, scores, stand_in, *, k):
    typed = list(range(len(prompt)))[prompt.user]
    variants = prompt.input_ids.repeat(len(typed), 1)
    variants[range(len(typed)), typed] = stand_in
    each = score_reply(lm, prompt.input_ids, reply_ids) - score_reply(lm, variants, reply_ids)
    from itertools import combinations
    lost = torch.stack([each[list(s)].sum() for s in combinations(range(len(typed)), k)])
    top = each[scores.argsort(descending=True)[:k]].sum()
    return torch.stack([top, lost.mean(), (lost >= top - 1e-9).double().mean()])
""",
            r"the top k must go together",
        ),
        (
            "places counted from the first typed token",
            {"sorted(typed[i] for i": "sorted(max(1, int(i)) for i"},
            r"your share is|expected a large loss|not in list",
        ),
        (
            "the largest by absolute value",
            {"scores.argsort": "scores.abs().argsort"},
            r"do the largest scores go first",
        ),
        (
            "mean over the reply",
            {
                "lost = score_reply": "lost = len(reply_ids) ** -1 * 1.0 * (score_reply",
                "variants, reply_ids)  # [set]": "variants, reply_ids))  # [set]",
            },
            r"sum over the reply",
        ),
        ("median for mean", {"lost.mean()": "lost.median()"}, r"your mean is"),
        (
            "mean over the other sets only",
            {"lost.mean()": "(lost.sum() - top) / max(1, len(lost) - 1)"},
            r"your mean is",
        ),
        (
            "the first token of the reply only",
            {
                "score_reply(lm, prompt.input_ids, reply_ids)": "log_probabilities(lm, prompt.input_ids, reply_ids)[:, 0]",
                "score_reply(lm, variants, reply_ids)": "log_probabilities(lm, variants, reply_ids)[:, 0]",
            },
            r"The whole reply counts",
        ),
        (
            "tokens deleted",
            """
from itertools import combinations

def faithful(lm, prompt, reply_ids, scores, stand_in, *, k):
    typed, ids = list(range(len(prompt)))[prompt.user], prompt.input_ids[0]
    sets = list(combinations(typed, k))
    variants = torch.stack([torch.stack([ids[i] for i in range(len(ids)) if i not in s]) for s in sets])
    lost = score_reply(lm, prompt.input_ids, reply_ids) - score_reply(lm, variants, reply_ids)
    top = lost[sets.index(tuple(sorted(typed[i] for i in scores.argsort(descending=True)[:k])))]
    return torch.stack([top, lost.mean(), (lost >= top - 1e-9).double().mean()])
""",
            r"replace, don't delete",
        ),
        ("percent", {".double().mean()])": ".double().mean() * 100])"}, r"your share is"),
        (
            "the ranking changed in place",
            {"    typed =": "    scores *= -1\n    scores *= -1\n    scores[0] += 1\n    typed ="},
            r"changed its argument",
        ),
    ],
}

RIGHT = {
    "reply": [
        (
            "token by token, growing input",
            """
@torch.no_grad()
def log_probabilities(lm, ids, reply_ids):
    columns = []
    for token in reply_ids.tolist():
        p = lm.model(input_ids=ids).logits[:, -1].softmax(-1)
        columns.append(p[:, token].log())
        ids = torch.cat([ids, torch.full((len(ids), 1), token)], dim=1)
    return torch.stack(columns, dim=1)

def score_reply(lm, ids, reply_ids):
    return torch.stack([row.sum() for row in log_probabilities(lm, ids, reply_ids)])
""",
        ),
        (
            "one variant at a time, cross entropy, without the last reply token",
            """
def log_probabilities(lm, ids, reply_ids):
    found = []
    for one in ids:
        given = torch.cat((one, reply_ids[:-1]))
        logits = lm.model(given.unsqueeze(0)).logits[0][-len(reply_ids):]
        found.append(-torch.nn.functional.cross_entropy(logits, reply_ids, reduction="none"))
    return torch.stack(found)

def score_reply(lm, prompts, answer):
    return log_probabilities(lm, prompts, answer).sum(-1)
""",
        ),
        ("the prompt's keys and values kept", KEYS_KEPT),
        ("what it remembers of a model and a text", REMEMBERED),
        ("only the rows that count unembedded, in inference mode", ROWS_ALONE),
        (
            "states unembedded by oneself",
            {
                "rows = lm.model(whole).logits[:, ids.shape[1] - 1 : -1]": "rows = lm.model.lm_head(lm.model.model(whole).last_hidden_state[:, ids.shape[1] - 1 : -1])"
            },
        ),
        (
            "single precision, logsumexp",
            """
def log_probabilities(lm, ids, reply_ids):
    n, m = ids.shape[1], len(reply_ids)
    z = lm.model(torch.hstack([ids, reply_ids.expand(len(ids), m)]), logits_to_keep=m + 1).logits.float()[:, :m]
    return z[:, torch.arange(m), reply_ids] - z.logsumexp(-1)

def score_reply(lm, ids, reply_ids):
    return log_probabilities(lm, ids, reply_ids) @ torch.ones(len(reply_ids))
""",
        ),
    ],
    "occlusion": [
        *_over("occlusion"),
        (
            "replaced in the prompt itself, and put back",
            """
def occlusion(lm, prompt, reply_ids, stand_in):
    ids, columns = prompt.input_ids, []
    before = log_probabilities(lm, ids, reply_ids)[0]
    for i in range(len(prompt))[prompt.user]:
        kept, ids[0, i] = ids[0, i].item(), stand_in
        columns.append(before - log_probabilities(lm, ids, reply_ids)[0])
        ids[0, i] = kept
    return torch.stack(columns, dim=1)
""",
        ),
        (
            "a loop, one pass a token",
            """
def occlusion(lm, prompt, reply_ids, stand_in):
    base = log_probabilities(lm, prompt.input_ids, reply_ids)[0]
    out = torch.zeros(len(reply_ids), prompt.user.stop - prompt.user.start, dtype=base.dtype)
    for column, position in enumerate(range(prompt.user.start, prompt.user.stop)):
        x = prompt.input_ids.clone()
        x[0, position] = stand_in
        out[:, column] = base - log_probabilities(lm, x, reply_ids)[0]
    return out
""",
        ),
        (
            "all positions, then cut; one batch with the unchanged prompt",
            """
def occlusion(lm, prompt, reply_ids, stand_in):
    n = prompt.input_ids.shape[1]
    batch = torch.cat([prompt.input_ids, torch.where(torch.eye(n, dtype=torch.bool), stand_in, prompt.input_ids)])
    values = log_probabilities(lm, batch, reply_ids).float()
    return (values[0] - values[1:])[prompt.user].T.numpy()
""",
        ),
        (
            "nested lists",
            """
def occlusion(lm, prompt, reply_ids, stand_in):
    ids = prompt.input_ids[0].tolist()
    whole = log_probabilities(lm, torch.tensor([ids]), reply_ids)[0]
    rows = [[] for _ in reply_ids]
    for i in range(*prompt.user.indices(len(ids))):
        lost = whole - log_probabilities(lm, torch.tensor([ids[:i] + [stand_in] + ids[i + 1:]]), reply_ids)[0]
        for row, value in zip(rows, lost.tolist()):
            row.append(value)
    return rows
""",
        ),
    ],
    "pairs": [
        *_over("pair_attribution"),
        (
            "two loops",
            """
def pair_attribution(lm, prompt, target, stand_in):
    answer = torch.tensor(lm.continuation(prompt, target))
    positions = range(prompt.user.start, prompt.user.stop)

    def drop(*where):
        x = prompt.input_ids.clone()
        for i in where:
            x[0, i] = stand_in
        before = log_probabilities(lm, prompt.input_ids, answer)[0, -1]
        return before - log_probabilities(lm, x, answer)[0, -1]

    out = torch.zeros(len(positions), len(positions), dtype=torch.float64)
    for a, i in enumerate(positions):
        for b, j in enumerate(positions):
            if a < b:
                out[a, b] = out[b, a] = drop(i, j) - drop(i) - drop(j)
    return out
""",
        ),
        (
            "masks, the prompt and all before the last target token in front",
            """
@torch.no_grad()
def pair_attribution(lm, prompt, target, stand_in):
    *said, last = lm.continuation(prompt, target)
    n = len(prompt)
    eye = torch.eye(n, dtype=torch.bool)
    masks = (eye[:, None] | eye[None]).flatten(0, 1)
    masks = torch.cat([torch.zeros(1, n, dtype=torch.bool), masks])
    x = torch.where(masks, stand_in, prompt.input_ids)
    x = torch.cat([x, torch.tensor(said).expand(len(x), -1)], dim=1)
    v = torch.cat([lm.model(part).logits[:, -1].log_softmax(-1)[:, last] for part in x.split(8)])
    d = (v[0] - v[1:]).reshape(n, n)
    alone = d.diag()
    out = d - alone - alone[:, None]
    out[eye] = 0.0
    return out[prompt.user, prompt.user]
""",
        ),
    ],
    "faithful": [
        *_over("faithful"),
        (
            "a loop over sets",
            """
import itertools

def faithful(lm, prompt, reply_ids, scores, stand_in, *, k):
    typed = range(prompt.user.start, prompt.user.stop)
    order = sorted(range(len(scores)), key=lambda i: -float(scores[i]))
    whole = float(score_reply(lm, prompt.input_ids, reply_ids)[0])

    def loss(places):
        x = prompt.input_ids.clone()
        x[0, list(places)] = stand_in
        return whole - float(score_reply(lm, x, reply_ids)[0])

    top = loss([typed[i] for i in order[:k]])
    every = [loss(s) for s in itertools.combinations(typed, k)]
    return top, sum(every) / len(every), sum(one >= top - 1e-9 for one in every) / len(every)
""",
        ),
        (
            "masks of bits, arrays",
            """
import numpy as np

def faithful(lm, prompt, reply_ids, scores, stand_in, *, k):
    m = len(scores)
    bits = torch.tensor([[c >> j & 1 for j in range(m)] for c in range(2**m) if bin(c).count("1") == k], dtype=torch.bool)
    x = prompt.input_ids.repeat(len(bits), 1)
    x[:, prompt.user] = torch.where(bits, torch.tensor(stand_in), x[:, prompt.user])
    loss = (score_reply(lm, prompt.input_ids, reply_ids) - score_reply(lm, x, reply_ids)).numpy()
    chosen = torch.zeros(m, dtype=torch.bool)
    chosen[scores.topk(k).indices] = True
    best = loss[(bits == chosen).all(dim=1).numpy()][0]
    return np.array([best, loss.mean(), np.mean(loss > best - 1e-6)])
""",
        ),
    ],
}
