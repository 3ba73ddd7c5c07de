"""The thread that keeps a pool of workers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from deploy.engines import Engine, Member
from deploy.fleet.keeper import Keeper
from deploy.fleet.pool_engine import pool_engine
from deploy.fleet.pool_reconciler import End, Life, PoolReconciler, Seen, Start, Wish
from deploy.fleet.state import DesiredPool
from protocol.errors import UserError

logger = logging.getLogger(__name__)

_FORMER_SECONDS = 30.0
"""Between two looks at hosts that left the list and cannot be asked."""
_LEAVING = "leaving"
"""State of a member that was let go."""
UNSEEN: Mapping[str, Any] = {"count": None, "members": [], "failures": [], "aside": {}, "despairs": False}
"""The view of a pool before the first look at it."""


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
        leaving = [member["name"] for member in before.get("members", ()) if member["state"] == _LEAVING]
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
            engine, former = pool_engine(self._run, self._folder, self.pool, pool), None
            if pool.former_hosts:
                gone = replace(pool, options={**pool.options, "hosts": pool.former_hosts})
                former = pool_engine(self._run, self._folder, self.pool, gone)
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


def _count(order: PoolOrder, engine: Engine) -> int:
    """Return how many workers are wanted: as the order says, else as many as the engine has room for."""
    if order.count is not None:
        return order.count
    room = getattr(engine, "capacity", None)
    return int(room()) if room else 1


def _word(life: Life, session: str) -> str:
    if life.leaving:
        return _LEAVING
    if life.pending:
        return "pending"
    return session or ("running" if life.joined is None else "away")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 5 else f"{', '.join(names[:4])} and {len(names) - 4} others"
