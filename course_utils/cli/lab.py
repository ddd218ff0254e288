"""`course lab`: JupyterLab at the lessons."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import click

from ..errors import CourseError, first_line
from ..lesson.own import ROOT, bring_up_to_date
from ..lesson.start import START, write_start

JUPYTER = Path(__file__).parents[1] / "lesson" / "jupyter"  # settings and an extension of JupyterLab, beside the user's
IDLE = 3600  # seconds after which a kernel that does nothing, and that no tab shows, is shut down


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("jupyter_arguments", nargs=-1, type=click.UNPROCESSED)
def lab(jupyter_arguments: tuple[str, ...]) -> None:
    """Open JupyterLab at a page that says what comes next, in your own copy of the course (my/).

    The copies are yours to write in: they are never overwritten. The originals, with their outputs, stay in notebooks/.
    The kernel of a notebook that no tab shows is shut down after an hour in which it did nothing.

    Further arguments go to JupyterLab, for example: course lab --port 9000 --ip 0.0.0.0
    """
    for sentence in bring_up_to_date(ROOT):
        click.echo(sentence, err=True)
    write_start(ROOT)
    from jupyter_core.paths import jupyter_runtime_dir
    from jupyterlab.labapp import LabApp

    try:
        Path(jupyter_runtime_dir()).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:  # Jupyter tells it in sixty lines
        raise CourseError(
            f"Expected to write {jupyter_runtime_dir()}, where Jupyter keeps what runs, and could not "
            f"({first_line(error)}); set JUPYTER_RUNTIME_DIR to a folder that can be written."
        ) from error

    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, not one of the same name elsewhere
    _first_in("JUPYTER_CONFIG_PATH", str(JUPYTER), "")  # no question about news; pages are shown, not edited
    _first_in("PATH", sysconfig.get_path("scripts"), os.defpath)  # so that `course` is found in its terminals and cells
    arguments = [
        f"--ServerApp.root_dir={ROOT}",
        f"--LabApp.default_url=/lab/tree/my/{START}",
        f"--LabApp.extra_labextensions_path={JUPYTER / 'labextensions'}",
        "--ContentsManager.post_save_hook=course_utils.lesson.start.after_save",
        f"--MappingKernelManager.cull_idle_timeout={IDLE}",
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


def _first_in(variable: str, folder: str, usual: str) -> None:
    others = [place for place in os.environ.get(variable, usual).split(os.pathsep) if place and place != folder]
    os.environ[variable] = os.pathsep.join([folder, *others])


def _can_open_browser() -> bool:
    if sys.platform in ("win32", "darwin") or os.environ.get("BROWSER"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
