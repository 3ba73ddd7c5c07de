"""What a fleet is planned to be: its learner, and pools of workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from deploy.fleet.autoscale import Rule
from deploy.fleet.learner_process import Place
from deploy.settings import Settings
from learner.config import SIZE, Range, check_ranges
from protocol.errors import UserError


@dataclass(frozen=True, slots=True)
class PoolKeys:
    """Keys of `[pools.NAME]` that every engine has."""

    engine: Literal["local", "ssh", "slurm"]
    """Who runs the workers."""
    count: int | None = None
    """Workers; left out, as many as the engine's hosts have room for, or `min` where there is a `target`."""
    min: int = 0
    """The fewest that autoscaling leaves."""
    max: int | None = None
    """The most that `fleet scale` and autoscaling may ask for; a target needs it."""
    target: str = ""
    """learner_busy:0.9 grows and shrinks the pool so that the learner is busy this share of the time."""
    slots: int = 50
    """Environments of each worker."""
    learner: str = ""
    """HOST:PORT where this pool's machines reach the learner, if not `[learner] address`."""
    key: str = ""
    """The workers' key file, on this machine."""
    allow_env: tuple[str, ...] = ()
    """Modules that the workers may import, because they register environments."""
    drain_seconds: float = 600.0
    """Workers that must go may finish their episodes for this long; then they return them."""

    def __post_init__(self) -> None:
        """Refuse numbers that contradict each other."""
        check_ranges(self, {"min": SIZE, "slots": Range(1, 10**6), "drain_seconds": Range(0)})
        most = 10**6 if self.max is None else self.max
        for name, value in (("max", self.max), ("count", self.count)):
            if value is not None and not 0 <= value <= 10**6:
                raise UserError(f"--{name} is {value}; it must be from 0 to 1000000")
        if self.min > most:
            raise UserError(f"--min is {self.min}; it must be at most max, which is {most}")
        if self.count is not None and self.count > most:
            raise UserError(f"--count is {self.count}; it must be at most max, which is {most}")
        if self.target:
            try:
                Rule.of(self.min, self.max, self.target)
            except UserError as error:
                raise UserError(f"--target: {error}") from error
        if self.target and self.count is not None:
            raise UserError("--count contradicts target, which decides how many: leave one of them out")


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """One pool, as the file says."""

    keys: PoolKeys
    options: Any
    """Of its engine's class of options."""
    hosts: int = 0
    """How many it names; 0 where its engine has other ways."""


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """The whole file."""

    name: str
    """Of the run."""
    place: Place
    """Where the learner runs."""
    address: str
    """HOST:PORT that the pools dial; empty where the file leaves that to us."""
    key: str
    """The operator's key file; empty where nothing is encrypted, or the environment names one."""
    settings: Settings
    names_total: bool
    """Whether total_episodes is said, and not the default."""
    pools: Mapping[str, PoolPlan] = field(default_factory=dict)
