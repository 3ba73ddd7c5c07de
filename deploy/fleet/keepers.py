"""Threads that keep what is wanted of one pool, or of the learner: look, reconcile, carry out.

Each has its own, so that an engine that takes long, or hangs, holds up nobody else. What is wanted goes in as
an immutable order, what is seen comes out as a mapping that is never changed: no lock is needed for either.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from deploy.engines import Engine, Member, WorkerLaunch
from deploy.engines.catalogue import make_engine
from deploy.fleet.file import fit_options
from deploy.fleet.learner_process import LearnerProcess
from deploy.fleet.learner_reconciler import LearnerReconciler
from deploy.fleet.pool_reconciler import End, Life, PoolReconciler, Seen, Start, Wish
from deploy.fleet.state import Desired, DesiredPool
from deploy.settings import Settings
from protocol.errors import UserError

logger = logging.getLogger(__name__)

TURN_SECONDS = 1.0
_QUICK_TURN_SECONDS = 0.2
"""After a turn in which something was done."""
_FORMER_SECONDS = 30.0
"""Between two looks at hosts that left the list and cannot be asked."""
LEAVING = "leaving"
"""State of a member that was let go."""


UNSEEN: Mapping[str, Any] = {"count": None, "members": [], "failures": [], "aside": {}, "despairs": False}


class Keeper(threading.Thread, ABC):
    """A thread that calls `turn` until it is told to end."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.error = ""
        """Why the last turn failed."""
        self.began = 0.0
        """When the present turn began; 0 between turns."""
        self._wake, self._ends = threading.Event(), threading.Event()

    @abstractmethod
    def turn(self) -> bool:
        """Look and act once; return whether something was done. Raises UserError where it cannot."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held."""

    def run(self) -> None:
        """Take turns."""
        while not self._ends.is_set():
            self._wake.clear()
            self.began, acted = time.monotonic(), False
            try:
                acted = self.turn()
                self.error = ""
            except UserError as error:
                self._complain(str(error))
            except OSError as error:
                self._complain(f"{error.strerror}: {error.filename}")
            except Exception as error:
                self._complain(f"unexpected {error!r}: this is a bug, the traceback is in the log", error)
            self.began = 0.0
            self._wake.wait(_QUICK_TURN_SECONDS if acted else TURN_SECONDS)
        with suppress(UserError):
            self.close()

    def wake(self) -> None:
        """Take the next turn now."""
        self._wake.set()

    def end(self) -> None:
        """Take no further turn."""
        self._ends.set()
        self._wake.set()

    def _complain(self, text: str, bug: Exception | None = None) -> None:
        if text != self.error:
            logger.warning("%s: %s", self.name, text, exc_info=bug)
        self.error = text


@dataclass(frozen=True, slots=True)
class PoolOrder:
    """What a pool's keeper is to bring about."""

    pool: DesiredPool
    count: int | None
    wish: Wish
    """Without its count."""
    sessions: Mapping[str, str] = field(default_factory=dict)
    drained: Collection[str] = ()
    asked: float | None = None
    """When the learner was asked for these two; None where it does not answer."""
    current: bool = True
    """Whether it was the learner that is wanted now who answered."""


class PoolKeeper(Keeper):
    """Keeps one pool; `before` is what the supervisor before this one saw of it.

    `publish` brings the view to the disk before anything is done, so that no name is ever given twice and
    a successor knows who was let go; `drain` asks the learner.
    """

    def __init__(
        self,
        name: str,
        run: str,
        folder: Path,
        order: PoolOrder,
        before: Mapping[str, Any],
        publish: Callable[[], None],
        drain: Callable[[Sequence[str]], None],
    ) -> None:
        super().__init__(f"pool {name}")
        self.pool, self._run, self._folder = name, run, folder
        self.order, self._publish, self._drain = order, publish, drain
        leaving = [member["name"] for member in before.get("members", ()) if member["state"] == LEAVING]
        self._state = PoolReconciler(name, int(before.get("next", 1)), leaving)
        self._since, self._launch = int(before.get("since", 0)), before.get("launch")
        self._engine: tuple[DesiredPool, Engine, Engine | None] | None = None
        self._former_at = 0.0
        self._joined = {m["name"]: m["joined_seconds"] for m in before.get("members", ())}
        self._told: set[str] = set()
        self.view: Mapping[str, Any] = {**UNSEEN, **before, "generation": -1}

    def turn(self) -> bool:
        """Look and act once."""
        order = self.order
        engine, former = self._engines(order.pool)
        launch = [list(part) if isinstance(part, tuple) else part for part in order.pool.launch]
        if launch != self._launch:
            self._since, self._launch = (self._state.next if self._launch else 0), launch
        members = list(engine.members())
        orphans = self._orphans(former, {member.name for member in members})
        now, gone = time.monotonic(), [orphan.name for orphan in orphans]
        seen = Seen(members + orphans, order.sessions, gone, order.drained, order.asked)
        wish = replace(order.wish, count=_count(order, engine), since=self._since)
        actions = self._state.step(wish, seen, now)
        self._show(order, wish, members + orphans)
        if actions:
            self._publish()
        for action in actions:
            match action:
                case Start(names, avoid):
                    logger.info("%s: starts %s", self.pool, _some(names))
                    self._state.started(engine.start(names, avoid), time.monotonic())
                case End("drain", names):
                    logger.info("%s: drains %s", self.pool, _some(names))
                    self._drain(names)
                case End(how, names):
                    logger.info("%s: %ss %s", self.pool, how, _some(names))
                    for each in (engine, former) if former else (engine,):
                        each.stop(names, kill=how == "kill")
        self._tell()
        return bool(actions)

    def close(self) -> None:
        """Let go of the engine's connections; the workers go on."""
        if self._engine:
            for engine in self._engine[1:]:
                if engine:
                    engine.close()
            self._engine = None

    def _engines(self, pool: DesiredPool) -> tuple[Engine, Engine | None]:
        """Return the engine as it is wanted, and one for the hosts that left its list."""
        relevant = replace(pool, count=None, min=0, max=None, target="", drain_seconds=0.0, removed=False)
        if self._engine is None or self._engine[0] != relevant:
            self.close()
            engine, former = _engine(self._run, self._folder, self.pool, pool), None
            if pool.former_hosts:
                gone = replace(pool, options={**pool.options, "hosts": pool.former_hosts})
                former = _engine(self._run, self._folder, self.pool, gone)
            self._engine, self._former_at = (relevant, engine, former), 0.0
        return self._engine[1], self._engine[2]

    def _orphans(self, former: Engine | None, known: set[str]) -> list[Member]:
        """Return the workers on hosts that left the list; those hosts may be down, which is no error."""
        now = time.monotonic()
        if former is None or now < self._former_at:
            return []
        try:
            found = [member for member in former.members() if member.name not in known]
        except UserError:
            found = []
        if not found:
            self._former_at = now + _FORMER_SECONDS
        return found

    def _tell(self) -> None:
        """Log the failures that are new."""
        for failure in self._state.failures:
            if failure.name not in self._told:
                where = failure.host or "no host"
                logger.warning("%s on %s: %s", failure.name, where, " ".join(failure.detail.split()))
        self._told = {failure.name for failure in self._state.failures}

    def _show(self, order: PoolOrder, wish: Wish, members: Sequence[Member]) -> None:
        state, details = self._state, {member.name: member.detail for member in members}
        for name, life in state.lives.items():
            if life.joined is not None:
                self._joined.setdefault(name, round(life.joined - life.began, 2))
        self._joined = {name: took for name, took in self._joined.items() if name in state.lives}
        self.view = {
            "engine": order.pool.engine,
            "generation": order.wish.generation,
            "count": wish.count,
            "next": state.next,
            "since": self._since,
            "launch": self._launch,
            "members": [
                {
                    "name": name,
                    "host": life.host,
                    "state": _word(life, order.sessions.get(name, "") if order.current else ""),
                    "detail": details.get(name, ""),
                    "joined_seconds": self._joined.get(name),
                }
                for name, life in state.lives.items()
            ],
            "failures": [asdict(failure) for failure in state.failures],
            "aside": dict(state.aside),
            "despairs": state.despairs,
        }


def engine_of(folder: Path, desired: Desired, pool: str) -> Engine:
    """Return the engine of a pool of the fleet of the run in `folder`. Raises UserError."""
    return _engine(fleet_name(folder, desired), folder, pool, desired.pools[pool])


def fleet_name(folder: Path, desired: Desired) -> str:
    """Return what tells this fleet's workers from those of all others."""
    return f"{folder.name}.{desired.fleet}"


def _engine(run: str, folder: Path, name: str, pool: DesiredPool) -> Engine:
    key = Path(pool.key) if pool.key else None
    launch = WorkerLaunch(run, name, pool.learner, pool.slots, key, pool.allow_env)
    return make_engine(pool.engine, launch, fit_options(pool.engine, pool.options), folder)


def _count(order: PoolOrder, engine: Engine) -> int:
    """Return how many workers are wanted: as the order says, else as many as the engine has room for."""
    if order.count is not None:
        return order.count
    room = getattr(engine, "capacity", None)
    return int(room()) if room else 1


def _word(life: Life, session: str) -> str:
    if life.leaving:
        return LEAVING
    if life.pending:
        return "pending"
    return session or ("running" if life.joined is None else "away")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 5 else f"{', '.join(names[:4])} and {len(names) - 4} others"


@dataclass(frozen=True, slots=True)
class LearnerOrder:
    """What the learner's keeper is to bring about."""

    config: str | None
    """None where no learner is wanted."""
    settings: Settings | None
    """Those of `config`; None where one that is not there is not to be started."""
    generation: int
    answers: bool
    """Whether it was heard of in the last seconds."""


class LearnerKeeper(Keeper):
    """Keeps the learner of a run; `config` is what the one that runs was started with, as far as known."""

    def __init__(self, process: LearnerProcess, order: LearnerOrder, config: str) -> None:
        super().__init__("learner")
        self.order, self._process = order, process
        self._state = LearnerReconciler(config)
        self.started = -math.inf
        """When it was last started, if by us: who answered before was another."""
        self.view: Mapping[str, Any] = {"generation": -1, "finished": False, "config": config}

    def turn(self) -> bool:
        """Look and act once."""
        order, process, now = self.order, self._process, time.monotonic()
        alive = process.alive()
        finished = not alive and order.settings is not None and process.finished(order.settings)
        begins = order.settings is not None and not finished
        wanted = order.config if alive or begins else None
        action = self._state.step(wanted, order.generation, alive, order.answers, now)
        if action == "start" and order.settings and order.config:
            logger.info("learner: starts")
            self.started = time.monotonic()
            process.start(order.config, order.settings)
            alive = True
        elif action:
            logger.info("learner: is asked to end" if action == "stop" else "learner: is killed")
            process.stop(kill=action == "kill")
        failed = self._state.failed
        if failed and not self.view.get("failed"):
            failed = f"{failed}: {process.log(1).removeprefix('fleet: ')}"
            logger.error("learner: %s", failed)
        self.view = {
            "generation": order.generation,
            "alive": alive,
            "finished": finished,
            "failed": failed and (self.view.get("failed") or failed),
            "config": self._state.config,
        }
        return bool(action)

    def close(self) -> None:
        """Let go of connections."""
        self._process.close()
