"""The gradebook: one SQLite file with every submission, result and mark there ever was; nothing in it is overwritten.

Each change is one short transaction, so a run that is killed loses nothing it has recorded, and two runs can write at
once.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, replace
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from nbformat import NotebookNode

from ...errors import CourseError
from ..marks import PASSED, READ, Mark
from ..notebook import CHECK, MANUAL, NAMESPACE, TASK, grade_id, kind, read, whole_text, write
from ..notebook import points as points_of
from ..result import BROKEN, Result
from ..rubric import Tick
from .gradebook_file import connect, prepare, trouble
from .standing import Change, Entry, Graded, Override
from .submissions import Submission


class Gradebook:
    """A gradebook in a file, made if it is not there; a CourseError for another file, or one that cannot be written.

    >>> with Gradebook(Path("grades.db")) as book:  # doctest: +SKIP
    ...     sum(graded.earned for graded in book.current())
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, Lock()
        try:
            self._db = connect(path)
        except (OSError, sqlite3.Error) as error:
            raise CourseError(trouble(path, error)) from error
        try:
            with self._change() as db:
                prepare(path, db)
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Gradebook:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, one at a time."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled it back by itself
                    self._db.execute("ROLLBACK")
                raise

    def take(self, submission: Submission, content: bytes) -> int:
        """Write down that a submission was handed in, and that it is the one that counts; its number here.

        What was there before stays as early as it was: copying or downloading a file again changes its time alone.
        """
        digest = hashlib.sha256(content).hexdigest()
        who = (submission.student, submission.exercise)
        about = (submission.label, submission.handed_in, submission.extension)
        with self._change() as db:
            latest = db.execute(
                "SELECT digest, turn FROM submission WHERE student = ? AND exercise = ? ORDER BY turn DESC LIMIT 1", who
            ).fetchone()
            last = db.execute("SELECT max(turn) FROM submission").fetchone()[0] or 0
            turn = latest[1] if latest and latest[0] == digest else last + 1
            told = (submission.number, submission.late, submission.place, _now(), turn, *about)
            found = db.execute(
                "INSERT INTO submission (student, exercise, digest, number, late, place, taken, turn, label, handed_in,"
                " extension) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " number = excluded.number, late = min(late, excluded.late), place = excluded.place,"
                " turn = excluded.turn, label = excluded.label, extension = excluded.extension,"
                " handed_in = iif('' IN (handed_in, excluded.handed_in), max(handed_in, excluded.handed_in),"
                " min(handed_in, excluded.handed_in)) RETURNING id",
                (*who, digest, *told),
            ).fetchone()
        return int(found[0])

    def counts(self, student: str, exercise: str) -> tuple[str, str, str, str]:
        """Of the submission that counts so far its SHA-256, place, platform's name and time; "" where there is none."""
        found = self._db.execute(
            "SELECT digest, place, label, handed_in FROM submission WHERE student = ? AND exercise = ?"
            " ORDER BY turn DESC LIMIT 1",
            (student, exercise),
        ).fetchone()
        return found or ("", "", "", "")

    def numbered(self) -> list[tuple[str, str, str, str]]:
        """Student, exercise, a platform's number and its name for the file, of all that has a number, by turn."""
        return self._db.execute(
            "SELECT student, exercise, number, label FROM submission WHERE number != '' ORDER BY turn, id"
        ).fetchall()

    def rename(self, student: str, now: str) -> None:
        """Let what a student handed in, and what a person gave them, be another's; but what that one has already."""
        with self._change() as db:
            for table in ("submission", "manual", "override"):
                db.execute(f"UPDATE OR IGNORE {table} SET student = ? WHERE student = ?", (now, student))

    def extend(self, extension: Callable[[str, str], str | None]) -> None:
        """Write the extension of all that was handed in, as a function of student and exercise says; None: as it is."""
        rows = self._db.execute("SELECT id, student, exercise FROM submission").fetchall()
        told = [(now, number) for number, who, what in rows if (now := extension(who, what)) is not None]
        with self._change() as db:
            db.executemany("UPDATE submission SET extension = ? WHERE id = ?", told)

    def settle_late(self, penalty: Callable[[str, str, bool, str], tuple[float, str]]) -> list[Change]:
        """Write what being late costs, by a function of exercise, time, mark, extension; settled totals that change."""
        rows = self._db.execute("SELECT id, exercise, handed_in, late, extension FROM submission").fetchall()
        found = [(*penalty(what, when, bool(late), extension), number) for number, what, when, late, extension in rows]
        settled = int(self.setting("settled") or 0)
        before = self._db.execute(
            "SELECT submission, student, exercise, penalty FROM standing WHERE submission <= ?", (settled,)
        ).fetchall()
        with self._change() as db:
            db.executemany("UPDATE submission SET penalty = ?, why = ? WHERE id = ?", found)
        self.keep("settled", str(max((number for *_, number in found), default=0)))
        shares = {number: share for share, _, number in found}
        changed = [row for row in before if shares.get(row[0], row[3]) != row[3]]
        both = [(next(self.current(what, who)), share) for _, who, what, share in changed]
        totals = [(now, replace(now, penalty=share).total) for now, share in both]
        return [Change(now.student, now.exercise, "total", was, now.total) for now, was in totals if was != now.total]

    def setting(self, name: str) -> str:
        """What was kept under a name, "" for nothing."""
        found = self._db.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
        return str(found[0]) if found else ""

    def keep(self, name: str, value: str) -> None:
        """Keep a setting for later runs."""
        with self._change() as db:
            db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))

    def is_graded(self, submission: int, reference: str, version: str) -> bool:
        """Whether its latest result is one of this reference and version, and not of a run that could not be."""
        last = self._last_result(self._db, submission)
        return last is not None and last[1:3] == (reference, version) and last[3] != BROKEN

    @staticmethod
    def _last_result(db: sqlite3.Connection, submission: int) -> tuple[int, str, str, str] | None:
        found: tuple[int, str, str, str] | None = db.execute(
            "SELECT id, reference, version, status FROM result WHERE submission = ? ORDER BY id DESC LIMIT 1",
            (submission,),
        ).fetchone()
        return found

    def record(
        self, submission: int, reference: str, version: str, result: Result, hidden: Collection[str] = ()
    ) -> list[Change]:
        """Add a result; which marks differ from those of the last one on the same submission.

        The reference is the digest of what it was run against, the version the grader's; students see no hidden check.
        """
        with self._change() as db:
            last = self._last_result(db, submission)
            if last is not None and result.status == BROKEN:  # what is known already is better
                return []
            before = self._earned(db, last[0]) if last is not None and last[3] != BROKEN else None
            told = (result.status, result.seconds, json.dumps(result.repairs), json.dumps(result.messages))
            (new,) = db.execute(
                "INSERT INTO result (submission, reference, version, status, seconds, repairs, messages, notebook,"
                " finished) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
                (submission, reference, version, *told, zlib.compress(result.notebook), _now()),
            ).fetchone()
            rows = [(new, place, mark.check in hidden, *_row(mark)) for place, mark in enumerate(result.marks)]
            db.executemany("INSERT INTO mark VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            return [] if before is None else self._changes(db, submission, new, before)

    @staticmethod
    def _earned(db: sqlite3.Connection, result: int) -> dict[str, float]:
        rows = db.execute(
            "SELECT name, earned FROM mark WHERE result = ? AND earned IS NOT NULL ORDER BY place", (result,)
        )
        return dict(rows.fetchall())

    def current(self, exercise: str = "", student: str = "") -> Iterator[Graded]:
        """What stands, by student and exercise: all, or those of one exercise, of one student."""
        found = self._db.execute(
            "SELECT student, exercise, number, late, status, seconds, repairs, messages, id, label, handed_in, penalty,"
            " why, (SELECT turn FROM submission WHERE id = standing.submission) FROM standing"
            " WHERE ? IN (exercise, '') AND ? IN (student, '') ORDER BY student, exercise",
            (exercise, student),
        ).fetchall()
        for who, what, number, late, status, seconds, repairs, messages, result, *about in found:
            entries = tuple(self._entries(who, what, result))
            said = tuple(json.loads(repairs)), tuple(json.loads(messages))
            yield Graded(who, what, number, bool(late), status, seconds, *said, entries, result, *about)

    def _entries(self, student: str, exercise: str, result: int) -> Iterator[Entry]:
        rows = self._db.execute(
            "SELECT hidden, item, name, points, earned, status, expected, received, message, seconds FROM mark"
            " WHERE result = ? ORDER BY place",
            (result,),
        ).fetchall()
        answers: dict[str, str] | None = None
        overrides = self._overrides(student, exercise, result)
        for hidden, *told in rows:
            entry = _overridden(Entry(Mark(*told), bool(hidden)), overrides)
            read_ = self._db.execute(
                "SELECT id, answer, points, comment, who FROM manual WHERE student = ? AND exercise = ? AND name = ?"
                " ORDER BY id DESC LIMIT 1",
                (student, exercise, entry.mark.check),
            ).fetchone()
            if read_ is not None:
                answers = self._answers(result) if answers is None else answers
                entry = self._read_by_a_person(entry, answers.get(entry.mark.check, ""), read_)
            yield entry

    def _read_by_a_person(self, entry: Entry, answer: str, found: tuple[Any, ...]) -> Entry:
        """An entry with what a person gave and said, if the text that was read is the one that counts."""
        row, of, points, comment, who = found
        if entry.mark.status != READ:
            return replace(entry, comment=comment, who=who)
        if answer != of:
            return entry
        rows = self._db.execute("SELECT criterion, points, given FROM tick WHERE manual = ? ORDER BY place", (row,))
        ticks = tuple(Tick(*told) for told in rows.fetchall())
        earned = None if points is None else min(points, entry.mark.points)
        return replace(entry, mark=replace(entry.mark, earned=earned), comment=comment, who=who, ticks=ticks)

    def notebook(self, result: int) -> NotebookNode:
        """The notebook of a result, as it was run."""
        found = self._db.execute("SELECT notebook FROM result WHERE id = ?", (result,)).fetchone()
        return read(zlib.decompress(found[0]), largest=1 << 30)

    def _answers(self, result: int) -> dict[str, str]:
        cells = self.notebook(result).cells
        return {grade_id(cell): _digest(cell.source) for cell in cells if kind(cell) in (MANUAL, TASK)}

    def give(
        self, graded: Graded, check: str, points: float | None, comment: str, who: str, *, ticks: Sequence[Tick] = ()
    ) -> None:
        """Write down what a person gives for an item, or (points None) says of it; by which criteria, if by some."""
        entry = _entry_of(graded, check)
        if points is not None and entry.mark.status != READ:
            raise CourseError(
                f"Expected a comment on {check}, got points, which its run decides; to change that: course override."
            )
        if points is not None and not 0 <= points <= entry.mark.points:
            raise CourseError(f"Expected 0 to {entry.mark.points:g} points for {check}, got {points:g}.")
        answer = self._answers(graded.result).get(check, "")
        with self._change() as db:
            cursor = db.execute(
                "INSERT INTO manual (student, exercise, name, answer, points, comment, who, at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (graded.student, graded.exercise, check, answer, points, whole_text(comment), whole_text(who), _now()),
            )
            db.executemany(
                "INSERT INTO tick VALUES (?, ?, ?, ?, ?)",
                [(cursor.lastrowid, k, whole_text(t.criterion), t.points, t.given) for k, t in enumerate(ticks)],
            )

    def named_by_people(self) -> list[tuple[str, str, str]]:
        """Student, exercise and name of each cell for which a person gave something, be it gone since."""
        return self._db.execute(
            "SELECT student, exercise, name FROM manual UNION SELECT student, exercise, name FROM override"
            " ORDER BY exercise, name, student"
        ).fetchall()

    # What a person says against the run, and points that changed without a run.

    def override(self, graded: Graded, check: str, points: float | None, reason: str, who: str) -> None:
        """Have a person's points stand for a check, whatever runs say from now on; None takes that back."""
        entry = _entry_of(graded, check)
        if entry.mark.status == READ:
            raise CourseError(f"Expected a check that a run decides, got {check}, which is read: course mark.")
        if points is None and entry.override is None:
            raise CourseError(f"Expected an override of {check} to take back, found none for {graded.student}.")
        if points is not None and not 0 <= points <= entry.mark.points:
            raise CourseError(f"Expected 0 to {entry.mark.points:g} points for {check}, got {points:g}.")
        if points is not None and not reason.strip():
            raise CourseError('Expected a reason, which the student will read, got none: --reason "…".')
        told = (points, whole_text(reason.strip()), whole_text(who), _now())
        with self._change() as db:
            db.execute(
                "INSERT INTO override (student, exercise, name, digest, points, reason, who, at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (graded.student, graded.exercise, check, self._submitted(graded.result), *told),
            )

    def _submitted(self, result: int) -> str:
        """The digest of the submission that a result is of."""
        query = "SELECT s.digest FROM submission s JOIN result r ON r.submission = s.id WHERE r.id = ?"
        return str(self._db.execute(query, (result,)).fetchone()[0])

    def _overrides(self, student: str, exercise: str, result: int) -> dict[str, Override]:
        """The overrides that stand, by check; what the run gave is not known here."""
        rows = self._db.execute(
            "SELECT name, points, reason, who, at, digest FROM override WHERE student = ? AND exercise = ? ORDER BY id",
            (student, exercise),
        ).fetchall()
        last = {name: told for name, *told in rows}
        digest = self._submitted(result) if last else ""
        return {
            name: Override(points, 0.0, reason, who, at, of != digest)
            for name, (points, reason, who, at, of) in last.items()
            if points is not None
        }

    def repoint(self, submission: int, reference: bytes, version: str) -> list[Change]:
        """Let a result stand, without a run, for a reference that differs by points alone; the marks that this changed.

        Each check keeps its status and gets the points that are now right for it. Nothing is done where more than
        points changed, where another version of the grader ran, or where nothing was run.
        """
        digest = hashlib.sha256(reference).hexdigest()
        with self._change() as db:
            bare = db.execute("SELECT bare FROM reference WHERE digest = ?", (digest,)).fetchone()
            if bare is None:
                bare = (_bare_digest(reference),)
                db.execute("INSERT INTO reference VALUES (?, ?)", (digest, *bare))
            last = self._last_result(db, submission)
            if last is None or last[1] == digest or last[2] != version or last[3] == BROKEN:
                return []
            if db.execute("SELECT bare FROM reference WHERE digest = ?", (last[1],)).fetchone() != bare:
                return []
            before = self._earned(db, last[0])
            result = self._copy_result(db, last[0], digest, _points_of(reference))
            return self._changes(db, submission, result, before)

    @staticmethod
    def _copy_result(db: sqlite3.Connection, result: int, reference: str, worth: Mapping[str, float]) -> int:
        """Add a result like another, against another reference, with what its checks are worth now; its number."""
        (new,) = db.execute(
            "INSERT INTO result (submission, reference, version, status, seconds, repairs, messages, notebook,"
            " finished) SELECT submission, ?, version, status, seconds, repairs, messages, notebook, ?"
            " FROM result WHERE id = ? RETURNING id",
            (reference, _now(), result),
        ).fetchone()
        rows = db.execute("SELECT * FROM mark WHERE result = ? ORDER BY place", (result,)).fetchall()
        for _, place, hidden, item, name, had, earned, status, *told in rows:
            now = worth.get(name, had)
            scaled = now if status == PASSED else earned * now / had if earned and had else earned
            db.execute(
                "INSERT INTO mark VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (new, place, hidden, item, name, now, scaled, status, *told),
            )
        return int(new)

    def _changes(
        self, db: sqlite3.Connection, submission: int, result: int, before: Mapping[str, float]
    ) -> list[Change]:
        """Which marks of a submission's new result are others than before; not those that a person has overridden."""
        after = self._earned(db, result)
        query = "SELECT student, exercise FROM submission WHERE id = ?"
        student, exercise = db.execute(query, (submission,)).fetchone()
        kept = self._overrides(student, exercise, result)
        both = ((name, before.get(name, 0.0), after.get(name, 0.0)) for name in {**after, **before})
        changes = [Change(student, exercise, *one) for one in both]
        return [change for change in changes if change.before != change.after and change.check not in kept]

    def history(self, student: str = "", exercise: str = "") -> list[dict[str, Any]]:
        """Every mark ever given, the oldest first, of all or of one student, one exercise: when, to whom, by whom.

        What a run gave is by the grader's version, its comment the status of the run.
        """
        rows = self._db.execute(
            "SELECT * FROM (SELECT r.finished AS at, s.student AS student, s.exercise AS exercise, m.name AS name,"
            " m.earned AS points, r.version AS who, r.status AS comment FROM mark m"
            " JOIN result r ON r.id = m.result JOIN submission s ON s.id = r.submission WHERE m.earned IS NOT NULL"
            " UNION ALL SELECT at, student, exercise, name, points, who, comment FROM manual"
            " UNION ALL SELECT at, student, exercise, name, points, who,"
            " iif(points IS NULL, 'override taken back', 'override') || iif(reason = '', '', ': ' || reason)"
            " FROM override)"
            " WHERE ? IN (student, '') AND ? IN (exercise, '') ORDER BY at",
            (student, exercise),
        )
        names = ("at", "student", "exercise", "check", "points", "who", "why")
        return [dict(zip(names, row, strict=True)) for row in rows.fetchall()]


def _entry_of(graded: Graded, check: str) -> Entry:
    entry = next((entry for entry in graded.entries if entry.mark.check == check), None)
    if entry is None:
        known = ", ".join(entry.mark.check for entry in graded.entries)
        raise CourseError(f"Expected an item of {graded.exercise} ({known}), got {check!r}.")
    return entry


def _overridden(entry: Entry, overrides: Mapping[str, Override]) -> Entry:
    """An entry as a person has overridden it; one that is worth less now than they gave has all of it."""
    found = overrides.get(entry.mark.check)
    if found is None or entry.mark.earned is None:
        return entry
    points = min(found.points, entry.mark.points)
    override = replace(found, points=points, machine=entry.mark.earned)
    return replace(entry, mark=replace(entry.mark, earned=points), override=override)


def _points_of(reference: bytes) -> dict[str, float]:
    """What each cell of a reference is worth, by name."""
    graded = (cell for cell in read(reference).cells if kind(cell) in (CHECK, MANUAL, TASK))
    return {grade_id(cell): points_of(cell) for cell in graded}


@lru_cache(maxsize=64)
def _bare_digest(reference: bytes) -> str:
    """The digest of a reference without what its cells are worth, and without when it was run.

    nbgrader's checksums tell what cells are worth, too.
    """
    notebook = read(reference)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        cell.execution_count = cell.get("execution_count") is not None
        for output in cell.get("outputs", []):
            output.pop("execution_count", None)
        for key in ("points", "checksum") if isinstance(cell.metadata.get(NAMESPACE), dict) else ():
            cell.metadata[NAMESPACE].pop(key, None)
    return hashlib.sha256(write(notebook)).hexdigest()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _row(mark: Mark) -> tuple[str | float | None, ...]:
    return tuple(whole_text(value) if isinstance(value, str) else value for value in astuple(mark))
