"""The table of wrong and right answers: `python -m tests.mutants [EXERCISE…]`, with `-v` for every message."""

import sys

from rich.console import Console
from rich.table import Table

from . import EXERCISES, mutants, named, try_out


def main(arguments):
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 170)
    wanted = [name for name in arguments if not name.startswith("-")] or EXERCISES
    table = Table("exercise", "item", "wrong", "fail", "named", "right", "pass", title="Wrong and right answers")
    notes, bad = [], False
    for exercise in wanted:
        rows = {}
        for mutant in mutants(exercise):
            marks = try_out(exercise, mutant, hidden=True)  # the hidden check's where the visible one passed
            mark = next((each for each in marks if not each.passed), marks[0])
            row = rows.setdefault(mutant.item, [0] * 5)
            if mutant.says is None:
                row[3] += 1
                row[4] += mark.passed
                if not mark.passed:
                    notes.append(f"RIGHT BUT FAILS  {exercise} {mutant.item}: {mutant.label}: {mark.message}")
            else:
                row[0] += 1
                row[1] += not mark.passed
                row[2] += named(mutant, mark)
                if mark.passed:
                    notes.append(f"WRONG BUT PASSES {exercise} {mutant.item}: {mutant.label}")
                elif not named(mutant, mark):
                    notes.append(f"not named        {exercise} {mutant.item}: {mutant.label}: {mark.message}")
                elif "-v" in arguments:
                    notes.append(f"named            {exercise} {mutant.item}: {mutant.label}: {mark.message}")
        for item, (wrong, fail, name, right, passed) in rows.items():
            table.add_row(exercise, item, *map(str, (wrong, fail, name, right, passed)))
            bad |= fail < wrong or passed < right or name < 0.8 * wrong
    console.print(table)
    for note in notes:
        console.print(note)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
