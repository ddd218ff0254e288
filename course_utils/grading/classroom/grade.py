"""Grade a class: every submission without a mark, on this machine or a cluster, each into the gradebook at once."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version as version_of
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import psutil

from ..._files import write_folder
from ...errors import CourseError, first_line
from ...loading.smollm2 import smollm2_folder
from ...loading.sources import HANDED_OUT
from .. import limited, scratch
from ..handout.release import suspect_of, with_suspect
from ..handout.suspects import FOLDER, named
from ..marks import ALONE, judge
from ..merge import merge
from ..notebook import grade_id, is_hidden, read, write
from ..processes import PACKAGE
from ..result import BROKEN, REFUSED, Limits, Result
from ..runner import pytest_server
from ..runner.run import run
from ..sandbox import bubblewrap, fork_client
from .gradebook import Gradebook
from .standing import Change
from .submissions import Submission, Taken

_AHEAD = 2  # submissions in memory for each that is being run
_AMISS, _FINDING_OUT = dict[tuple[str, str], str](), threading.Lock()  # of a run's references, why they do not pass


@dataclass(frozen=True)
class Work:
    """One submission and all that grading it takes, by value: any machine that has this package can do it."""

    reference: bytes
    submission: bytes
    limits: Limits = field(default_factory=Limits)
    sandboxed: bool = True
    warm: bool = True
    beside: Mapping[str, bytes] = field(default_factory=dict)
    trouble: str = ""  # why there is no submission to be read
    run: str = ""  # which run of the grader asks: what holds here and now is found out once in each


@dataclass
class Report:
    """What a run of the grader did."""

    graded: int = 0  # how many submissions ran (or were refused)
    known: int = 0  # how many had their marks already
    left: tuple[str, ...] = ()  # a sentence for each file that was not taken
    broken: list[str] = field(default_factory=list)  # a sentence for each that could not be run: the next run tries
    changes: list[Change] = field(default_factory=list)  # marks that are others than before on the same submission


def grade_one(work: Work) -> Result:
    """Grade one submission, the same wherever it runs; one that is no notebook gets a result, too, without a point.

    Who loses a mark where the solution would lose one, too (a model that is not there, limits too tight for this
    machine), gets none: the result is BROKEN and says why.
    """
    if work.trouble:
        return refused(work.reference, work.trouble)
    try:
        mine = limited.within(_plain, work.submission)
    except CourseError as error:
        return refused(work.reference, str(error), REFUSED if _can_read(work.reference) else BROKEN)
    result = _run(work, mine)
    if result.passed or result.status == BROKEN:
        return result
    return refused(work.reference, why, BROKEN) if (why := _amiss(work)) else result


def _can_read(reference: bytes) -> bool:
    """Whether notebooks can be read at all, here and now."""
    with suppress(CourseError):
        return bool(limited.within(_plain, reference))
    return False


def _amiss(work: Work) -> str:
    """Why a mark that is lost here and now may be nobody's fault, or "": the solution loses one where this ran."""
    key = work.run, _digest(work.reference)
    with _FINDING_OUT:
        if key not in _AMISS:
            result = _run(work, work.reference)
            told = f"The solution itself does not pass here, so that no mark would be right ({_why(result)})"
            _AMISS[key] = "" if result.passed else f"{told}; mend that, and run this again."
        return _AMISS[key]


def _why(result: Result) -> str:
    """What kept a solution from passing: the mark that tells most."""
    lost = [mark for mark in result.marks if mark.earned is not None and not mark.passed]
    lost.sort(key=lambda mark: mark.message == ALONE)  # which says only that a hidden check is to blame
    if result.messages or not lost:
        return (" ".join(result.messages) or result.status).rstrip(".")
    values = f", expected {lost[0].expected}, received {lost[0].received or 'nothing'}" if lost[0].expected else ""
    return f"{lost[0].check}: {lost[0].message}{values}"


def _run(work: Work, mine: bytes) -> Result:
    with scratch.folder() as folder:
        beside = folder / FOLDER if work.beside else None
        write_folder(work.beside, folder / FOLDER)
        return run(work.reference, mine, work.limits, beside=beside, sandboxed=work.sandboxed, warm=work.warm)


def _plain(submission: bytes) -> bytes:
    """A submission as a notebook of the present format: all that is read later is read fast."""
    return write(read(submission, "the submission"), indent=None)


def refused(reference: bytes, why: str, status: str = REFUSED) -> Result:
    """The result of a submission of which nothing counts, for a reason: the student's to know, if it is theirs."""
    merged = merge(read(reference), read(b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'))
    marks = tuple(
        replace(mark, message="" if mark.earned is None or status == BROKEN else why)
        for _, mark in judge(merged.notebook.cells, {})
    )
    return Result(status, marks, (), (why,), write(merged.notebook), 0.0)


@cache
def engine() -> str:
    """What marks depend on besides the notebooks: this package, to the byte."""
    digest = hashlib.sha256(version_of("interpretability-course").encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def references_in(folder: Path) -> dict[str, bytes]:
    """The notebooks to grade against, by name; a CourseError where there are none."""
    found = {path.stem: path.read_bytes() for path in sorted(folder.glob("*.ipynb"))}
    if not found:
        raise CourseError(f"Expected the solutions in {folder}, found no notebook; name their folder with --reference.")
    return found


def grade(
    taken: Taken,
    book: Gradebook,  # where results go, each as soon as it is there
    references: Mapping[str, bytes],  # the notebooks to grade against, by name
    *,
    limits: Limits = Limits(),  # noqa: B008
    jobs: int = 0,  # how many run at once here; 0 for as many as there are processors
    sandboxed: bool = True,  # whether learners' code is kept in a sandbox
    warm: bool = True,  # whether kernels there are forked from one that has done the imports, where that can be done
    scheduler: str = "",  # the address of a Dask scheduler whose workers do the work; "" for this machine
    force: bool = False,  # grade those with marks as well
    suspects: Mapping[str, str] | None = None,  # who was given which; without it, a submission names its own
    beside: Mapping[str, bytes] | None = None,  # files that lie in `suspects/` where a submission runs
    private: Mapping[str, Mapping[str, str]] | None = None,  # the suspects among these, with their requests' words
    progress: Callable[[], object] = lambda: None,  # called whenever one more is done
) -> Report:
    """Grade what has no mark yet: a new or changed submission, or all where the reference or this package changed.

    A CourseError where there is no sandbox, no cluster at that address, or no model where an exercise loads one.
    """
    report, this = Report(left=taken.left), secrets.token_hex(8)

    def finish(future: Future[Result], submission: Submission, number: int, reference: bytes) -> None:
        try:
            result = future.result()
        except Exception as error:  # whatever became of one, the others go on
            where = f" (temporary files are in {gettempdir()})" * isinstance(error, OSError)  # whose disk may be full
            report.broken.append(f"{submission.student}, {submission.exercise}: {first_line(error)}{where}")
        else:
            if result.status == BROKEN:
                report.broken.append(f"{submission.student}, {submission.exercise}: {' '.join(result.messages)}")
            report.graded += result.status != BROKEN
            hidden = {grade_id(cell) for cell in read(reference).cells if is_hidden(cell)}
            report.changes += book.record(number, _digest(reference), engine(), result, hidden)
        progress()

    with _executor(scheduler, jobs, sandboxed) as (executor, at_once):
        pending: dict[Future[Result], tuple[Submission, int, bytes]] = {}
        for submission in taken.submissions:
            try:
                content, trouble = submission.content(), ""
            except CourseError as error:
                content, trouble = b"", str(error)
            except (OSError, MemoryError) as error:
                told = f"{submission.place} cannot be opened ({first_line(error)}); once it can, run this again."
                report.broken.append(f"{submission.student}, {submission.exercise}: {told}")
                progress()
                continue
            reference = _reference(references[submission.exercise], submission, content, suspects, private or {})
            number = book.take(submission, content)
            report.changes += book.repoint(number, reference, engine())
            if not force and book.is_graded(number, _digest(reference), engine()):
                report.known += 1
                progress()
                continue
            while len(pending) >= _AHEAD * at_once:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    finish(future, *pending.pop(future))
            if b"load_model" in reference and not scheduler:
                smollm2_folder()  # before any sandbox needs it; what fails is told once for all
            if not (scheduler or report.graded or pending):
                _get_ready(at_once, forks=sandboxed and warm)
            work = Work(reference, content, limits, sandboxed, warm, beside or {}, trouble, this)
            pending[executor.submit(grade_one, work)] = submission, number, reference
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                finish(future, *pending.pop(future))
    return report


def _get_ready(at_once: int, *, forks: bool) -> None:
    """Start, side by side, what the first submissions would start one after the other."""
    for pool in (limited.POOL, pytest_server.POOL):
        pool.start(at_once)
    if forks:
        threading.Thread(target=fork_client.trouble, name="first-warm-kernel", daemon=True).start()


def _reference(
    reference: bytes,
    submission: Submission,
    content: bytes,
    suspects: Mapping[str, str] | None,
    private: Mapping[str, Mapping[str, str]],
) -> bytes:
    """The reference for this student: with the suspect that they were given, or else the one that they name."""
    given = suspect_of(reference)
    if not given:
        return reference
    own = named((suspects or {}).get(submission.student, ""))
    if not own:
        try:
            own = limited.within(suspect_of, content)
        except CourseError:
            own = given
    if own == given or not (own in HANDED_OUT or own in private):
        return reference
    return with_suspect(reference, own, private.get(own))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def _executor(scheduler: str, jobs: int, sandboxed: bool) -> Iterator[tuple[Executor, int]]:
    """Who does the work, and how much of it at once; whatever stops us stops it, too."""
    if scheduler:
        with _cluster(scheduler, sandboxed) as found:
            yield found
        return
    if sandboxed:
        needs_sandbox()
    at_once = jobs or os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))
    executor = ThreadPoolExecutor(at_once)
    try:
        yield executor, at_once
    except BaseException:
        with pytest_server.nothing_begins():
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            executor.shutdown(cancel_futures=True)
        raise
    else:
        executor.shutdown()


def needs_sandbox() -> None:
    """Raise a CourseError where there is no sandbox."""
    if why := bubblewrap.trouble():
        bare = "To run it without one, with all of your own rights, say --no-sandbox."
        raise CourseError(f"Expected a sandbox for the students' code, and {why} {bare}")


@contextmanager
def _cluster(scheduler: str, sandboxed: bool) -> Iterator[tuple[Executor, int]]:
    try:
        from distributed import Client
    except ImportError as error:
        raise CourseError("A cluster needs Dask: pip install 'interpretability-course[cluster]'.") from error
    try:
        client: Any = Client(scheduler, timeout=20, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise CourseError(f"Expected a Dask scheduler at {scheduler}, reached none ({first_line(error)}).") from error
    with client:
        workers = client.nthreads()
        if not workers:
            raise CourseError(f"Expected workers at {scheduler}, found none; start some: dask worker {scheduler}.")
        others = {address for address, found in client.run(engine).items() if found != engine()}
        if others:
            raise CourseError(f"Expected this version of the course kit on each worker; {min(others)} has another.")
        if sandboxed:
            client.run(needs_sandbox)
        executor: Any = client.get_executor(pure=False)
        try:
            yield executor, sum(workers.values())
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
