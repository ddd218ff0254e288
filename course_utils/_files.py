"""Files that are written whole or not at all."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from .errors import CourseError, first_line

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date that a zip file knows


def write_folder(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files into a folder, each whole or not at all."""
    for name, content in files.items():
        write_whole(folder / name, content)


def write_zip(files: Mapping[str, bytes], path: Path) -> None:
    """Write files into a zip file, the same bytes for the same files."""
    write_whole(path, zipped(files))


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip file of some files, the same bytes for the same files."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_STORED, 0o644 << 16, 3
            archive.writestr(entry, files[name])
    return memory.getvalue()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it; a CourseError where it cannot be written."""
    unfinished = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".unfinished-", delete=False) as file:
            unfinished = Path(file.name)
            file.write(content)
        unfinished.chmod(0o644)
        unfinished.replace(path)
    except OSError as error:
        raise CourseError(f"Expected to write {path}, and could not ({first_line(error)}).") from error
    finally:
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)
