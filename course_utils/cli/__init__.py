"""The `course` command: a module for each of its commands, imported when it is asked for.

Exit code 0: fine. 1: a check failed. 2: used wrongly or could not run; a sentence on stderr says why. 130: Ctrl-C.
"""

from __future__ import annotations

import errno
import sys
import warnings
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

from ..errors import CourseError, first_line
from ..grading.processes import without_grammar
from ..loading.threads import wait_asleep

GROUPS = {
    "To learn": ("lab", "status", "check", "reset", "doctor"),
    "About a model of your own": ("audit", "attribute"),
    "To teach": ("release", "roster", "grade", "mark", "override", "book"),
}
COMMANDS = tuple(name for names in GROUPS.values() for name in names)
FILE = click.Path(path_type=Path)
STOPPED = 130  # what a shell expects of a command that was ended by Ctrl-C


class Course(click.Group):
    """A group of commands that tells a CourseError, or what the system refuses, as one sentence and exits with 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in GROUPS.items():
            told = [
                (name, command.get_short_help_str(400)) for name in names if (command := self.get_command(ctx, name))
            ]
            with formatter.section(title):
                formatter.write_dl(told)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f".{name}", __name__), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CourseError as error:
            raise click.UsageError(str(error)) from error
        except OSError as error:  # no room, no permission, too long a name
            if error.errno == errno.EPIPE:  # whoever read the output has stopped: no fault
                raise
            raise click.UsageError(
                f"The system refused what `course {ctx.invoked_subcommand}` needs ({first_line(error)}); put that "
                "right and run it again."
            ) from error
        except (KeyboardInterrupt, click.Abort):
            click.echo("\nStopped.", err=True)
            raise click.exceptions.Exit(STOPPED) from None


@click.group(cls=Course, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="interpretability-course")
@click.pass_context
def main(context: click.Context) -> None:
    """Interpretability for language models on your own machine."""
    wait_asleep()
    if context.invoked_subcommand != "lab":  # which is others' code, and may use all of it
        without_grammar()
        warnings.formatwarning = _as_note
    for stream in (sys.stdout, sys.stderr):  # a console or pipe of an old encoding shows ? for what it cannot
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _as_note(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as a sentence, without a line of our source."""
    return f"Note: {message}\n" if category is UserWarning else _AS_USUAL(message, category, filename, lineno, line)


_AS_USUAL = warnings.formatwarning
