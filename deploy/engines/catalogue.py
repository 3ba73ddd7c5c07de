"""The engines by name.

Adding one is a line here, and a module with two classes:
- a frozen dataclass of its options: each field is a key of `[pools.NAME]`, its default the key's; the names
  in `hosts` are expanded before it sees them; its `__post_init__` raises UserError for values that cannot be;
- the engine, made as `Engine(launch, options, folder)` with the run's folder, where files of its own may lie;
  where a pool may leave its count to it, it has a `capacity()`: how many workers there is room for.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

from deploy.engines import Engine, WorkerLaunch
from deploy.plain_values import fitted
from protocol.errors import UserError

_CLASSES: Mapping[str, tuple[str, str]] = {
    "local": ("LocalOptions", "LocalEngine"),
    "ssh": ("SshOptions", "SshEngine"),
    "slurm": ("SlurmOptions", "SlurmEngine"),
}
"""Each in `deploy.engines.NAME`, imported when it is asked for."""

ENGINES = tuple(_CLASSES)
ON_THIS_HOST = frozenset({"local"})
"""Engines whose workers reach a learner that listens on the loopback address."""


def options_class(engine: str) -> type[Any]:
    """Return the class of an engine's options."""
    return cast(type[Any], getattr(import_module(f"deploy.engines.{engine}"), _CLASSES[engine][0]))


def fit_options(engine: str, plain: Mapping[str, Any]) -> Any:
    """Return an engine's options from what `asdict` and JSON made of them. Raises UserError."""
    try:
        return fitted(options_class(fitted(Literal[ENGINES], engine)), plain)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"options of {engine} of another release: {error!r}; fleet up writes them anew"
        ) from error


def make_engine(engine: str, launch: WorkerLaunch, options: Any, folder: Path) -> Engine:
    """Return the engine of a pool; `options` is one of `options_class`, `folder` the run's."""
    made = getattr(import_module(f"deploy.engines.{engine}"), _CLASSES[engine][1])
    return cast(Engine, made(launch, options, folder))
