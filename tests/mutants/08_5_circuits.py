"""Answers to the exercise on circuits."""

STREAMS = "streams = torch.stack([seen[site][0, position] for site in sites])  # [layer + 1, d_model]"
READ = "return lm.model.lm_head(lm.model.model.norm(streams))[:, token]"
STATES = "    states = lm.model(ids, output_hidden_states=True).hidden_states\n"

MIXED = "mixed = seen[site][0, position].reshape(lm.n_heads, -1)  # [head, d_head]"
W_O = "w_o = layer.self_attn.o_proj.weight.reshape(len(end), lm.n_heads, -1)  # [d_model, head, d_head]"
ADDED = 'parts.append(torch.einsum("hd,mhd,m->h", mixed, w_o, towards))'
SCALE = "scale = (end.square().mean() + norm.variance_epsilon).rsqrt()"
TOWARDS = "towards = scale * norm.weight * (rows[contrast[0]] - rows[contrast[1]])"

SITE = '{("residual", layer): put}'
PUT = "changed[0, position] = streams[layer, position]"
CONTRAST = "return last[contrast[0]] - last[contrast[1]]"
SHARES = "return (torch.tensor(rows, dtype=low.dtype) - low) / (high - low)"

OWN = "own = slice(head * size, (head + 1) * size)"
GIVEN = 'mixed[0, -1, own] = seen["heads", layer][0, -1, own]'
SHARE = "return (score(corrupted) - low) / (high - low)"
WHILE = "while rest and moved(lm, clean, corrupted, team, contrast) < share:"
BEST = "best = max(rest, key=lambda head: moved(lm, clean, corrupted, [*team, head], contrast))"

MOVED = """
@torch.no_grad()
def moved(lm, clean, corrupted, heads, contrast):
    def score(ids):
        last = lm.model(ids).logits[0, -1]
        return last[contrast[0]] - last[contrast[1]]

    size = lm.model.config.hidden_size // lm.n_heads
    low = score(corrupted)
    with record(lm, [("heads", layer) for layer in range(lm.n_layers)]) as seen:
        high = score(clean)
"""
FIND = """

def find_team(lm, clean, corrupted, contrast, *, candidates, share):
    team, rest = [], list(candidates)
    while rest and moved(lm, clean, corrupted, team, contrast) < share:
        best = max(rest, key=lambda head: moved(lm, clean, corrupted, [*team, head], contrast))
        team.append(best)
        rest.remove(best)
    return team
"""

WRONG = {
    "lens": [
        ("no norm", {READ: "return lm.model.lm_head(streams)[:, token]"}, r"2\.00 times: norm every stream first"),
        (
            "transformers' hidden states, the last one normed twice",
            {STREAMS: STATES.strip() + "\n    streams = torch.stack([state[0, position] for state in states])"},
            r"norm it once",
        ),
        (
            "the scale of the end for all",
            {
                "lm.model.model.norm(streams)": "lm.model.model.norm.weight * streams * (streams[-1].square().mean() + 1e-6).rsqrt()"
            },
            r"read that stream alone, normed by its own size|norm every stream",
        ),
        ("always the same prompt", {"lm.model(ids)": "lm.model(clean)"}, r"run the model on `ids`"),
        (
            "no gain",
            {"lm.model.model.norm(streams)": "streams * (streams.square().mean(-1, keepdim=True) + 1e-6).rsqrt()"},
            r"1\.00 times: it is the final norm, with its gain",
        ),
        (
            "a layer norm",
            {
                "lm.model.model.norm(streams)": "torch.nn.functional.layer_norm(streams, streams.shape[-1:], lm.model.model.norm.weight)"
            },
            r"as the model's final norm does",
        ),
        (
            "the norm of the next layer",
            {
                "lm.model.model.norm(streams)": "torch.stack([n(s) for n, s in zip([*[l.input_layernorm for l in lm.model.model.layers], lm.model.model.norm], streams)])"
            },
            r"it is the final norm",
        ),
        (
            "the embedding left out",
            {"range(lm.n_layers + 1)": "range(1, lm.n_layers + 1)"},
            r"the one before layer 0",
        ),
        ("the end left out", {"range(lm.n_layers + 1)": "range(lm.n_layers)"}, r"the one after the last layer"),
        (
            "off by one layer, the end twice",
            {STREAMS: "streams = torch.stack([seen[site][0, position] for site in [*sites[1:], sites[-1]]])"},
            r"depends on those at|norm every stream|whole stream that enters layer l",
        ),
        (
            "off by one layer, the embedding twice",
            {STREAMS: "streams = torch.stack([seen[site][0, position] for site in [sites[0], *sites[:-1]]])"},
            r"entry l is the whole stream that enters layer l",
        ),
        (
            "what each layer wrote, not the stream",
            {STREAMS: STREAMS + "\n    streams = torch.cat([streams[:1], streams.diff(dim=0)])"},
            r"whole stream that enters layer l",
        ),
        (
            "what attention gives out",
            {
                '[("residual", layer) for layer in range(lm.n_layers + 1)]': '[("residual", 0), *[("attention", layer) for layer in range(lm.n_layers)]]'
            },
            r"whole stream that enters layer l",
        ),
        ("probabilities", {"(streams))[:, token]": "(streams)).softmax(dim=-1)[:, token]"}, r"without a softmax"),
        (
            "log-probabilities",
            {"(streams))[:, token]": "(streams)).log_softmax(dim=-1)[:, token]"},
            r"without a softmax",
        ),
        ("the last position", {"[0, position]": "[0, -1]"}, r"token at 4 alone; .* those at \[6\]"),
        ("the position before", {"[0, position]": "[0, position - 1]"}, r"those at \[3\]"),
        ("the mean over positions", {"[0, position]": "[0].mean(dim=0)"}, r"those at \[0, 1, 2"),
        ("the likeliest token", {"[:, token]": ".amax(dim=-1)"}, r"that token, and no other"),
        ("the token after", {"[:, token]": "[:, token + 1]"}, r"that token, and no other"),
        (
            "minus the mean of all logits",
            {
                READ: "logits = lm.model.lm_head(lm.model.model.norm(streams))\n    return logits[:, token] - logits.mean(dim=-1)"
            },
            r"that token, and no other|without a softmax",
        ),
        ("all logits", {"[:, token]": ""}, r"the logit of one token"),
        (
            "a hook left behind",
            {"    with record": "    lm.model.model.norm.register_forward_hook(lambda *given: None)\n    with record"},
            r"left a hook",
        ),
    ],
    "direct": [
        (
            "interleaved slices",
            {
                "reshape(lm.n_heads, -1)  #": "reshape(-1, lm.n_heads).T  #",
                W_O: "w_o = layer.self_attn.o_proj.weight.reshape(len(end), -1, lm.n_heads).transpose(1, 2)",
            },
            r"neighbouring columns, not rows and not every fourth",
        ),
        (
            "interleaved slices of the input alone",
            {"reshape(lm.n_heads, -1)  #": "reshape(-1, lm.n_heads).T  #"},
            r"parts add up|the heads alone write",
        ),
        (
            "rows of W_O for columns",
            {"o_proj.weight.reshape": "o_proj.weight.T.reshape"},
            r"neighbouring columns, not rows",
        ),
        (
            "each part normed by itself",
            {
                ADDED: 'parts.append((norm(torch.einsum("hd,mhd->hm", mixed, w_o)) @ (rows[contrast[0]] - rows[contrast[1]])))'
            },
            r"grows 1\.00 times: freeze the scale",
        ),
        (
            "normed layer by layer",
            {
                ADDED: 'written = torch.einsum("hd,mhd->hm", mixed, w_o)\n        parts.append(written @ towards / scale * written.sum(0).square().mean().rsqrt())'
            },
            r"one scale for all|divide by the size of the stream at the end",
        ),
        ("no gain", {"scale * norm.weight * ": "scale * "}, r"yours are 1\.00 times as large: the final norm.s gain"),
        ("no scale", {"scale * norm.weight * ": "norm.weight * "}, r"your parts stay: divide by the size"),
        (
            "the size of the stream that enters the layer",
            {
                "*sites, (": '*sites, *[("residual", l) for l in range(lm.n_layers)], (',
                ADDED: 'start = seen["residual", site[1]][0, position]\n        parts.append(torch.einsum("hd,mhd,m->h", mixed, w_o, towards / scale * start.square().mean().rsqrt()))',
            },
            r"your parts stay: divide by the size of the stream at the end",
        ),
        (
            "the last hidden state, already normed, for the stream",
            {
                "        lm.model(ids)\n": "        states = lm.model(ids, output_hidden_states=True).hidden_states\n",
                'end, norm, rows = seen["residual", lm.n_layers][0, position]': "end, norm, rows = states[-1][0, position]",
            },
            r"the size of the stream before that norm",
        ),
        ("the norm for the root of the mean square", {".mean() +": ".sum() +"}, r"your parts add up to"),
        ("variance for mean square", {"end.square().mean()": "end.var()"}, r"root of the mean square"),
        ("one logit", {"(rows[contrast[0]] - rows[contrast[1]])": "rows[contrast[0]]"}, r"every sign must turn"),
        (
            "second minus first",
            {"(rows[contrast[0]] - rows[contrast[1]])": "(rows[contrast[1]] - rows[contrast[0]])"},
            r"first minus second",
        ),
        ("absolute values", {ADDED: ADDED.replace("))", ").abs())")}, r"every sign must turn"),
        (
            "shares of the total",
            {"return torch.stack(parts)": "parts = torch.stack(parts)\n    return parts / parts.sum()"},
            r"every sign must turn",
        ),
        (
            "key/value heads",
            {"reshape(lm.n_heads, -1)": "reshape(2, -1)", "len(end), lm.n_heads, -1": "len(end), 2, -1"},
            r"reads the query heads",
        ),
        ("the last position", {"[0, position]": "[0, -1]"}, r"hangs on tokens \[0, 1, 2, 3, 4, 5, 6\]"),
        (
            "the stream of the last position",
            {'seen["residual", lm.n_layers][0, position]': 'seen["residual", lm.n_layers][0, -1]'},
            r"heads and stream at `position`",
        ),
        ("the position before", {"[0, position]": "[0, position - 1]"}, r"hangs on tokens \[0, 1, 2, 3, 4\]"),
        ("heads summed", {'m->h"': 'm->"'}, r"keep the heads of a layer apart"),
        ("axes exchanged", {"torch.stack(parts)": "torch.stack(parts, dim=1)"}, r"the other way round"),
        (
            "values for what attention mixed",
            {
                MIXED: "cache = lm.model(ids).past_key_values.layers[site[1]].values[0, :, position]\n        mixed = cache.repeat_interleave(2, dim=0)"
            },
            r"your parts add up to|hangs on tokens",
        ),
        (
            "through the layer's own norm",
            {"scale * norm.weight": "scale * lm.model.model.layers[-1].input_layernorm.weight"},
            r"yours are 1\.00 times as large: the final norm.s gain",
        ),
    ],
    "patch": [
        (
            "what comes out of the layer",
            {
                f"with edit(lm, {SITE}):\n        last = lm.model(ids).logits[0, -1]": "hook = lm.model.model.layers[layer].register_forward_hook(lambda m, given, out: put(out))\n    last = lm.model(ids).logits[0, -1]\n    hook.remove()"
            },
            r"layer 2 is the first to get something else",
        ),
        ("the layer before", {SITE: '{("residual", max(0, layer - 1)): put}'}, r"layer 0 is the first"),
        ("attention's output", {SITE: '{("attention", layer): put}'}, r"layer 2 is the first"),
        (
            "the vector of the next layer",
            {PUT: "changed[0, position] = streams[(layer + 1) % len(streams), position]"},
            r"must be `streams\[1, 4\]`",
        ),
        (
            "added, not replaced",
            {PUT: "changed[0, position] += streams[layer, position]"},
            r"replace, and take the vector",
        ),
        (
            "half of each",
            {PUT: "changed[0, position] = (changed[0, position] + streams[layer, position]) / 2"},
            r"replace, and take",
        ),
        (
            "all positions",
            {PUT: "changed[0] = streams[layer, : changed.shape[1]]"},
            r"at position|gets something else at \[",
        ),
        (
            "the position and all after",
            {PUT: "changed[0, position:] = streams[layer, position:]"},
            r"alone; in yours, layer 1 gets something else at \[4, 5, 6\]",
        ),
        ("the last position", {PUT: "changed[0, -1] = streams[layer, -1]"}, r"else at \[6\]"),
        ("nothing returned by the hook's function", {"        return changed\n": ""}, r"nothing was put in"),
        (
            "the recording changed in place",
            {
                PUT: "streams[layer, :position], streams[layer, position + 1 :] = changed[0, :position], changed[0, position + 1 :]\n        changed = streams[layer][None]"
            },
            r"changed its argument in place",
        ),
        (
            "a hook left behind",
            {
                f"with edit(lm, {SITE}):\n        last": "lm.model.model.layers[layer].register_forward_pre_hook(lambda m, given: (put(given[0]), *given[1:]))\n    last"
            },
            r"left a hook",
        ),
        ("second minus first", {CONTRAST: "return last[contrast[1]] - last[contrast[0]]"}, r"first word minus second"),
        ("the first word alone", {CONTRAST: "return last[contrast[0]]"}, r"first word minus second"),
        ("probabilities", {".logits[0, -1]\n": ".logits[0, -1].softmax(dim=-1)\n"}, r"keeps its contrast.*logits"),
        ("read where it was patched", {".logits[0, -1]\n": ".logits[0, position]\n"}, r"at the last position"),
        (
            "map: corrupted into clean",
            {
                "seen[site][0] for": "seen[site][1] for",
                "patched_contrast, lm, corrupted": "patched_contrast, lm, clean",
            },
            r"You patch the clean run; that is the other direction",
        ),
        (
            "map: corrupted into clean, as a share lost",
            {
                "seen[site][0] for": "seen[site][1] for",
                "patched_contrast, lm, corrupted": "patched_contrast, lm, clean",
                SHARES: "return (high - torch.tensor(rows, dtype=low.dtype)) / (high - low)",
            },
            r"You patch the clean run; that is the other direction",
        ),
        (
            "map: clean and corrupted exchanged",
            {
                "torch.cat([clean, corrupted])": "torch.cat([corrupted, clean])",
                "partial(patched_contrast, lm, corrupted": "partial(patched_contrast, lm, clean",
            },
            r"You patch the clean run; that is the other direction",
        ),
        (
            "map: clean into clean",
            {"patched_contrast, lm, corrupted": "patched_contrast, lm, clean"},
            r"Yours is 1 everywhere: put the vectors into the corrupted run",
        ),
        (
            "map: what left the layer",
            {
                "streams = torch.stack([seen[site][0] for site in sites])": "streams = torch.stack([h[0] for h in lm.model(clean, output_hidden_states=True).hidden_states[1:]])"
            },
            r"is not what entered that layer in the clean run",
        ),
        (
            "map: counted from the clean run",
            {SHARES: "return (high - torch.tensor(rows, dtype=low.dtype)) / (high - low)"},
            r"count from the corrupted run's contrast",
        ),
        (
            "map: over the clean contrast",
            {"/ (high - low)": "/ high"},
            r"\(patched - corrupted\) / \(clean - corrupted\)",
        ),
        (
            "map: over the corrupted contrast",
            {"/ (high - low)": "/ low"},
            r"\(patched - corrupted\) / \(clean - corrupted\)",
        ),
        ("map: not normalised", {" / (high - low)": ""}, r"so each of these moves 1, all of the difference"),
        ("map: corrupted not taken off", {"- low) / (": ") / ("}, r"from the corrupted run's contrast on"),
        ("map: sign", {"/ (high - low)": "/ (low - high)"}, r"each of these moves 1.*-1\.0"),
        ("map: absolute values", {SHARES: SHARES + ".abs()"}, r"keep what comes out, sign and all"),
        (
            "map: cut to 0 and 1",
            {
                "(high - low)": "(high - low)",
                SHARES: "return ((torch.tensor(rows, dtype=low.dtype) - low) / (high - low)).clamp(0, 1)",
            },
            r"keep what comes out",
        ),
        (
            "map: over the largest",
            {"/ (high - low)": "/ (torch.tensor(rows, dtype=low.dtype) - low).abs().max()"},
            r"sign and all|moves 1",
        ),
        (
            "map: the corrupted run's own streams",
            {"seen[site][0] for": "seen[site][1] for"},
            r"must come from the other run",
        ),
        (
            "map: streams off by one",
            {"seen[site][0] for site in sites]": "seen[site][0] for site in [*sites[1:], sites[0]]]"},
            r"is not what entered that layer in the clean run",
        ),
        (
            "map: a row too many",
            {"range(lm.n_layers)]\n    return": "range(lm.n_layers)] + [[low] * clean.shape[1]]\n    return"},
            r"none for what follows the last layer",
        ),
        (
            "map: axes exchanged",
            {SHARES: "return ((torch.tensor(rows, dtype=low.dtype) - low) / (high - low)).T"},
            r"the other way round",
        ),
        (
            "map: layers in reverse",
            {"in range(lm.n_layers)]\n    return": "in reversed(range(lm.n_layers))]\n    return"},
            r"one layer and one position at a time",
        ),
    ],
    "team": [
        (
            "all positions",
            {GIVEN: 'mixed[0, :, own] = seen["heads", layer][0, :, own]'},
            r"at positions \[4, 5, 6\]: the last one, 6, alone",
        ),
        ("the word's position", {GIVEN: 'mixed[0, 4, own] = seen["heads", layer][0, 4, own]'}, r"at positions \[4\]"),
        ("interleaved heads", {OWN: "own = slice(head, None, lm.n_heads)"}, r"d_head neighbouring entries"),
        (
            "heads shared as values are",
            {OWN: "head //= 2\n            own = slice(2 * head * size, (2 * head + 2) * size)"},
            r"you change heads \[2, 3\]",
        ),
        ("the whole layer", {OWN: "own = slice(None)"}, r"you change heads \[0, 1, 2, 3\]"),
        (
            "zero for what the clean run gave",
            {GIVEN: "mixed[0, -1, own] = 0"},
            r"is not what the head gave in the clean run",
        ),
        (
            "one head a layer: the second overwrites the first",
            MOVED
            + """
    def put(layer, head, mixed):
        mixed = mixed.clone()
        own = slice(head * size, (head + 1) * size)
        mixed[0, -1, own] = seen["heads", layer][0, -1, own]
        return mixed

    with edit(lm, {("heads", layer): partial(put, layer, head) for layer, head in heads}):
        return (score(corrupted) - low) / (high - low)
"""
            + FIND,
            r"also where two are in the same layer",
        ),
        (
            "late binding: all hooks mean the last head",
            MOVED
            + """
    edits = {}
    for layer in range(lm.n_layers):
        own = [head for at, head in heads if at == layer]

        def put(mixed):
            mixed = mixed.clone().unflatten(-1, (lm.n_heads, size))
            for head in own:
                mixed[0, -1, head] = seen["heads", layer][0, -1, head * size : (head + 1) * size]
            return mixed.flatten(-2)

        edits["heads", layer] = put
    with edit(lm, edits):
        return (score(corrupted) - low) / (high - low)
"""
            + FIND,
            r"no run differs from the corrupted one in layer 1 first",
        ),
        (
            "one run a head, shares added",
            {
                SHARE: "patched = score(corrupted)\n    share = (patched - low) / (high - low)\n    return share if len(heads) < 2 else sum(moved(lm, clean, corrupted, [h], contrast) for h in heads)",
                "for at, head in heads if": "for at, head in heads[:1] if",
            },
            r"no run has both: patch all heads of the list in one run",
        ),
        (
            "corrupted into clean",
            {
                "score(corrupted)\n    with record": "score(clean)\n    with record",
                "high = score(clean)": "high = score(corrupted)",
                "(score(corrupted) - low)": "(score(clean) - low)",
            },
            r"put what heads gave in the clean run into the corrupted run",
        ),
        (
            "counted from the clean run",
            {SHARE: "return (high - score(corrupted)) / (high - low)"},
            r"\(patched - corrupted\) / \(clean - corrupted\)",
        ),
        ("not normalised", {" / (high - low)": ""}, r"0\.75 of the difference; yours is 6\.000"),
        ("over the clean score", {"/ (high - low)": "/ high"}, r"\(patched - corrupted\) / \(clean - corrupted\)"),
        (
            "corrupted not taken off",
            {"(score(corrupted) - low) / (high - low)": "score(corrupted) / high"},
            r"\(patched - corrupted\) / \(clean - corrupted\)",
        ),
        (
            "absolute gap",
            {"/ (high - low)": "/ (high - low).abs()"},
            r"\(patched - corrupted\) / \(clean - corrupted\)",
        ),
        (
            "read one position early",
            {".logits[0, -1]": ".logits[0, -2]"},
            r"logits at the last position|yours is|finite",
        ),
        (
            "hooks left behind",
            {
                SHARE: "for site in sites:\n            lm.model.model.layers[site[1]].self_attn.o_proj.register_forward_pre_hook(lambda m, given, at=site[1]: (put(at, given[0]),))\n        return (score(corrupted) - low) / (high - low)"
            },
            r"left 3 hooks",
        ),
        (
            "ranked alone, then added one by one",
            {BEST: "best = max(rest, key=lambda head: moved(lm, clean, corrupted, [head], contrast))"},
            r"rank by what the team moves with a head",
        ),
        (
            "ranked alone, stopped at the sum of single effects",
            {
                WHILE: "alone = {head: moved(lm, clean, corrupted, [head], contrast) for head in candidates}\n    while rest and sum(alone[head] for head in team) < share:",
                BEST: "best = max(rest, key=alone.get)",
            },
            r"moves 60% together: ask what the team moves as a whole",
        ),
        (
            "greedy, stopped at the sum of single effects",
            {WHILE: "while rest and sum(moved(lm, clean, corrupted, [head], contrast) for head in team) < share:"},
            r"moves 80% together: ask what the team moves as a whole",
        ),
        (
            "ranked by size, signs lost",
            {BEST: "best = max(rest, key=lambda head: abs(moved(lm, clean, corrupted, [head], contrast)))"},
            r"rank by what the team moves|effects keep their sign",
        ),
        (
            "the largest change, signs lost",
            {
                BEST: "now = moved(lm, clean, corrupted, team, contrast)\n        best = max(rest, key=lambda head: abs(moved(lm, clean, corrupted, [*team, head], contrast) - now))"
            },
            r"effects keep their sign",
        ),
        (
            "one too many",
            {"    return team": "    return team + rest[:1]"},
            r"without its last head: stop as soon as it is enough",
        ),
        (
            "checked before the last one joined",
            {
                "        team.append(best)\n": "        team.append(best)\n        if len(rest) > 1 and moved(lm, clean, corrupted, team, contrast) >= share:\n            rest = sorted(rest)\n            team.append(next(h for h in rest if h != best))\n            break\n"
            },
            r"stop as soon as it is enough",
        ),
        (
            "one too few",
            {"    return team": "    return team[:-1] if len(team) < len(candidates) else team"},
            r"ask what the team moves as a whole",
        ),
        (
            "a share of the clean score",
            {
                WHILE: "last = lm.model(clean).logits[0, -1]\n    last, base = last[contrast[0]] - last[contrast[1]], lm.model(corrupted).logits[0, -1]\n    base = base[contrast[0]] - base[contrast[1]]\n    while rest and base + (last - base) * moved(lm, clean, corrupted, team, contrast) < share * last:"
            },
            r"as a share of the difference between the runs",
        ),
        (
            "a share of the best alone",
            {"< share:": "< share * max([moved(lm, clean, corrupted, [head], contrast) for head in candidates]):"},
            r"ask what the team moves as a whole",
        ),
        ("the weakest first", {"best = max(": "best = min("}, r"First joins the head that moves most"),
        (
            "stopped where no head gains",
            {
                "        team.append(best)\n": "        if moved(lm, clean, corrupted, [*team, best], contrast) <= moved(lm, clean, corrupted, team, contrast):\n            break\n        team.append(best)\n"
            },
            r"go on while the team moves less, though no head gains at once",
        ),
        (
            "one head a layer",
            {"rest.remove(best)": "rest = [head for head in rest if head[0] != best[0]]"},
            r"one layer may give several heads",
        ),
        (
            "in sorted order",
            {"    return team": "    return sorted(team, reverse=True)"},
            r"order of joining, the strongest first",
        ),
        (
            "latest first",
            {"team.append(best)": "team.insert(0, best)"},
            r"order of joining, the strongest first|stop as soon",
        ),
        ("the list of candidates used up", {"list(candidates)": "candidates"}, r"changed a list that it was given"),
        (
            "candidates ignored",
            {"list(candidates)": "[(a, b) for a in range(lm.n_layers) for b in range(lm.n_heads)]"},
            r"must be all of them|heads of the candidates",
        ),
        ("no end where no head is left", {"while rest and": "while"}, r"find_team stopped with ValueError"),
        (
            "names of heads",
            {"    return team": '    return [f"{layer}.{head}" for layer, head in team]'},
            r"Expected a list of heads, each \(layer, head\)",
        ),
        (
            "at least one head",
            {WHILE: "while rest and (not team or moved(lm, clean, corrupted, team, contrast) < share):"},
            r"an empty team is enough",
        ),
        (
            "begun with all, pruned",
            {
                "    team, rest = [], list(candidates)\n": "    team, rest = list(candidates), []\n    for head in sorted(candidates, key=lambda h: moved(lm, clean, corrupted, [h], contrast)):\n        without = [h for h in team if h != head]\n        if moved(lm, clean, corrupted, without, contrast) >= share:\n            team = without\n    return team\n"
            },
            r"order of joining|let the best one join|let the head join",
        ),
    ],
}

RIGHT = {
    "lens": [
        (
            "transformers' hidden states, the last one left as it is",
            """
@torch.no_grad()
def lens(lm, ids, position, token):
    *states, last = lm.model(ids, output_hidden_states=True).hidden_states
    normed = [lm.model.model.norm(state) for state in states] + [last]
    return [lm.model.lm_head(state)[0, position, token].item() for state in normed]
""",
        ),
        (
            "hooks of one's own, norm by hand, one row of the unembedding",
            """
@torch.no_grad()
def lens(lm, ids, position, token):
    streams, core = [], lm.model.model
    keep = lambda module, given: streams.append(given[0][0, position])
    hooks = [part.register_forward_pre_hook(keep) for part in [*core.layers, core.norm]]
    try:
        lm.model(input_ids=ids)
    finally:
        for hook in hooks:
            hook.remove()
    unit = [x / (x.square().mean() + core.norm.variance_epsilon) ** 0.5 for x in streams]
    return torch.stack([(x * core.norm.weight) @ lm.model.lm_head.weight[token] for x in unit])
""",
        ),
        (
            "single precision, the embedding plus what each block adds",
            """
@torch.no_grad()
def lens(lm, ids, position, token):
    parts = [(kind, layer) for layer in range(lm.n_layers) for kind in ("attention", "mlp")]
    with record(lm, parts) as seen:
        lm.model(ids)
    x = lm.model.model.embed_tokens(ids)[0, position]
    found = [x]
    for layer in range(lm.n_layers):
        x = x + seen["attention", layer][0, position] + seen["mlp", layer][0, position]
        found.append(x)
    return lm.model.lm_head(lm.model.model.norm(torch.stack(found))).float().numpy()[:, token]
""",
        ),
    ],
    "direct": [
        (
            "gradient times input, which is exact where all is linear",
            """
def direct_by_head(lm, ids, contrast, position):
    with torch.no_grad(), record(lm, [*[("heads", n) for n in range(lm.n_layers)], ("residual", lm.n_layers)]) as seen:
        lm.model(ids)
    end, norm, found = seen["residual", lm.n_layers][0, position], lm.model.model.norm, []
    scale = (end.square().mean() + norm.variance_epsilon).rsqrt()
    for n, layer in enumerate(lm.model.model.layers):
        mixed = seen["heads", n][0, position].clone().requires_grad_()
        logits = lm.model.lm_head(layer.self_attn.o_proj(mixed) * norm.weight * scale)
        (slope,) = torch.autograd.grad(logits[contrast[0]] - logits[contrast[1]], mixed)
        found.append((slope * mixed).view(lm.n_heads, -1).sum(dim=-1))
    return torch.stack(found)
""",
        ),
        (
            "two loops, slices",
            """
@torch.no_grad()
def direct_by_head(lm, ids, contrast, position):
    a, b = contrast
    core, size = lm.model.model, lm.model.config.head_dim
    with record(lm, [("heads", l) for l in range(lm.n_layers)] + [("residual", lm.n_layers)]) as seen:
        lm.model(ids)
    x = seen["residual", lm.n_layers][0, position]
    rms = x.pow(2).mean().sqrt()
    out = torch.zeros(lm.n_layers, lm.n_heads)
    for l in range(lm.n_layers):
        for h in range(lm.n_heads):
            own = slice(h * size, (h + 1) * size)
            written = core.layers[l].self_attn.o_proj.weight[:, own] @ seen["heads", l][0, position, own]
            logits = lm.model.lm_head(written / rms * core.norm.weight)
            out[l, h] = logits[a] - logits[b]
    return out
""",
        ),
        (
            "the block-diagonal input through the projection, scale read off the norm",
            """
@torch.no_grad()
def direct_by_head(lm, ids, contrast, position):
    core, found = lm.model.model, []
    with record(lm, [("heads", layer) for layer in range(lm.n_layers)] + [("residual", lm.n_layers)]) as seen:
        lm.model(ids)
    end = seen["residual", lm.n_layers][0, position]
    frozen = core.norm(end) / end  # [d_model]
    for layer, block in enumerate(core.layers):
        z = seen["heads", layer][0, position]
        alone = torch.block_diag(*z.chunk(lm.n_heads))  # [head, head * d_head]
        logits = lm.model.lm_head(block.self_attn.o_proj(alone) * frozen)
        found.append((logits[:, contrast[0]] - logits[:, contrast[1]]).tolist())
    return found
""",
        ),
    ],
    "patch": [
        (
            "a pre-hook, in place; streams by record",
            """
@torch.no_grad()
def patched_contrast(lm, ids, streams, contrast, *, layer, position):
    def hook(module, given):
        x = given[0].clone()
        x[:, position, :] = streams[layer][position]
        return (x,) + given[1:]

    handle = lm.model.model.layers[layer].register_forward_pre_hook(hook)
    try:
        row = lm.model(input_ids=ids).logits[0, -1].log_softmax(-1)
    finally:
        handle.remove()
    return (row[contrast[0]] - row[contrast[1]]).item()


@torch.no_grad()
def share_map(lm, clean, corrupted, contrast):
    a, b = contrast
    sites = [("residual", layer) for layer in range(lm.n_layers)]
    with record(lm, sites) as seen:
        good = lm.model(clean).logits[0, -1]
    bad = lm.model(corrupted).logits[0, -1]
    good, bad = float(good[a] - good[b]), float(bad[a] - bad[b])
    streams = [seen[site][0] for site in sites]
    out = torch.zeros(lm.n_layers, clean.shape[1])
    for layer in range(lm.n_layers):
        for position in range(clean.shape[1]):
            value = patched_contrast(lm, corrupted, streams, contrast, layer=layer, position=position)
            out[layer, position] = (value - bad) / (good - bad)
    return out
""",
        ),
        (
            "what comes out of the layer before; all positions of a layer as one batch",
            """
@torch.no_grad()
def patched_contrast(lm, ids, streams, contrast, *, layer, position):
    core = lm.model.model
    before = core.layers[layer - 1] if layer else core.embed_tokens

    def hook(module, given, out):
        mask = torch.arange(out.shape[1]) == position
        return torch.where(mask[:, None], streams[layer].to(out), out)

    handle = before.register_forward_hook(hook)
    try:
        logits = lm.model(ids).logits[0, -1, list(contrast)]
    finally:
        handle.remove()
    return logits[0] - logits[1]


@torch.no_grad()
def share_map(lm, clean, corrupted, contrast):
    n = clean.shape[1]
    result = lm.model(torch.cat([corrupted, clean]), output_hidden_states=True)
    first, second = result.logits[:, -1, contrast[0]], result.logits[:, -1, contrast[1]]
    low, high = first - second
    out = []
    for layer in range(lm.n_layers):
        source = result.hidden_states[layer][1]

        def put(stream, source=source):
            eye = torch.eye(n, dtype=torch.bool)[:, :, None]
            return torch.where(eye, source, stream)

        with edit(lm, {("residual", layer): put}):
            last = lm.model(corrupted.repeat(n, 1)).logits[:, -1]
        out.append((last[:, contrast[0]] - last[:, contrast[1]] - low) / (high - low))
    return torch.stack(out).float()
""",
        ),
    ],
    "team": [
        (
            "a pass for each of the two logits",
            {
                "last = lm.model(ids).logits[0, -1]\n        return last[contrast[0]] - last[contrast[1]]": "one, other = (lm.model(ids).logits[0, -1, token] for token in contrast)\n        return one - other"
            },
        ),
        (
            "pre-hooks of one's own, a mask a layer",
            """
@torch.no_grad()
def run(lm, ids, contrast, edits=()):
    hooks, seen = [], {}
    for l, layer in enumerate(lm.model.model.layers):
        def hook(module, given, l=l):
            x = given[0].clone()
            for head, vector in edits[l] if edits else []:
                x[0, -1, head * len(vector) : (head + 1) * len(vector)] = vector
            seen[l] = x[0, -1]
            return (x,)
        hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(hook))
    try:
        z = lm.model(ids).logits[0, -1]
    finally:
        [hook.remove() for hook in hooks]
    return float(z[contrast[0]] - z[contrast[1]]), seen


def moved(lm, clean, corrupted, heads, contrast):
    high, seen = run(lm, clean, contrast)
    low, _ = run(lm, corrupted, contrast)
    edits = [[(h, seen[l].chunk(lm.n_heads)[h]) for at, h in heads if at == l] for l in range(lm.n_layers)]
    return (run(lm, corrupted, contrast, edits)[0] - low) / (high - low)


def find_team(lm, clean, corrupted, contrast, *, candidates, share):
    team, reached = [], 0.0
    while reached < share and len(team) < len(candidates):
        tried = [(moved(lm, clean, corrupted, team + [c], contrast), c) for c in candidates if c not in team]
        reached, best = max(tried)
        team = team + [best]
    return team
""",
        ),
        (
            "one batch of all three runs, masks",
            """
@torch.no_grad()
def moved(lm, clean, corrupted, heads, contrast):
    chosen = torch.zeros(lm.n_layers, lm.n_heads, dtype=torch.bool)
    for head in heads:
        chosen[head] = True

    def put(mixed, mask):
        z = mixed.clone().unflatten(-1, (lm.n_heads, -1))  # [batch, token, head, d_head]
        z[2, -1] = torch.where(mask[:, None], z[0, -1], z[2, -1])
        return z.flatten(-2)

    edits = {("heads", layer): partial(put, mask=chosen[layer]) for layer in range(lm.n_layers)}
    with edit(lm, edits):
        last = lm.model(torch.cat([clean, corrupted, corrupted])).logits[:, -1]
    high, low, patched = last[:, contrast[0]] - last[:, contrast[1]]
    return float((patched - low) / (high - low))


def find_team(lm, clean, corrupted, contrast, *, candidates, share):
    team = []
    for _ in candidates:
        if moved(lm, clean, corrupted, team, contrast) >= share:
            break
        gains = {head: moved(lm, clean, corrupted, team + [head], contrast) for head in candidates if head not in team}
        team.append(sorted(gains, key=gains.get)[-1])
    return team
""",
        ),
        (
            "recursion, one source batch a call, tuples, single precision",
            MOVED
            + """
    for site in seen:
        seen[site] = seen[site].float()
    wanted = {}
    for layer, head in heads:
        wanted.setdefault(layer, []).extend(range(head * size, head * size + size))

    def put(layer, x):
        x = x.clone()
        x[:, -1, wanted[layer]] = seen["heads", layer][:, -1, wanted[layer]].to(x.dtype)
        return x

    with edit(lm, {("heads", layer): partial(put, layer) for layer in wanted}):
        return float((score(corrupted) - low) / (high - low))


def find_team(lm, clean, corrupted, contrast, *, candidates, share, team=()):
    rest = [head for head in candidates if head not in team]
    if not rest or moved(lm, clean, corrupted, team, contrast) >= share:
        return team
    scores = torch.tensor([moved(lm, clean, corrupted, [*team, head], contrast) for head in rest])
    best = rest[scores.argmax()]
    return find_team(lm, clean, corrupted, contrast, candidates=candidates, share=share, team=(*team, best))
""",
        ),
    ],
}
