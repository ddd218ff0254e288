"""Answers to the exercise on probing."""

PART = "[*lm.model.model.layers, lm.model.model.norm][layer]"
RUN = "lm.model(ids, attention_mask=mask)"
LAST = "last = (mask * torch.arange(ids.shape[1])).argmax(dim=1)"
READ = "return kept[0][torch.arange(len(ids)), last]"
DEAL = "return (np.random.default_rng(seed).permutation(len(names)) % n_folds)[number]"
NAMES = "names, number = np.unique(groups, return_inverse=True)"
TRAIN = "train = fold != k"
STATS = "mean, spread = x[train].mean(axis=0), x[train].std(axis=0)"
SCALE = "z = (x - mean) / np.where(np.ptp(x[train], axis=0) > 0, spread, 1)"
UNIQUE = "_, first, number = np.unique(groups, return_index=True, return_inverse=True)"
PREDICT = "predicted[~train] = fit(z[train], y[train]).predict(z[~train])"
SHUFFLE = "return np.random.default_rng(seed).permutation(y[first])[number]"
RIGHTS = "right = [(held_out(x, task, fold, fit) == task).mean() for task in [y, *controls]]"
LEFT = "return right[0], right[0] - np.mean(right[1:])"
SPAN = "span = torch.linalg.pinv(directions) @ directions"
HOOK = "lambda module, args: (args[0] - args[0] @ span, *args[1:])"
LOST = "return before - score(lm, ids, contrast)"

HIDDEN = """
@torch.no_grad()
def last_states(lm, ids, mask, layer):
    hidden = lm.model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    last = (mask * torch.arange(ids.shape[1])).argmax(dim=1)
    return hidden[INDEX][torch.arange(len(ids)), last]
"""
WRONG = {
    "last": [
        ("the last column", {READ: "return kept[0][:, -1]"}, r"on the right.*you read the filling"),
        ("the length, on the left too", {LAST: "last = mask.sum(dim=1) - 1"}, r"on the left.*(you read)"),
        ("the first real token", {LAST: "last = mask.argmax(dim=1)"}, r"you read ·<s>"),
        (
            "one before the last",
            {READ: "return kept[0][torch.arange(len(ids)), last - 1]"},
            r"ends with ·thief: you read",
        ),
        ("the embedding counted", HIDDEN.replace("INDEX", "layer + 1"), r"one layer too late"),
        ("one layer too early", HIDDEN.replace("INDEX", "layer - 1"), r"one place too early"),
        ("hidden states, normed at the end", HIDDEN.replace("INDEX", "layer"), r"before the final norm"),
        (
            "what a layer gives out",
            {
                PART: "lm.model.model.layers[layer]",
                "register_forward_pre_hook(lambda module, args: kept.append(args[0]))": "register_forward_hook(lambda module, args, out: kept.append(out[0] if isinstance(out, tuple) else out))",
            },
            r"one layer too late",
        ),
        (
            "behind the layer's norm",
            {PART: "[*(one.self_attn.q_proj for one in lm.model.model.layers), lm.model.lm_head][layer]"},
            r"normed or mixed",
        ),
        ("no mask for the model", {RUN: "lm.model(ids)"}, r"real tokens look at it"),
        (
            "a mean over real tokens",
            {READ: "return (kept[0] * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)"},
            r"mean of several tokens",
        ),
        ("every row at every last", {READ: "return kept[0][:, last]"}, r"index rows and positions together"),
        ("all tokens", {READ: "return kept[0]"}, r"its last real token"),
        ("one position for all", {READ: "return kept[0][:, last.max()]"}, r"you read the filling"),
        ("the longest prompt's for all", {READ: "return kept[0][last.argmax(), last]"}, r"prompt 0 ends with"),
        ("hook left behind", {"        handle.remove()": "        pass"}, r"left a hook"),
        (
            "the mask changed",
            {RUN: "lm.model(ids, attention_mask=mask.mul_(mask))\n        mask[:, 0] = 0"},
            r"changed its argument",
        ),
    ],
    "folds": [
        (
            "every label yes",
            {PREDICT: "predicted[~train] = fit(z[train], y[train] | True).predict(z[~train])"},
            r"not those of its texts",
        ),
        (
            "a set's order",
            {NAMES: "names = list(set(groups))\n    number = [names.index(g) for g in groups]"},
            r"sort the groups first",
        ),
        (
            "texts dealt out",
            {DEAL: "return np.random.default_rng(seed).permutation(len(groups)) % n_folds"},
            r"deal out groups, not texts",
        ),
        (
            "a toss for each group",
            {DEAL: "return np.random.default_rng(seed).integers(n_folds, size=len(names))[number]"},
            r"2, 3, 3, 3 in some order",
        ),
        (
            "even numbers of texts",
            {
                DEAL: "ends = np.cumsum(np.bincount(number)[np.random.default_rng(seed).permutation(len(names))])\n"
                "    order = np.random.default_rng(seed).permutation(len(names))\n"
                "    return ((ends - 1) * n_folds // len(groups))[np.argsort(order)][number]"
            },
            r"2, 3, 3, 3 in some order|deal out groups",
        ),
        (
            "numbered as they come",
            {NAMES: "names = list(dict.fromkeys(groups))\n    number = np.array([names.index(g) for g in groups])"},
            r"in another order",
        ),
        ("no seed", {"default_rng(seed)": "default_rng()"}, r"Two calls with one seed differ"),
        ("one seed for all", {"default_rng(seed)": "default_rng(0)"}, r"the seed must decide"),
        (
            "turned, not shuffled",
            {DEAL: "return ((np.arange(len(names)) + seed) % n_folds)[number]"},
            r"shuffle the groups",
        ),
        (
            "the folds' names shuffled",
            {DEAL: "return np.random.default_rng(seed).permutation(n_folds)[number % n_folds]"},
            r"shuffle the groups",
        ),
        (
            "rest left out",
            {
                DEAL: "fold = np.random.default_rng(seed).permutation(len(names))\n    return np.where(fold < len(names) // n_folds * n_folds, fold % n_folds, -1)[number]"
            },
            r"every text has its fold",
        ),
        ("from 1", {"% n_folds)[number]": "% n_folds + 1)[number]"}, r"counted from 0"),
        ("a fold for each group", {"% n_folds)[number]": "% n_folds)"}, r"a fold for each text"),
        ("trained on all", {PREDICT: "predicted[~train] = fit(z, y).predict(z[~train])"}, r"leave one of 2, 5, 7 out"),
        ("trained on the fold, asked the rest", {TRAIN: "train = fold == k"}, r"trained on one fold"),
        (
            "asked about what it was trained on",
            {PREDICT: "predicted[train] = fit(z[train], y[train]).predict(z[train])"},
            r"only asked about texts that it was trained on",
        ),
        ("scaler over all texts", {STATS: "mean, spread = x.mean(axis=0), x.std(axis=0)"}, r"the scaler leaks"),
        ("mean over all texts", {STATS: "mean, spread = x.mean(axis=0), x[train].std(axis=0)"}, r"the scaler leaks"),
        (
            "each side scaled by its own",
            {
                PREDICT: "w = (x[~train] - x[~train].mean(axis=0)) / (x[~train].std(axis=0) + 1e-9)\n        predicted[~train] = fit(z[train], y[train]).predict(w)"
            },
            r"their z differ",
        ),
        (
            "held-out texts unscaled",
            {PREDICT: "predicted[~train] = fit(z[train], y[train]).predict(x[~train])"},
            r"their z differ",
        ),
        ("no scaler", {SCALE: "z = x"}, r"x unscaled"),
        ("centred only", {SCALE: "z = x - mean"}, r"not 1: divide"),
        ("stretched only", {SCALE: "z = x / np.where(spread > 0, spread, 1)"}, r"subtract each dimension's mean"),
        ("divided by the variance", {SCALE: "z = (x - mean) / np.where(spread > 0, spread**2, 1)"}, r"not 1: divide"),
        (
            "one scale for all dimensions",
            {STATS: "mean, spread = x[train].mean(), x[train].std()"},
            r"subtract each dimension's mean",
        ),
        ("divided by 0", {SCALE: "z = (x - mean) / spread"}, r"the spread is 0"),
        ("a little added to the spread", {SCALE: "z = (x - mean) / (spread + 1e-8)"}, r"\(3 - 2\) / 1"),
        (
            "predictions strung together",
            {
                "predicted = np.zeros(len(y), dtype=bool)": "predicted = []",
                PREDICT: "predicted.extend(fit(z[train], y[train]).predict(z[~train]))",
            },
            r"another text's place",
        ),
        ("an accuracy", {"    return predicted\n": "    return (predicted == y).mean()\n"}, r"no accuracy"),
        (
            "folds counted from 0",
            {"for k in np.unique(fold)": "for k in range(len(np.unique(fold)))"},
            r"leave one of 2, 5, 7 out",
        ),
        ("x changed", {STATS: STATS + "\n        x -= mean"}, r"changed its argument"),
    ],
    "control": [
        (
            "labels of the first texts",
            {SHUFFLE: "return np.random.default_rng(seed).permutation(y[: len(first)])[number]"},
            r"Four of twelve acts say yes",
        ),
        (
            "acts in the order they come",
            {
                UNIQUE: "names = list(dict.fromkeys(groups))\n    first, number = [groups.index(n) for n in names], [names.index(g) for g in groups]"
            },
            r"sort the acts first",
        ),
        (
            "a set's order",
            {
                UNIQUE: "names = list(set(groups))\n    first, number = [groups.index(n) for n in names], [names.index(g) for g in groups]"
            },
            r"sort the acts first",
        ),
        (
            "a label for each text",
            {SHUFFLE: "return np.random.default_rng(seed).permutation(y)"},
            r"shuffle among the acts",
        ),
        (
            "a coin for each group",
            {SHUFFLE: "return (np.random.default_rng(seed).random(len(first)) < 0.5)[number]"},
            r"shuffle the real labels",
        ),
        (
            "half of the groups",
            {SHUFFLE: "return (np.random.default_rng(seed).permutation(len(first)) % 2 == 0)[number]"},
            r"in yours 6 to 6",
        ),
        ("turned round", {SHUFFLE: "return ~y"}, r"in yours 8 to 8"),
        ("the real labels", {SHUFFLE: "return y"}, r"the seed must decide"),
        ("no seed", {"default_rng(seed)": "default_rng()"}, r"Two calls with one seed"),
        ("one seed for all", {"default_rng(seed)": "default_rng(7)"}, r"the seed must decide"),
        ("turned in a circle", {SHUFFLE: "return np.roll(y[first], seed)[number]"}, r"12 different labelings"),
        (
            "the yes only among the no",
            {
                SHUFFLE: "no = np.flatnonzero(~y[first])\n    new = np.zeros(len(first), dtype=bool)\n    new[np.random.default_rng(seed).permutation(no)[: y[first].sum()]] = True\n    return new[number]"
            },
            r"must not depend on it",
        ),
        (
            "a label for each group",
            {SHUFFLE: "return np.random.default_rng(seed).permutation(y[first])"},
            r"a label for each text",
        ),
        (
            "asked about the real labels",
            {RIGHTS: "right = [(held_out(x, task, fold, fit) == y).mean() for task in [y, *controls]]"},
            r"not the real ones",
        ),
        (
            "trained on the real labels",
            {RIGHTS: "right = [(held_out(x, y, fold, fit) == task).mean() for task in [y, *controls]]"},
            r"train it on each control's labels",
        ),
        (
            "training texts",
            {RIGHTS: "right = [(fit(x, task).predict(x) == task).mean() for task in [y, *controls]]"},
            r"not the training texts",
        ),
        (
            "control on training texts",
            {LEFT: "return right[0], right[0] - np.mean([(fit(x, c).predict(x) == c).mean() for c in controls])"},
            r"hold out in controls too",
        ),
        ("sum of the controls", {"np.mean(right[1:])": "np.sum(right[1:])"}, r"no sum"),
        (
            "the mean control in the place of the selectivity",
            {"right[0] - np.mean(right[1:])": "np.mean(right[1:])"},
            r"accuracy minus the mean over all controls",
        ),
        ("the best control", {"np.mean(right[1:])": "np.max(right[1:])"}, r"the mean over all controls"),
        ("the first control", {"np.mean(right[1:])": "right[1]"}, r"the mean over all controls"),
        ("the last control", {"np.mean(right[1:])": "right[-1]"}, r"the mean over all controls"),
        ("the real one among the controls", {"np.mean(right[1:])": "np.mean(right)"}, r"accuracy minus mean control"),
        ("control minus accuracy", {LEFT: "return right[0], np.mean(right[1:]) - right[0]"}, r"what minus what"),
        ("a quotient", {LEFT: "return right[0], right[0] / np.mean(right[1:])"}, r"accuracy minus mean control"),
        ("selectivity first", {LEFT: "return right[0] - np.mean(right[1:]), right[0]"}, r"expected it first"),
        ("selectivity alone", {LEFT: "return right[0] - np.mean(right[1:])"}, r"the accuracy too"),
        ("other folds", {RIGHTS: "fold = np.arange(len(y)) // 12\n    " + RIGHTS}, r"keep the folds as given"),
    ],
    "remove": [
        ("lengths ignored", {SPAN: "span = directions.T @ directions"}, r"length 3 there is -8\.00 times.*unit vector"),
        (
            "divided by the length once",
            {SPAN: "span = directions.T @ (directions / directions.norm(dim=1, keepdim=True))"},
            r"unit vector",
        ),
        (
            "unit vectors, one after the other",
            {
                SPAN: "span = torch.eye(lm.d_model).double()\n    for one in directions:\n        u = one / one.norm()\n        span = span - torch.outer(span @ u, u)\n    span = torch.eye(lm.d_model) - span"
            },
            r"one after the other",
        ),
        (
            "all at once, not at right angles",
            {SPAN: "unit = directions / directions.norm(dim=1, keepdim=True)\n    span = unit.T @ unit"},
            r"one after the other",
        ),
        ("their mean", {SPAN: "u = directions.mean(dim=0)\n    span = torch.outer(u, u) / (u @ u)"}, r"is left"),
        (
            "qr, blind to repetitions",
            {SPAN: "q = torch.linalg.qr(directions.T).Q\n    span = q @ q.T"},
            r"a direction that repeats others",
        ),
        ("added", {"- args[0] @ span": "+ args[0] @ span"}, r"don't add"),
        ("twice", {"- args[0] @ span": "- 2 * args[0] @ span"}, r"subtracted twice"),
        ("the part alone is kept", {"args[0] - args[0] @ span": "args[0] @ span"}, r"the part along it was kept"),
        (
            "the last position only",
            {
                HOOK: "lambda module, args: (torch.cat([args[0][:, :-1], args[0][:, -1:] - args[0][:, -1:] @ span], 1), *args[1:])"
            },
            r"project at every token",
        ),
        (
            "not at <s>",
            {
                HOOK: "lambda module, args: (torch.cat([args[0][:, :1], args[0][:, 1:] - args[0][:, 1:] @ span], 1), *args[1:])"
            },
            r"At tokens \[0\]",
        ),
        ("the layer before", {"lm.model.model.norm][layer]": "lm.model.model.norm][layer - 1]"}, r"at layer 1 already"),
        (
            "what the layer gives out",
            {
                "[*lm.model.model.layers, lm.model.model.norm][layer]": "[*lm.model.model.layers[1:], lm.model.model.norm, lm.model.model.norm][layer]"
            },
            r"stays as it is there",
        ),
        (
            "what its norm reads",
            {
                "[*lm.model.model.layers, lm.model.model.norm]": "[*(one.input_layernorm for one in lm.model.model.layers), lm.model.model.norm]"
            },
            r"a copy that the stream does not get",
        ),
        (
            "at all layers from there on",
            {
                "    handle = part": "    also = [one.register_forward_pre_hook(lambda module, args: (args[0] - args[0] @ span, *args[1:])) for one in lm.model.model.layers[layer + 1 :]]\n    handle = part",
                "        handle.remove()": "        handle.remove()\n        for one in also:\n            one.remove()",
            },
            r"taken out again",
        ),
        ("hook that returns nothing", {HOOK: "lambda module, args: None"}, r"never run with its stream changed"),
        ("hook left behind", {"        handle.remove()": "        pass"}, r"left a hook"),
        (
            "before computed under the hook",
            {
                "    before = score(lm, ids, contrast)\n": "",
                "return before - score": "return score(lm, ids, contrast) - score",
            },
            r"got \+0\.00",
        ),
        (
            "both scores with the hook",
            {"    before = score(lm, ids, contrast)\n": "", LOST: "before = score(lm, ids, contrast)\n        " + LOST},
            r"without your hook minus the score with it",
        ),
        (
            "after minus before",
            {LOST: "return score(lm, ids, contrast) - before"},
            r"without your hook minus the score with it",
        ),
        ("what is left", {LOST: "return score(lm, ids, contrast)"}, r"without your hook minus the score with it"),
        ("as a share", {LOST: "return 1 - score(lm, ids, contrast) / before"}, r"expected a loss of 8"),
        ("mean over prompts", {LOST: "return (before - score(lm, ids, contrast)).mean()"}, r"keep the prompts apart"),
        (
            "the directions changed",
            {
                SPAN: "directions /= directions.norm(dim=1, keepdim=True)\n    span = torch.linalg.pinv(directions) @ directions"
            },
            r"changed its argument",
        ),
        (
            "the weights changed",
            {
                "    before = score(lm, ids, contrast)\n": "    before = score(lm, ids, contrast)\n    lm.model.model.norm.weight.mul_(1.01)\n"
            },
            r"changed the model's weights",
        ),
    ],
}

RIGHT = {
    "last": [
        (
            "the embedding alone for layer 0",
            """
@torch.no_grad()
def last_states(lm, ids, mask, layer):
    rows, last = torch.arange(len(ids)), (mask * torch.arange(ids.shape[1])).argmax(dim=1)
    if layer == 0:
        return lm.model.model.embed_tokens(ids[rows, last])
    kept = []
    hook = lm.model.model.layers[layer - 1].register_forward_hook(lambda module, args, out: kept.append(out))
    try:
        lm.model.model(ids, attention_mask=mask)
    finally:
        hook.remove()
    return kept[0][rows, last]
""",
        ),
        (
            "one prompt at a time, no filling",
            """
from course_utils.hooks import record


def last_states(lm, ids, mask, layer):
    found = []
    for row, real in zip(ids, mask):
        with torch.no_grad(), record(lm, [("residual", layer)]) as seen:
            lm.model(row[real == 1][None])
        found.append(seen["residual", layer][0, -1])
    return torch.stack(found)
""",
        ),
        (
            "the mask turned round, numpy",
            {
                LAST: "last = ids.shape[1] - 1 - mask.flip(1).argmax(dim=1)",
                READ: "return kept[0].numpy()[range(len(ids)), last.numpy()]",
            },
        ),
        (
            "hidden states, and a hook for the last",
            """
@torch.no_grad()
def last_states(lm, ids, mask, layer):
    seen = {}
    hook = lm.model.model.norm.register_forward_pre_hook(lambda m, a: seen.update(end=a[0]))
    try:
        out = lm.model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    finally:
        hook.remove()
    streams = [*out[:-1], seen["end"]]
    return [streams[layer][b, int(mask[b].nonzero().max())] for b in range(len(ids))]
""",
        ),
    ],
    "folds": [
        (
            "groups found again by NumPy's names; labels made true or false",
            """
def group_folds(groups, n_folds, seed):
    names = np.unique(groups)
    np.random.default_rng(seed).shuffle(names)
    place = {name: i % n_folds for i, name in enumerate(names)}
    return [place[group] for group in groups]

def held_out(x, y, fold, fit):
    y = np.asarray(y, dtype=bool)
    predicted = np.zeros_like(y)
    for k in set(fold.tolist()):
        train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        mean, spread = x[train].mean(axis=0), x[train].std(axis=0)
        spread[np.isclose(spread, 0)] = 1
        predicted[test] = fit((x[train] - mean) / spread, y[train]).predict((x[test] - mean) / spread)
    return predicted
""",
        ),
        (
            "scikit-learn's scaler, a list of groups dealt like cards",
            """
from sklearn.preprocessing import StandardScaler

def group_folds(groups, n_folds, seed):
    deck = sorted(set(groups))
    np.random.default_rng(seed).shuffle(deck)
    where = {g: i % n_folds for i, g in enumerate(deck)}
    return [where[g] for g in groups]

def held_out(x, y, fold, fit):
    answer = np.empty(len(y), dtype=bool)
    for k in set(fold.tolist()):
        own = np.flatnonzero(fold == k)
        rest = np.flatnonzero(fold != k)
        scaler = StandardScaler().fit(x[rest])
        answer[own] = fit(scaler.transform(x[rest]), y[rest]).predict(scaler.transform(x[own]))
    return answer
""",
        ),
        (
            "random, text by text, float32",
            """
import random

def group_folds(groups, n_folds, seed):
    names = sorted(set(groups))
    random.Random(seed).shuffle(names)
    chunks = np.array_split(names, n_folds)
    return np.array([next(k for k in range(n_folds) if g in chunks[k]) for g in groups])

def held_out(x, y, fold, fit):
    x = x.astype("float32")
    out = []
    for i in range(len(x)):
        train = fold != fold[i]
        m, s = x[train].mean(0), x[train].std(0)
        s[s == 0] = 1
        out.append(bool(fit((x[train] - m) / s, y[train]).predict((x[i : i + 1] - m) / s)[0]))
    return out
""",
        ),
        ("spread with n - 1", {"x[train].std(axis=0)": "x[train].std(axis=0, ddof=1)"}),
    ],
    "control": [
        (
            "acts found again by NumPy's names",
            """
def control_labels(y, groups, seed):
    names, first = np.unique(groups, return_index=True)
    new = dict(zip(names, np.random.default_rng(seed).permutation(y[first])))
    return np.array([new[group] for group in groups])

def selectivity(x, y, controls, fold, fit):
    accuracy = lambda labels: (held_out(x, labels, fold, fit) == labels).mean()
    return accuracy(y), accuracy(y) - np.mean([accuracy(labels) for labels in controls])
""",
        ),
        (
            "dictionaries and loops",
            """
import random

def control_labels(y, groups, seed):
    label = dict(zip(groups, y))
    names = sorted(label)
    values = [label[name] for name in names]
    random.Random(seed).shuffle(values)
    new = dict(zip(names, values))
    return [new[g] for g in groups]

def selectivity(x, y, controls, fold, fit):
    def accuracy(labels):
        return float(np.mean(np.asarray(held_out(x, labels, fold, fit)) == labels))

    total = 0.0
    for labels in controls:
        total += accuracy(labels)
    return np.array([accuracy(y), accuracy(y) - total / len(controls)])
""",
        ),
        (
            "yes drawn among the groups",
            {
                SHUFFLE: "new = np.zeros(len(first), dtype=bool)\n    new[np.random.default_rng(seed).choice(len(first), y[first].sum(), replace=False)] = True\n    return new[number]"
            },
        ),
    ],
    "remove": [
        (
            "singular vectors",
            {
                SPAN: "_, s, v = torch.linalg.svd(directions, full_matrices=False)\n    v = v[s > 1e-9 * s[0]]\n    span = v.T @ v"
            },
        ),
        (
            "Gram-Schmidt, and nested project_out",
            """
from contextlib import ExitStack

from course_utils.directions import project_out

def lost_without(lm, ids, directions, layer, contrast):
    basis = []
    for one in directions:
        rest = one.clone()
        for u in basis:
            rest = rest - (rest @ u) * u
        if rest.norm() > 1e-8 * one.norm():
            basis.append(rest / rest.norm())
    whole = score(lm, ids, contrast)
    with ExitStack() as stack:
        for u in basis:
            stack.enter_context(project_out(lm, u, [layer]))
        return whole - score(lm, ids, contrast)
""",
        ),
        (
            "one prompt at a time",
            """
from course_utils.hooks import edit

def lost_without(lm, ids, directions, layer, contrast):
    span = torch.linalg.pinv(directions) @ directions
    found = []
    for row in ids:
        with edit(lm, {("residual", layer): lambda x: x - x @ span.T}):
            after = score(lm, row[None], contrast)
        found.append(score(lm, row[None], contrast) - after)
    return torch.cat(found).float()
""",
        ),
    ],
}
