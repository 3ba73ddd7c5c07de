"""Folders that cannot be written, told in one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import FleetError

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


@contextmanager
def storage_told(folder: Path) -> Iterator[None]:
    """Turn the system's errors for a folder that cannot be written into one line. Raises FleetError."""
    try:
        yield
    except OSError as error:
        mend = _MENDS.get(error.errno or 0)
        if mend is None or not Path(error.filename or folder).resolve().is_relative_to(folder.resolve()):
            raise
        what = f"{os.strerror(error.errno or 0)} in {folder}"
        raise FleetError(f"{what}: {mend}, then --resume {folder.name}") from error
