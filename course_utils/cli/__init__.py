"""The `course` command: open the lessons, attribute from the terminal, look whether this machine is ready.

Exit code 0: fine. 1: a check failed. 2: used wrongly or could not run; a sentence on stderr says why.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

from ..errors import CourseError
from ..grading.processes import without_grammar
from ..loading.threads import wait_asleep

EXPORTS = ["csv", "canvas", "moodle", "history", "canvas-feedback", "moodle-feedback"]
LESSONS = Path(__file__).resolve().parents[2] / "notebooks"


class Course(click.Group):
    """A command group that tells a CourseError as one sentence and exits with 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CourseError as error:
            raise click.UsageError(str(error)) from error


@click.group(cls=Course, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="interpretability-course")
@click.pass_context
def main(context: click.Context) -> None:
    """Interpretability for language models on your own machine."""
    wait_asleep()
    if context.invoked_subcommand != "lab":  # which is others' code, and may use all of it
        without_grammar()
    for stream in (sys.stdout, sys.stderr):  # a console or pipe of an old encoding shows ? for what it cannot
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("jupyter_arguments", nargs=-1, type=click.UNPROCESSED)
def lab(jupyter_arguments: tuple[str, ...]) -> None:
    """Open JupyterLab at the first lesson.

    Further arguments go to JupyterLab, for example: course lab --port 9000 --ip 0.0.0.0
    """
    lessons = sorted(LESSONS.glob("*.ipynb"))
    if not lessons:
        raise CourseError(f"Expected the lessons in {LESSONS}, found none; install from a clone: pip install -e .")
    from jupyterlab.labapp import LabApp

    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, not one of the same name elsewhere
    _first_on_path(sysconfig.get_path("scripts"))  # so that `course` is found in its terminals and cells
    arguments = [
        f"--ServerApp.root_dir={LESSONS.parent}",
        f"--LabApp.default_url=/lab/tree/notebooks/{lessons[0].name}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",  # nothing asks the network
    ]
    if sys.platform != "win32":  # not a login shell, whose profile may set PATH anew
        shell = os.environ.get("SHELL") or shutil.which("bash") or "sh"
        arguments.append(f"--ServerApp.terminado_settings={ {'shell_command': [shell]} }")
    if getattr(os, "geteuid", lambda: 1)() == 0:
        arguments.append("--allow-root")
    if not _can_open_browser():
        click.echo("No display here: open the address below in a browser.", err=True)
        arguments.append("--no-browser")
    LabApp.launch_instance(argv=[*arguments, *jupyter_arguments])


def _first_on_path(folder: str) -> None:
    others = [place for place in os.environ.get("PATH", os.defpath).split(os.pathsep) if place and place != folder]
    os.environ["PATH"] = os.pathsep.join([folder, *others])


def _can_open_browser() -> bool:
    if sys.platform in ("win32", "darwin") or os.environ.get("BROWSER"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


@main.command()
@click.argument("words", nargs=-1, required=True, metavar="[MODEL] TEXT")
@click.option("--target", help="Score this reply: its tokens' log-probability, in nats.")
@click.option("--contrast", nargs=2, metavar="A B", help="Score the logit of A minus that of B as first reply token.")
@click.option(
    "--method",
    default="occlusion",
    show_default=True,
    help="How tokens are scored: occlusion, deletion, gradient_x_input, integrated_gradients or shapley.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the scores of all tokens as JSON.")
def attribute(
    words: tuple[str, ...], target: str | None, contrast: tuple[str, str] | None, method: str, as_json: bool
) -> None:
    """Show which tokens of TEXT raised or lowered what MODEL says next.

    MODEL is "smollm2" (the default), a suspect such as "model-a", a hub id, a folder, a .gguf file or "ollama:NAME".
    Without --target or --contrast the first five tokens of the model's own reply are scored.
    """
    if len(words) > 2:
        raise CourseError(f"Expected a text, or a model and a text, got {len(words)} arguments; quote the text.")
    model, text = words if len(words) == 2 else ("smollm2", words[0])
    if not text.strip():
        raise CourseError("Expected some text, got an empty one; type at least one word.")
    from ..attribution import token_attribution
    from ..models import load_model

    lm = load_model(model)
    prompt = lm.chat(text) if lm.is_chat else lm.prompt(text)
    result = token_attribution(lm, prompt, method=method, target=target, contrast=contrast)
    if as_json:
        click.echo(json.dumps(_as_json(model, result)))
    else:
        _print(result)


def _as_json(model: str, result: Any) -> dict[str, Any]:
    typed = range(len(result.tokens))[result.user]
    return {
        "model": model,
        "method": result.method,
        "unit": result.unit,
        "value": result.value.tolist(),
        "tokens": [{"token": token, "typed": i in typed} for i, token in enumerate(result.tokens)],
        "outputs": result.to_records(),
    }


def _print(result: Any) -> None:
    from rich.console import Console

    from ..attribution import tokens_text

    console = Console(highlight=False, soft_wrap=True, emoji=False)
    console.print(tokens_text(result))
    console.print()
    console.print(repr(result), markup=False)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Look whether this machine is ready: what is fine, what is not, what to do."""
    from .doctor import examine

    findings = examine()
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings]))
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            mark, colour = {"fine": ("ok  ", "green"), "note": ("note", "yellow"), "bad": ("BAD ", "red")}[
                finding.state
            ]
            click.echo(f"{click.style(mark, fg=colour)}  {finding.what:<{width}}  {finding.detail}")
    sys.exit(1 if any(finding.state == "bad" for finding in findings) else 0)


@main.command()
@click.argument("notebooks", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print what came of it as JSON.")
def check(notebooks: tuple[str, ...], as_json: bool) -> None:
    """Check your answers: each NOTEBOOK afresh, against the exercise's own checks (all exercises without a name).

    A NOTEBOOK is a file or the name of an exercise, such as 08_1_token_attribution. The column s says how many seconds
    an answer and its check took. Your file stays as it is.
    """
    from ..grading.check import as_table, check_all, summary
    from ..grading.check import notebooks as meant

    paths = meant(notebooks)
    if not paths:
        raise CourseError("Expected the exercises in exercises/ or here, found none; give the path of a notebook.")
    from rich.console import Console

    console = Console(highlight=False, emoji=False, markup=False)
    checked = []
    for one in check_all(paths):
        checked.append(one)
        if as_json:
            continue
        if one.result is not None:
            console.print(as_table(one))
            for note in (*one.result.repairs, *one.result.messages):
                console.print(f"note: {note}")
        console.print(summary(one) + "\n", style="bold" if one.code == 0 else None)
    if as_json:
        click.echo(json.dumps([one.as_json() for one in checked]))
    sys.exit(max(one.code for one in checked))


@main.command()
@click.option("--out", type=click.Path(path_type=Path), help="Write the students' bundle into this folder.")
@click.option("--zip", "archive", type=click.Path(path_type=Path), help="Write it into this zip file.")
@click.option(
    "--zips", "archives", type=click.Path(path_type=Path), help="A zip file for each student into this folder."
)
@click.option("--students", type=click.Path(path_type=Path), help="A list of names, one a line: a folder for each.")
@click.option("--roster", type=click.Path(path_type=Path), help="The class, with suspects, from course roster.")
@click.option("--suspect", "suspects", multiple=True, help="A suspect to hand out (repeat it): a name, or a folder.")
@click.option("--exercise", "exercises", multiple=True, help="Release this exercise alone (repeat it for more).")
@click.option("--solutions", "source", type=click.Path(path_type=Path), help="Release those in this folder.")
@click.option("--force", is_flag=True, help="Overwrite exercises of this checkout that have answers in them.")
def release(**options: Any) -> None:
    """Make the exercises from the solutions, without answers and hidden checks.

    Without --out, --zip and --zips the exercises/ of this checkout are made anew. With --roster or --students each gets
    a folder and one of the suspects (model-a, model-b, model-c, or those given), written into the chapter's exercise.
    For --students, who has which stands in a .roster.csv beside the bundle, for you alone and for course grade.
    """
    from ..grading.handout.release import Release, release_to

    for line in release_to(Release(**options)):
        click.echo(line)


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("roster.csv"), show_default=True)
@click.option("--suspect", "suspects", multiple=True, help="A suspect to hand out (repeat it): a name, or a folder.")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
def roster(source: Path, out: Path, suspects: tuple[str, ...], force: bool) -> None:
    """Make the roster of a class: one CSV file that binds platforms' names, suspects, sections and extensions.

    SOURCE is a list of names (one a line), Canvas's gradebook export, Moodle's grading worksheet or list of
    participants, or a roster to be filled up. Everybody gets a suspect. Write extensions into it by hand: a number of
    days, or a time such as 2026-12-01T23:59.
    """
    from ..grading.handout.release import make_roster

    click.echo(make_roster(source, out, suspects, force=force))


@main.command()
@click.argument("submissions", required=False, type=click.Path(path_type=Path))
@click.option("--exercise", default="", help="Grade this exercise alone.")
@click.option("--reference", type=click.Path(path_type=Path), help="The folder of the solutions.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("grades"), show_default=True, help="Marks go here."
)
@click.option("--jobs", type=click.IntRange(1), help="How many run at once (as many as there are processors).")
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=300.0,
    show_default=True,
    help="Seconds for a notebook; a cell has 60 of the processor's, or a fifth of these if that is more.",
)
@click.option("--memory", default="4GB", show_default=True, help="What a notebook's kernel may use.")
@click.option("--no-sandbox", is_flag=True, help="Run the students' code with all of your own rights.")
@click.option("--cold", is_flag=True, help="Start each kernel from nothing, not from one that has done the imports.")
@click.option("--scheduler", default="", metavar="tcp://HOST:PORT", help="Let the workers of this Dask cluster do it.")
@click.option("--roster", type=click.Path(path_type=Path), help="The class, from course roster.")
@click.option("--suspects", type=click.Path(path_type=Path), help="The same as --roster.")
@click.option(
    "--late", default="", metavar="RULE", help='"10% per day, at most 50%", "20% once", "none"; kept for later.'
)
@click.option("--due", multiple=True, metavar="[NAME=]TIME", help="When all, or one, was due: 2026-12-01T23:59; kept.")
@click.option("--force", is_flag=True, help="Grade what has marks already, too.")
@click.option("--against", type=click.Path(path_type=Path), help="Look for copies from this folder of last year, too.")
@click.option("--export", type=click.Choice(EXPORTS), help="Write the marks, or feedback to upload, so.")
@click.option("--title", "titles", multiple=True, metavar="NAME=TITLE", help='As in Canvas: "Token attribution (123)".')
def grade(submissions: Path | None, out: Path, export: str | None, **options: Any) -> None:
    """Grade a class: the notebooks in a folder or zip file, each in a sandbox, into OUT/course-gradebook.sqlite.

    SUBMISSIONS holds student/NAME.ipynb, nbgrader's submitted/, or is a download of Canvas or Moodle. What has marks is
    not run again, so a run that was stopped goes on where it was. Each student's feedback is in OUT/feedback/. Without
    SUBMISSIONS nothing is run: use that with --export, --late and --due. Late work loses a share of the points that the
    exercise is worth, for each day begun; the time is the file's, or Canvas's mark.
    """
    from ..grading.classroom.commands import grade_class

    sys.exit(grade_class(submissions, out, export=export or "", **options))


@main.command()
@click.option("--exercise", default="", help="Read the answers to this exercise alone.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("grades"), show_default=True, help="What grade made."
)
@click.option("--reference", type=click.Path(path_type=Path), help="The folder of the solutions.")
@click.option("--who", default="", help="Your name, for the record (that of your account).")
@click.option("--names", is_flag=True, help="Show whose answer it is.")
@click.option("--all", "everything", is_flag=True, help="Also what has been read before.")
def mark(out: Path, **options: Any) -> None:
    """Read what a person has to read, one answer after the other; each entry is saved at once.

    Type points and a comment, s to skip, b to go back, q to stop. The same with pictures and the whole notebook beside:
    notebooks/instructor_grading_desk.ipynb.
    """
    from ..grading.classroom.commands import mark_class

    mark_class(out, **options)


@main.command()
@click.argument("student")
@click.argument("exercise")
@click.argument("check")
@click.argument("points", required=False, type=float)
@click.option("--reason", default="", help="Why: the student reads it.")
@click.option("--who", default="", help="Your name, for the record (that of your account).")
@click.option("--clear", is_flag=True, help="Take an override back: what the run gave stands again.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("grades"), show_default=True, help="What grade made."
)
def override(student: str, exercise: str, check: str, points: float | None, out: Path, **options: Any) -> None:
    """Give STUDENT other POINTS for a CHECK of an EXERCISE than the run did.

    For example: course override ada 08_3_probing sweep-check 2 --reason "right, in a form that the check does not know"

    It stands however often you grade again, also for a later hand-in (grade then tells you to look again). The
    feedback, the csv export and the history say so.
    """
    from ..grading.classroom.commands import override_mark

    click.echo(override_mark(out, (student, exercise, check), points, **options))
