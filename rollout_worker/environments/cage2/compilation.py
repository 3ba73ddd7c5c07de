"""How functions of this package are compiled: no fastmath, no threads, one cache per version of the sources.

numba's own cache looks only at the file of the cached function, and the kernels inline functions of several
files. So the cache folder carries the hash of all sources that are compiled.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba

_CONFIG: Any = numba.config  # its options are set as attributes

Function = TypeVar("Function", bound=Callable[..., Any])

_PACKAGE: Final = Path(__file__).parent
COMPILED_MODULES: Final = (
    "compilation", "defender_view", "dynamics", "full_view", "kernels", "observation", "randomness",
    "red_agents", "state", "tables",
)  # fmt: skip


def _fingerprint() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    for module in COMPILED_MODULES:
        digest.update((_PACKAGE / f"{module}.py").read_bytes())
    return digest.hexdigest()[:16]


def _cache_folder() -> Path:
    """Find a writable folder: NUMBA_CACHE_DIR, else beside the sources, else in the user's cache."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    beside = _PACKAGE / "__pycache__"
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rollout_fleet"
    for folder in (Path(chosen),) if chosen else (beside, user):
        try:
            path = folder / f"kernels-{_fingerprint()}"
            path.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(path, os.W_OK):
            return path
    raise OSError(f"no folder can be written for compiled kernels; set NUMBA_CACHE_DIR (tried {folder})")


CACHE_FOLDER: Final = _cache_folder()


def compiled(function: Function) -> Function:
    """Compile a function that the kernels call; it becomes part of each kernel."""
    return cast(Function, numba.njit(nogil=True)(function))


def kernel(function: Function) -> Function:
    """Compile a function that Python calls and keep it in the cache (its folder is read only here)."""
    before = _CONFIG.CACHE_DIR
    _CONFIG.CACHE_DIR = str(CACHE_FOLDER)
    try:
        return cast(Function, numba.njit(nogil=True, cache=True)(function))
    finally:
        _CONFIG.CACHE_DIR = before


@contextmanager
def compilation_lock() -> Iterator[None]:
    """One process compiles; the others wait and then load what it stored."""
    with open(CACHE_FOLDER / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
