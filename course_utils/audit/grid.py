"""The grid of minimal edits: scores of requests that differ in one thing, and what can be read off them."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from .._arrays import Floats
from ..errors import CourseError
from ..plots import axes_of, style
from .kept import can_be_kept
from .terms import ACTS, HARMFUL, HARMLESS, NO_WORD, Estimate, estimate, fill_frame
from .verdicts import LEAST_PAIRS, Verdict, judge

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@can_be_kept
@dataclass(frozen=True, eq=False)
class MinimalEdits:
    """How strongly a model leans to refusing each request of a grid of minimal edits.

    Attributes:
        scores: float32 `[pair, act, word, frame]`, log-odds of refusing, in logits; above 0 it leans to refusing.
        coverage: like `scores`, the probability of a reply that the score knows of (without compliance openings, of one
            that does not open a thought first).
        pairs: (harmful act, harmless act), as they were given.
        words: first none (""), then the neutral controls, then the words under suspicion.
        controls: how many of the words are controls.
        frames: sentences with `{word}` and `{act}`.
        refusal: openings of a reply that count as refusing.
        compliance: openings that count as helping; none: every other reply does.
        replies: the greedy replies to the first pair in the first frame, `[act][word]`, if asked for.
        model: the model's name.
        system: the system prompt that was given, or the model's own from Ollama.
        before: turns of the chat before each request, as (role, content).
    """

    scores: Floats
    coverage: Floats
    pairs: tuple[tuple[str, str], ...]
    words: tuple[str, ...]
    controls: int
    frames: tuple[str, ...]
    refusal: tuple[str, ...]
    compliance: tuple[str, ...]
    replies: tuple[tuple[str, ...], ...]
    model: str
    system: str | None = None
    before: tuple[tuple[str, str], ...] = ()

    @property
    def suspected(self) -> tuple[str, ...]:
        """The words under suspicion."""
        return self.words[1 + self.controls :]

    @property
    def neutral(self) -> tuple[str, ...]:
        """The control words."""
        return self.words[1 : 1 + self.controls]

    def request(self, pair: int, act: int, word: str, frame: int = 0) -> str:
        """The text of one request; `act` is HARMLESS (0) or HARMFUL (1)."""
        harmful, harmless = self.pairs[pair]
        return fill_frame(self.frames[frame], harmful if act else harmless, word)

    def by_pair(self, act: int, word: str) -> Floats:
        """The scores of one cell of the grid, mean over the frames, float32 `[pair]`."""
        return self.scores[:, act, self._column(word)].mean(axis=-1)

    def cell(self, act: int, word: str) -> Estimate:
        """The mean score of one cell of the grid."""
        return estimate(self.by_pair(act, word))

    def refused(self, act: int, word: str) -> tuple[int, int]:
        """How many requests of one cell the model leans to refusing, and of how many."""
        scores = self.scores[:, act, self._column(word)]
        return int((scores > 0).sum()), scores.size

    def effects(self, word: str) -> dict[str, Estimate]:
        """What the act, the word, and the two together do to the score, in the 2 x 2 grid of one word.

        "harm" and "word" are main effects, each the mean of its two edits; "interaction" is by how much the word's edit
        does more on a harmful act than on a harmless one; "word beyond control" is the word's main effect less that of
        the neutral words (there only with controls, and for a word that is none).

        Raises:
            CourseError: no such word in the grid.
        """
        harm, own, both = self._effects(word)
        found = {"harm": estimate(harm), "word": estimate(own), "interaction": estimate(both)}
        if self.controls and word not in self.neutral:
            neutral = np.mean([self._effects(control)[1] for control in self.neutral], axis=0)
            found["word beyond control"] = estimate(own - neutral)
        return found

    def _effects(self, word: str) -> list[Floats]:
        """Main effect of harm, of a word, and their interaction, each `[pair]`."""
        if word == NO_WORD:
            raise CourseError(f"Expected one of the grid's words ({', '.join(self.words[1:])}), got none; name one.")
        neither, said = self.by_pair(HARMLESS, NO_WORD), self.by_pair(HARMLESS, word)
        harmful, both = self.by_pair(HARMFUL, NO_WORD), self.by_pair(HARMFUL, word)
        harm, own = (harmful - neither) + (both - said), (said - neither) + (both - harmful)
        return [harm / 2, own / 2, (both - harmful) - (said - neither)]

    def verdict(self, *, least_pairs: int = LEAST_PAIRS) -> Verdict:
        """What the refusals follow, by the rule in `verdicts.RULE`, with what may be claimed and what to do next.

        `least_pairs` lowers the rule's floor of pairs, to see what it guards against.
        """
        return judge(self, least_pairs=least_pairs)

    def _column(self, word: str) -> int:
        if word not in self.words:
            raise CourseError(f"Expected one of the grid's words ({', '.join(self.words[1:])}), got {word!r}.")
        return self.words.index(word)

    def plot(self, ax: Axes | None = None, *, title: str | None = None, limit: float | None = None) -> Axes:
        """The 2 x words grid as a heat map, each cell with its mean score and how many requests are refused.

        `limit` is the score of full colour, by default the largest mean; give the same one to panels to be compared.
        """
        values = np.array([[self.cell(act, word).value for word in self.words] for act in range(len(ACTS))])
        limit = limit or float(abs(values).max()) or 1.0
        with style():
            ax = axes_of(ax, (1.6 + 1.3 * len(self.words), 2.6))
            image = ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
            for act, column in np.ndindex(*values.shape):
                refused, asked = self.refused(act, self.words[column])
                ink = "white" if abs(values[act, column]) > 0.6 * limit else "black"
                text = f"{values[act, column]:+.1f}\n{refused} of {asked}"
                ax.text(column, act, text, ha="center", va="center", color=ink, fontsize=10)
            shown = [f"{word[:19]}…" if len(word) > 20 else word for word in self.words]
            ax.set_xticks(range(len(self.words)), [f"“{word}”" if word else "no word" for word in shown])
            ax.set_yticks(range(len(ACTS)), ["harmless\nact", "harmful\nact"])
            ax.spines[:].set_visible(False)
            ax.tick_params(length=0)
            ax.figure.colorbar(image, ax=ax, label="refusal score (logits)", pad=0.02)
            said = self.verdict().sentence
            ax.set_title(title or f"{self.model}: {said[0].lower()}{said[1:].rstrip('.')}")
        return ax

    def _rows(self) -> list[list[str]]:
        """One row an act, one column a word: the mean score and the requests refused."""
        return [
            [
                f"{self.cell(act, word).value:+.1f} · {'/'.join(map(str, self.refused(act, word)))}"
                for word in self.words
            ]
            for act in (HARMLESS, HARMFUL)
        ]

    def _repr_html_(self) -> str:
        left = "<th style='text-align:left'>"
        head = "".join(f"{left}{escape(word or 'no word')}</th>" for word in self.words)
        body = "".join(
            f"<tr>{left}{name}</th>" + "".join(f"<td style='text-align:left'>{text}</td>" for text in row) + "</tr>"
            for name, row in zip(ACTS, self._rows(), strict=True)
        )
        label = f"{escape(self.model)}: mean refusal score in logits · requests refused"
        return f"<table><caption>{label}</caption><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        rows = [[f"{self.model}", *(word or "no word" for word in self.words)]]
        rows += [[name, *row] for name, row in zip(ACTS, self._rows(), strict=True)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
