"""Folders and files that cannot be written, told in one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from protocol.errors import FleetError, UserError

_MENDS = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "mount it writable",
    errno.EACCES: "see to its owner and mode",
    errno.EPERM: "see to its owner and mode",
    errno.EIO: "see to the disk",
    errno.EMFILE: "raise the limit (ulimit -Hn) or keep away who takes all connections",
    errno.ESTALE: "mount it again",
}
Kind = Literal["training", "sweep"]
MARKS: Mapping[Kind, str] = {"training": "config.toml", "sweep": "sweep.json"}
"""File by which the folder of each kind is known, and with which --resume can go on."""


@contextmanager
def storage_told(folder: Path) -> Iterator[None]:
    """Turn the system's errors for a folder that cannot be written into one line. Raises FleetError.

    Those of the folders above it count too: it is made in them.
    """
    try:
        yield
    except OSError as error:
        at, root = Path(error.filename or folder).resolve(), folder.resolve()
        what = _what(error, folder) if at.is_relative_to(root) or root.is_relative_to(at) else None
        if what is None:
            raise
        begun = any(os.path.exists(folder / name) for name in MARKS.values())
        again = f"--resume {folder.name}" if begun else "try again"
        raise FleetError(f"{what}, then {again}") from error


@contextmanager
def file_told(option: str, file: Path) -> Iterator[None]:
    """Turn the system's errors for the file of an option into one line. Raises UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{option} {file} cannot be written: {error.strerror}") from error


def _what(error: OSError, folder: Path) -> str | None:
    """Return what is wrong and what mends it; None for an error that no user can mend."""
    number = error.errno or 0
    if number == errno.ENOENT and not os.path.exists(folder):
        return f"{folder} is gone: find out who removed it while it was in use"
    if number in (errno.ENOTDIR, errno.EEXIST):
        obstacle = _nearest(Path(error.filename or folder))
        return None if obstacle.is_dir() else f"{obstacle} is no folder: move it out of the way"
    if mend := _MENDS.get(number):
        place = _nearest(folder)
        return f"{os.strerror(number)} in {Path.cwd() if place == Path() else place}: {mend}"
    return None


def _nearest(path: Path) -> Path:
    """Return a path itself, where there is something, else the next above it."""
    return next(place for place in (path, *path.parents) if os.path.lexists(place))
