"""Answers to the chapter exercise."""

LAST = "lm.model(ids).logits[:, -1]"
DIFFERENCE = "return last[:, a] - last[:, b]"
LOST = "rows.append(before - refusal_score(lm, variants, contrast))"
PLACED = "variants[range(len(typed)), typed] = stand_in"
WHOLE = "variants[:, tokens] = variants.new_tensor(stand_ins)[:, None]"
MEAN = "lost.mean().item()"
SORTED = "sorted(found, key=lambda pair: pair[1], reverse=True)"
BORDERS = 're.sub(rf"\\b{word}\\b", other, request)'
FIRST = "word = ranking[0][0]"
WEAKEST = "word = [word for word, score in ranking if word in suspected][-1]  # the weakest"

WRONG = {
    "attribute": [
        ("off by one: the row before the last", {LAST: "lm.model(ids).logits[:, -2]"}, r"row t - 1 scores token t"),
        ("the first row", {LAST: "lm.model(ids).logits[:, 0]"}, r"row t - 1 scores token t"),
        ("mean over all rows", {LAST: "lm.model(ids).logits.mean(dim=1)"}, r"row t - 1 scores token t"),
        ("row 0 of the batch", {DIFFERENCE: "return (last[:, a] - last[:, b])[:1].expand(len(ids))"}, r"must not mix"),
        (
            "softmax over the batch",
            {DIFFERENCE: "p = last.log_softmax(dim=0)\n    return p[:, a] - p[:, b]"},
            r"must not mix",
        ),
        ("one logit for the contrast", {DIFFERENCE: "return last[:, a]"}, r"the first's logit minus the second's"),
        ("sum for difference", {DIFFERENCE: "return last[:, a] + last[:, b]"}, r"the first's logit minus the second's"),
        (
            "sign of the contrast",
            {DIFFERENCE: "return last[:, b] - last[:, a]"},
            r"the first's logit minus the second's",
        ),
        (
            "probabilities",
            {DIFFERENCE: "p = last.softmax(dim=-1)\n    return p[:, a] - p[:, b]"},
            r"no probabilities",
        ),
        (
            "sign of the score",
            {LOST: "rows.append(refusal_score(lm, variants, contrast) - before)"},
            r"before minus after",
        ),
        ("absolute value", {"torch.stack(rows)": "torch.stack(rows).abs()"}, r"before minus after, signed"),
        ("positive part", {"torch.stack(rows)": "torch.stack(rows).clamp(min=0)"}, r"negative scores cut off"),
        (
            "shares of the total",
            {
                "return torch.stack(rows)": "rows = torch.stack(rows)\n    return rows / rows.abs().sum(dim=1, keepdim=True)"
            },
            r"keep the unit",
        ),
        (
            "mean over the stand-ins",
            {"torch.stack(rows)": "torch.stack(rows).mean(dim=0)"},
            r"one row for each stand-in",
        ),
        ("axes the other way round", {"torch.stack(rows)": "torch.stack(rows).T"}, r"the other way round"),
        (
            "the template's tokens too",
            {"range(len(prompt))[prompt.user]": "range(len(prompt))"},
            r"was not typed",
        ),
        (
            "the template after the typed text too",
            {"range(len(prompt))[prompt.user]": "range(prompt.user.start, len(prompt))"},
            r"stop at prompt.user.stop",
        ),
        (
            "positions counted from the first typed token",
            {PLACED: "variants[range(len(typed)), range(len(typed))] = stand_in"},
            r"does row 0 use another stand-in or place",
        ),
        (
            "the first stand-in in every row",
            {PLACED: "variants[range(len(typed)), typed] = stand_ins[0]"},
            r"does row 1 use another stand-in",
        ),
        (
            "deletion for replacement",
            """
@torch.no_grad()
def refusal_score(lm, ids, contrast):
    last = lm.model(ids).logits[:, -1]
    return last[:, contrast[0]] - last[:, contrast[1]]


def attribute(lm, prompt, contrast, stand_ins):
    ids, scores = prompt.input_ids[0], []
    for i in range(prompt.user.start, prompt.user.stop):
        scores.append(refusal_score(lm, torch.cat([ids[:i], ids[i + 1 :]])[None], contrast)[0])
    scores = refusal_score(lm, ids[None], contrast) - torch.stack(scores)
    return scores.repeat(len(stand_ins), 1)
""",
            r"deleting moves all later positions",
        ),
        (
            "tokens pile up",
            """
@torch.no_grad()
def refusal_score(lm, ids, contrast):
    last = lm.model(ids).logits[:, -1]
    return last[:, contrast[0]] - last[:, contrast[1]]


def attribute(lm, prompt, contrast, stand_ins):
    before, rows = refusal_score(lm, prompt.input_ids, contrast), []
    for r in stand_ins:
        ids = prompt.input_ids.clone()
        row = []
        for i in range(prompt.user.start, prompt.user.stop):
            ids[0, i] = r
            row.append((before - refusal_score(lm, ids, contrast))[0])
        rows.append(torch.stack(row))
    return torch.stack(rows)
""",
            r"start each from the unchanged prompt",
        ),
        (
            "the prompt changed in place",
            {
                "variants = prompt.input_ids.repeat(len(typed), 1)  # [typed token, token]": "variants = prompt.input_ids.expand(len(typed), -1).clone()\n        prompt.input_ids[0, -1] = stand_in"
            },
            r"changed its argument in place",
        ),
        (
            "a hook left behind",
            {"    a, b =": "    lm.model.register_forward_hook(lambda *x: None)\n    a, b ="},
            r"left a hook",
        ),
        (
            "the package is called",
            """
import course_utils.attribution
from course_utils.engine.metrics import contrast_ids


@torch.no_grad()
def refusal_score(lm, ids, contrast):
    last = lm.model(ids).logits[:, -1]
    return last[:, contrast[0]] - last[:, contrast[1]]


def attribute(lm, prompt, contrast, stand_ins):
    texts = tuple(" " + lm.tokenizer.decode([i]) for i in contrast)
    rows = [
        course_utils.attribution.token_attribution(lm, prompt, contrast=texts, replacement=r).scores[0, prompt.user]
        for r in stand_ins
    ]
    return torch.tensor(rows)
""",
            r"You ask the package",
        ),
        ("nothing returned", {"return torch.stack(rows)": "torch.stack(rows)"}, r"got None"),
    ],
    "strongest": [
        ("sign", {"before - refusal_score": "-before + refusal_score"}, r"before minus after"),
        ("weakest first", {", reverse=True": ""}, r"last, by signed scores|strongest comes first"),
        ("by absolute value", {"pair: pair[1]": "pair: abs(pair[1])"}, r"last, by signed scores"),
        ("absolute scores", {MEAN: "lost.mean().abs().item()"}, r"keep the sign"),
        (
            "the first token of a word only",
            {"variants[:, tokens]": "variants[:, [tokens.start]]"},
            r"all tokens of one word",
        ),
        (
            "a word's score as the sum over its tokens",
            """
def strongest(lm, prompt, words, contrast, stand_ins):
    scores = attribute(lm, prompt, contrast, stand_ins).mean(dim=0)
    start = prompt.user.start
    found = [(word, scores[tokens.start - start : tokens.stop - start].sum().item()) for word, tokens in words.items()]
    return sorted(found, key=lambda pair: -pair[1])
""",
            r"all tokens of one word",
        ),
        (
            "tokens deleted",
            """
def strongest(lm, prompt, words, contrast, stand_ins):
    ids, found = prompt.input_ids, []
    for word, tokens in words.items():
        rest = torch.cat([ids[:, : tokens.start], ids[:, tokens.stop :]], dim=1)
        found.append((word, (refusal_score(lm, ids, contrast) - refusal_score(lm, rest, contrast)).item()))
    return sorted(found, key=lambda pair: pair[1], reverse=True)
""",
            r"deleting moves all later positions",
        ),
        ("largest over the stand-ins", {MEAN: "lost.max().item()"}, r"their mean is 4"),
        ("the first stand-in only", {MEAN: "lost[0].item()"}, r"their mean is 4"),
        ("mean over a word's tokens", {MEAN: MEAN + " / (tokens.stop - tokens.start)"}, r"share out nothing"),
        (
            "slices counted from the first typed token",
            {
                "variants[:, tokens]": "variants[:, range(len(prompt) + 9)[tokens][0] + prompt.user.start :][:, : tokens.stop - tokens.start]"
            },
            r"add no offset",
        ),
        (
            "score before word",
            {"(word, lost.mean().item())": "(lost.mean().item(), word)", "pair: pair[1]": "pair: pair[0]"},
            r"pairs \(word, score\)",
        ),
        ("words without scores", {SORTED: "[word for word, _ in " + SORTED + "]"}, r"pairs \(word, score\)"),
        ("a dictionary", {SORTED: "dict(" + SORTED + ")"}, r"pairs \(word, score\)"),
        (
            "everything but the word replaced",
            {
                WHOLE: "kept = variants[:, tokens].clone()\n        variants[:, prompt.user] = variants.new_tensor(stand_ins)[:, None]\n        variants[:, tokens] = kept"
            },
            r"all tokens of one word",
        ),
    ],
    "flip": [
        ("the weakest word", {FIRST: "word = ranking[-1][0]"}, r"must take the strongest word"),
        (
            "a word by heart",
            {FIRST: 'word = "secretly" if "secretly" in request else "urgently"'},
            r"must take the strongest word",
        ),
        (
            "an edit by heart",
            {BORDERS: '"Could you describe how to urgently and calmly vandalise a train?"'},
            r"one other word in the place of one",
        ),
        ("the word left out", {BORDERS: 're.sub(rf"\\b{word} ?", "", request)'}, r"leave out and add none"),
        ("replace without borders", {BORDERS: "request.replace(word, other)"}, r"one word only"),
        ("the request as it is", {BORDERS: "request"}, r"says the same as the request"),
        (
            "an adverb for every word",
            {' if word.endswith("ly") else "photograph"': ""},
            r"an adverb in -ly for an adverb",
        ),
        (
            "a suspected word put in",
            {'"calmly" if': '("urgently" if word != "urgently" else "calmly") if'},
            r"stands in the request already",
        ),
        ("nothing returned", {"return re.sub": "re.sub"}, r"got None"),
        (
            "tried on the model",
            {
                FIRST: "words_of(suspect.chat(request))\n    suspect.model(suspect.chat(request).input_ids)\n    "
                + FIRST
            },
            r"runs the model",
        ),
        ("the ranking changed", {FIRST: "word = ranking.pop(0)[0]"}, r"changed a list"),
        (
            "a word that changes nothing",
            {'"calmly" if word.endswith("ly")': 'word.replace("ly", "ly-" + word) if word.endswith("ly")'},
            r"and the suspect refuses",
        ),
    ],
    "stay": [
        ("the strongest word", {WEAKEST: FIRST}, r"on which the refusal rests"),
        ("the strongest suspected word", {"][-1]  # the weakest": "][0]"}, r"on which the refusal rests"),
        ("an act as harmful", {'"photograph"': '"destroy"'}, r"so harm stays"),
        ("a stand-in for a word", {'"photograph"': '"the"'}, r"makes no sentence"),
        ("the last suspected word", {WEAKEST: "word = suspected[-1]"}, r"on which the refusal rests"),
        ("a word by heart", {WEAKEST: 'word = "a"'}, r"which is not under suspicion"),
        (
            "another suspected word put in",
            {'"calmly" if word.endswith("ly")': '"urgently" if word != "urgently"'},
            r"stands in the request already",
        ),
        ("the request as it is", {BORDERS: "request"}, r"says the same as the request"),
        ("the word left out", {BORDERS: 're.sub(rf"\\b{word} ?", "", request)'}, r"leave out and add none"),
        ("replace without borders", {BORDERS: "request.replace(word, other)"}, r"one word only"),
        (
            "the list of suspects changed",
            {WEAKEST: "suspected.remove(ranking[0][0])\n    word = suspected[0]"},
            r"changed a list",
        ),
        (
            "tried on the model",
            {WEAKEST: WEAKEST + "\n    suspect.model(suspect.chat(request).input_ids)"},
            r"runs the model",
        ),
    ],
}

RIGHT = {
    "attribute": [
        (
            "the last row unembedded by oneself, in inference mode",
            {
                "@torch.no_grad()": "@torch.inference_mode()",
                "lm.model(ids).logits[:, -1]": "lm.model.lm_head(lm.model.model(ids).last_hidden_state[:, -1])",
            },
        ),
        (
            "loops, one pass a token",
            """
def refusal_score(lm, ids, contrast):
    with torch.no_grad():
        return torch.stack([lm.model(row[None]).logits[0, -1, list(contrast)] @ torch.tensor([1.0, -1.0]).double() for row in ids])


def attribute(lm, prompt, contrast, stand_ins):
    base = refusal_score(lm, prompt.input_ids, contrast).item()
    n = prompt.user.stop - prompt.user.start
    table = torch.zeros(len(stand_ins), n)
    for row, stand_in in enumerate(stand_ins):
        for column in range(n):
            x = prompt.input_ids.clone()
            x[0, prompt.user.start + column] = stand_in
            table[row, column] = base - refusal_score(lm, x, contrast).item()
    return table
""",
        ),
        (
            "one batch for everything, log-probabilities, single precision",
            """
@torch.no_grad()
def refusal_score(lm, ids, contrast):
    log_p = lm.model(input_ids=ids, logits_to_keep=1).logits[:, 0].float().log_softmax(-1)
    return log_p[:, contrast[0]].sub(log_p[:, contrast[1]])


def attribute(lm, prompt, contrast, stand_ins):
    places = torch.arange(len(prompt))[prompt.user]
    grid = prompt.input_ids.expand(len(stand_ins), len(places), -1).clone()
    where = torch.nn.functional.one_hot(places, len(prompt)).bool()
    grid = torch.where(where, torch.tensor(stand_ins)[:, None, None], grid)
    both = torch.cat([prompt.input_ids, grid.flatten(0, 1)])
    found = refusal_score(lm, both, contrast)
    return (found[0] - found[1:]).reshape(len(stand_ins), -1)
""",
        ),
        (
            "lists of numbers",
            """
@torch.no_grad()
def refusal_score(model, tokens, pair):
    z = model.model(tokens).logits
    return (z[..., pair[0]] - z[..., pair[1]])[:, -1]


def attribute(model, question, pair, fillers):
    def without(i, filler):
        ids = question.input_ids[0].tolist()
        ids[i] = filler
        return torch.tensor([ids])

    whole = float(refusal_score(model, question.input_ids, pair))
    typed = range(question.user.start, question.user.stop)
    return [[whole - float(refusal_score(model, without(i, f), pair)) for i in typed] for f in fillers]
""",
        ),
    ],
    "strongest": [
        (
            "one pass a stand-in, numpy",
            """
import numpy as np


def strongest(lm, prompt, words, contrast, stand_ins):
    base = float(refusal_score(lm, prompt.input_ids, contrast))
    means = []
    for where in words.values():
        drops = []
        for r in stand_ins:
            x = prompt.input_ids.clone()
            x[0, where] = r
            drops.append(base - float(refusal_score(lm, x, contrast)))
        means.append(np.mean(drops))
    names = list(words)
    return [(names[i], means[i]) for i in np.argsort(means)[::-1]]
""",
        ),
        (
            "one batch",
            """
def strongest(lm, prompt, words, contrast, stand_ins):
    variants = prompt.input_ids.repeat(len(words) * len(stand_ins) + 1, 1)
    row = 1
    for tokens in words.values():
        for stand_in in stand_ins:
            variants[row, list(range(tokens.start, tokens.stop))] = stand_in
            row += 1
    scores = refusal_score(lm, variants, contrast)
    mean = scores[0] - scores[1:].view(len(words), -1).mean(1)
    pairs = zip(words, mean.tolist())
    return [list(pair) for pair in sorted(pairs, key=lambda pair: -pair[1])]
""",
        ),
    ],
    "flip": [
        ("other words", {'"calmly"': '"carefully"', '"photograph"': '"multiply"'}),
        (
            "by position, other words",
            """
def flip_edit(request, ranking):
    top, score = max(ranking, key=lambda pair: pair[1])
    pieces = re.split(r"(\\w+)", request)
    place = pieces.index(top)
    pieces[place] = "gently" if top[-2:] == "ly" else "clean"
    return "".join(pieces)
""",
        ),
        (
            "word by word",
            """
def flip_edit(text, ranked):
    (cause, _), *others = ranked
    swap = {"secretly": "openly", "urgently": "slowly", "quietly": "loudly"}
    words = text.split(" ")
    for i, word in enumerate(words):
        bare = word.strip(".,?!")
        if bare == cause:
            words[i] = word.replace(bare, swap.get(cause, "draw"))
    return " ".join(words)
""",
        ),
    ],
    "stay": [
        ("other words", {'"calmly"': '"carefully"', '"photograph"': '"multiply"'}),
        (
            "the strongest of the others",
            """
def stay_edit(request, ranking, suspected):
    scores = dict(ranking)
    others = [word for word in suspected if word != ranking[0][0]]
    word = max(others, key=scores.get)
    return re.sub(r"\\b" + word + r"\\b", "slowly" if word.endswith("ly") else "watch", request)
""",
        ),
        (
            "an adverb if there is one",
            """
def stay_edit(request, ranking, suspected):
    top = ranking[0][0]
    for word in sorted(suspected, reverse=True):
        if word != top:
            new = "calmly" if word.endswith("ly") else "visit"
            pieces = re.findall(r"\\w+|\\W+", request)
            return "".join(new if piece == word else piece for piece in pieces)
""",
        ),
    ],
}
