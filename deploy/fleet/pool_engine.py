"""The engine of a pool, as it is wanted."""

from __future__ import annotations

from pathlib import Path

from deploy.engines import Engine, WorkerLaunch
from deploy.engines.catalogue import fit_options, make_engine
from deploy.fleet.state import Desired, DesiredPool


def fleet_name(folder: Path, desired: Desired) -> str:
    """Return what tells this fleet's workers from those of all others."""
    return f"{folder.name}.{desired.fleet}"


def pool_engine(fleet: str, folder: Path, name: str, pool: DesiredPool) -> Engine:
    """Return the engine of the pool `name` of a fleet, whose run is in `folder`. Raises UserError."""
    key = Path(pool.key) if pool.key else None
    launch = WorkerLaunch(fleet, name, pool.learner, pool.slots, key, pool.allow_env)
    return make_engine(pool.engine, launch, fit_options(pool.engine, pool.options), folder)
