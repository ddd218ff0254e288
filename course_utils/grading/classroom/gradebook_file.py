"""The file of a gradebook: opened, brought to this format, refused if it is another program's, errors as sentences."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from ...errors import CourseError, first_line

_FORMAT = 2  # of the file; a later one says so in user_version
_TABLES = """
CREATE TABLE submission (
    id INTEGER PRIMARY KEY, student TEXT NOT NULL, exercise TEXT NOT NULL, digest TEXT NOT NULL, number TEXT NOT NULL,
    late INTEGER NOT NULL, place TEXT NOT NULL, taken TEXT NOT NULL, turn INTEGER NOT NULL, label TEXT NOT NULL,
    handed_in TEXT NOT NULL, extension TEXT NOT NULL, penalty REAL NOT NULL DEFAULT 0, why TEXT NOT NULL DEFAULT '',
    UNIQUE (student, exercise, digest)
);
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE result (
    id INTEGER PRIMARY KEY, submission INTEGER NOT NULL REFERENCES submission, reference TEXT NOT NULL,
    version TEXT NOT NULL, status TEXT NOT NULL, seconds REAL NOT NULL, repairs TEXT NOT NULL, messages TEXT NOT NULL,
    notebook BLOB NOT NULL, finished TEXT NOT NULL
);
CREATE INDEX result_of ON result (submission);
CREATE VIEW standing AS
    SELECT s.student, s.exercise, s.number, s.late, s.label, s.handed_in, s.penalty, s.why, r.*
    FROM submission s JOIN result r ON r.submission = s.id
    WHERE s.turn = (SELECT max(turn) FROM submission o WHERE o.student = s.student AND o.exercise = s.exercise)
    AND r.id = (SELECT max(id) FROM result o WHERE o.submission = s.id);
CREATE TABLE mark (
    result INTEGER NOT NULL REFERENCES result, place INTEGER NOT NULL, hidden INTEGER NOT NULL, item TEXT NOT NULL,
    name TEXT NOT NULL, points REAL NOT NULL, earned REAL, status TEXT NOT NULL, expected TEXT NOT NULL,
    received TEXT NOT NULL, message TEXT NOT NULL, seconds REAL NOT NULL, PRIMARY KEY (result, place)
) WITHOUT ROWID;
CREATE TABLE manual (
    id INTEGER PRIMARY KEY, student TEXT NOT NULL, exercise TEXT NOT NULL, name TEXT NOT NULL, answer TEXT NOT NULL,
    points REAL, comment TEXT NOT NULL, who TEXT NOT NULL, at TEXT NOT NULL
);
CREATE INDEX manual_of ON manual (student, exercise, name);
"""
_BY_HAND = """
CREATE TABLE override (
    id INTEGER PRIMARY KEY, student TEXT NOT NULL, exercise TEXT NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL,
    points REAL, reason TEXT NOT NULL, who TEXT NOT NULL, at TEXT NOT NULL
);
CREATE INDEX override_of ON override (student, exercise, name);
CREATE TABLE tick (
    manual INTEGER NOT NULL REFERENCES manual, place INTEGER NOT NULL, criterion TEXT NOT NULL, points REAL NOT NULL,
    given REAL NOT NULL, PRIMARY KEY (manual, place)
) WITHOUT ROWID;
CREATE TABLE reference (digest TEXT PRIMARY KEY, bare TEXT NOT NULL) WITHOUT ROWID;
"""  # since format 2; an override of NULL points: the one before is taken back
_ADDED = (  # to submission, since format 2
    "label TEXT NOT NULL DEFAULT ''",
    "handed_in TEXT NOT NULL DEFAULT ''",
    "extension TEXT NOT NULL DEFAULT ''",
    "penalty REAL NOT NULL DEFAULT 0",
    "why TEXT NOT NULL DEFAULT ''",
)
NAME = "course-gradebook.sqlite"
NBGRADERS = "gradebook.db"  # what nbgrader calls its own, and what this course called its own at first
_PATIENCE = 60.0  # seconds to wait for another who writes
_FIRST = frozenset({"submission", "result", "mark", "manual"})  # the tables of format 1
_F = TypeVar("_F", bound=Callable[..., Any])
_REMEDIES = {
    "full": "free some space and run it again",
    "locked": "let the other program end, and run it again",
    "readonly": "make the file and its folder writable",
    "malformed": "bring back a copy that you kept",
    "not a database": "name another folder",
}


def connect(path: Path) -> sqlite3.Connection:
    """A connection whose errors are sentences; JupyterLab's widgets call from a thread of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(
        path,
        timeout=_PATIENCE,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=0,  # one that two threads take from the cache at once loses the rows of the first
        factory=_ToldConnection,
    )
    db.path = path
    return db


def _sentence(method: _F) -> _F:
    """A cursor's method whose errors that no code can prevent (no space, a lock, damage) are CourseErrors."""

    @wraps(method)
    def told(self: _Told, *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError):
            raise  # a mistake of ours
        except sqlite3.Error as error:
            raise CourseError(trouble(getattr(self.connection, "path"), error)) from error  # noqa: B009

    return told  # type: ignore[return-value]


class _Told(sqlite3.Cursor):
    execute = _sentence(sqlite3.Cursor.execute)
    executemany = _sentence(sqlite3.Cursor.executemany)
    fetchone = _sentence(sqlite3.Cursor.fetchone)
    fetchall = _sentence(sqlite3.Cursor.fetchall)
    __next__ = _sentence(sqlite3.Cursor.__next__)


class _ToldConnection(sqlite3.Connection):
    path: Path

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        return self.cursor(_Told).execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        return self.cursor(_Told).executemany(*arguments)


def trouble(path: Path, error: BaseException) -> str:
    """What went wrong with a gradebook, and what to do."""
    why = first_line(error)
    remedy = next((remedy for word, remedy in _REMEDIES.items() if word in why), "look at the disk, and run it again")
    return (
        f"Expected to read and write the gradebook {path}, and it cannot be opened or used ({why}): {remedy}; "
        "what was saved before stays."
    )


def statements(*schemas: str) -> list[str]:
    """The statements of a schema, one by one."""
    return [statement for schema in schemas for statement in schema.strip().rstrip(";").split(";")]


def _tables_in(db: sqlite3.Connection) -> frozenset[str]:
    rows = db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'")
    return frozenset(name for (name,) in rows.fetchall())


def is_ours(path: Path) -> bool:
    """Whether a file is a gradebook of this course, by its tables and its format."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=_PATIENCE)) as db:
            return bool(db.execute("PRAGMA user_version").fetchone()[0]) and _tables_in(db) >= _FIRST
    except (sqlite3.Error, OSError, ValueError):
        return False


def gradebook_path(folder: Path) -> Path:
    """Where the gradebook of a folder is; one of ours under its old name, nbgrader's, is given its own.

    Where nbgrader has written its tables into that file, ours are copied out and the file stays as it is.
    """
    path, old = folder / NAME, folder / NBGRADERS
    if path.exists() or not old.is_file() or not is_ours(old):
        return path
    try:
        with closing(sqlite3.connect(old, timeout=_PATIENCE, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")  # nobody else writes, and what a killed run left half done is rolled back
            foreign = "alembic_version" in _tables_in(db)
            db.execute("COMMIT")
            if foreign:
                _copy_ours(db, path)
        if not foreign:
            old.rename(path)
    except (sqlite3.Error, OSError) as error:
        path.unlink(missing_ok=True) if old.exists() else None
        raise CourseError(trouble(old, error)) from error
    return path


def _copy_ours(db: sqlite3.Connection, path: Path) -> None:
    """Write a copy of a gradebook without the tables of another program."""
    unfinished = path.with_name(f".unfinished-{path.name}")
    unfinished.unlink(missing_ok=True)
    db.execute("VACUUM INTO ?", (str(unfinished),))
    with closing(sqlite3.connect(unfinished, isolation_level=None)) as copy:
        for name in sorted(_tables_in(copy) - _FIRST):  # of format 1, or it would have its own name
            quoted = name.replace('"', '""')
            copy.execute(f'DROP TABLE "{quoted}"')
        copy.execute("VACUUM")
    unfinished.rename(path)


def prepare(path: Path, db: sqlite3.Connection) -> None:
    """Make the tables of a new file, and what an older format lacks; a CourseError where a file is not ours alone."""
    if foreign := sorted(_tables_in(db).difference(re.findall(r"CREATE TABLE (\w+)", _TABLES + _BY_HAND))):
        raise CourseError(
            f"Expected a gradebook of this course in {path}, got a database with tables of another program "
            f"({', '.join(foreign[:3])}); name another folder with --out, or move that file away."
        )
    made = db.execute("PRAGMA user_version").fetchone()[0]
    if made not in (0, 1, _FORMAT):
        raise CourseError(f"Expected a gradebook of format {_FORMAT} in {path}, got {made}; update the course kit.")
    if made == _FORMAT:
        return
    if made == 1:
        for column in _ADDED:
            db.execute(f"ALTER TABLE submission ADD COLUMN {column}")
        db.execute("DROP VIEW standing")
    for statement in statements(_TABLES, _BY_HAND):
        db.execute(re.sub(r"CREATE (\w+)", r"CREATE \1 IF NOT EXISTS", statement, count=1))
    db.execute(f"PRAGMA user_version = {_FORMAT}")
