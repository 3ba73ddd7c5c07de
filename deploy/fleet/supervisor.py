"""The process that brings together what is wanted of a fleet and what is seen of it.

`python -m deploy.fleet.supervisor runs/NAME` is started by `fleet up` and ends when nothing is left to keep:
after `fleet down`, or when the run is complete. It holds nothing that a successor could not find again, so it
may be killed at any moment.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path

from deploy.engines.processes import last_lines
from deploy.fleet.learner_keeper import LearnerKeeper, LearnerOrder
from deploy.fleet.learner_process import learner_process
from deploy.fleet.listener import HEARD_SECONDS, Listener, drained, sessions
from deploy.fleet.pool_engine import fleet_name
from deploy.fleet.pool_keeper import UNSEEN, PoolKeeper, PoolOrder
from deploy.fleet.pool_reconciler import Wish
from deploy.fleet.pool_sizes import PoolSizes
from deploy.fleet.state import Desired, DesiredPool, FleetFolder
from deploy.query import Line
from deploy.settings import Settings, settings_of
from protocol.errors import UserError
from protocol.messages import Command

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2
_WRITE_SECONDS = 1.0
_START_SECONDS = 20.0
_MOST_TARGETS = 100
"""Of one command."""


class Supervisor:
    """Keeps one fleet until nothing is left to keep; its caller holds the supervisor's lock."""

    def __init__(self, folder: FleetFolder, desired: Desired) -> None:
        self.folder, self.desired = folder, desired
        self._before = folder.observed()
        self._writing = threading.Lock()
        self._listener = Listener(desired.learner)
        self._sizes = PoolSizes(self._before.get("pools", {}))
        self._numbers: dict[str, int] = dict(self._before.get("numbers", {}))
        """The next worker of each pool that ever was."""
        self._finished = self._over = False
        self._written_at = 0.0
        config = str(self._before.get("learner", {}).get("config") or desired.learner.config)
        self._keepers: dict[str, PoolKeeper] = {}
        process = learner_process(folder.run, desired.fleet, desired.learner.place)
        self._learner = LearnerKeeper(process, self._learner_order(answers=False), config)

    def run(self, goes_on: Callable[[], bool] = lambda: True) -> None:
        """Keep the fleet until it is down or its run complete, or as long as `goes_on` says."""
        self._listener.start()
        self._learner.start()
        trouble = ""
        if self._before:  # of those who must go, the learner knows who plays
            self._listener.asked.wait(HEARD_SECONDS)
        try:
            while goes_on() and not self._over:
                try:
                    self._look()
                    trouble = ""
                except Exception as error:  # a full disk, a damaged file, a learner of another release
                    if repr(error) != trouble:
                        logger.error("%s", error, exc_info=not isinstance(error, UserError))
                    trouble = repr(error)
                time.sleep(_LOOK_SECONDS)
        finally:
            everyone: list[Listener | LearnerKeeper | PoolKeeper] = [self._listener, self._learner]
            everyone += self._keepers.values()
            for thread in everyone:
                thread.end()
            for thread in everyone:
                thread.join(2.0)
            with suppress(UserError):
                self._write()

    def _look(self) -> None:
        """Pass on what is wanted, and see whether all of it is done."""
        desired = self.folder.desired()
        changed = desired is not None and desired != self.desired
        if desired and changed:
            logger.info("wanted now, generation %d: %s", desired.generation, desired.phase)
            self.desired = desired
            self._write()
        self._listener.learner = self.desired.learner
        learner = self._learner.view
        looked = learner["generation"] == self.desired.generation
        finished = looked and learner["finished"]
        if finished and not self._finished:
            logger.info("the run is complete: the fleet goes down")
        self._finished = finished
        heard = self._listener.answer
        report = heard.report if heard else None
        known, told = (sessions(report), drained(report)) if report else ({}, frozenset[str]())
        current = self._answers
        counts = self._sizes.wanted(self.desired.pools, report, time.monotonic())
        for name in set(self._keepers) - set(self.desired.pools):
            self._keepers.pop(name).end()
        for name, pool in self.desired.pools.items():
            count = 0 if self._ends else counts[name]
            asked = heard.asked if heard else None
            order = PoolOrder(pool, count, self._wish(pool), known, told, asked, current)
            if name in self._keepers:
                self._keepers[name].order = order
            else:
                self._keepers[name] = self._keep(name, order)
        self._learner.order = self._learner_order(current)
        if changed:
            for keeper in (self._learner, *self._keepers.values()):
                keeper.wake()
        if time.monotonic() - self._written_at > _WRITE_SECONDS:
            self._write()
        self._over = self._ends and self._empty and looked and not learner["alive"]

    def _keep(self, name: str, order: PoolOrder) -> PoolKeeper:
        before = dict(self._before.get("pools", {}).get(name, {}))
        before["next"] = self._numbers.get(name, 1)
        run = fleet_name(self.folder.run, self.desired)
        keeper = PoolKeeper(name, run, self.folder.run, order, before, self._write, self._drain)
        keeper.start()
        return keeper

    @property
    def _answers(self) -> bool:
        """Say whether the learner answers that is wanted now, not one before it."""
        heard, learner = self._listener.answer, self._learner
        same = learner.view["config"] == self.desired.learner.config and learner.view.get("alive", False)
        return heard is not None and same and heard.asked > learner.started

    @property
    def _ends(self) -> bool:
        return self._finished or self.desired.phase != "up"

    @property
    def _empty(self) -> bool:
        """Say whether every pool was seen empty since it was to be."""
        return all(
            name in self._keepers
            and self._keepers[name].view["generation"] == self.desired.generation
            and not self._keepers[name].view["members"]
            and (self._keepers[name].view.get("count") == 0)
            for name in self.desired.pools
        )

    def _wish(self, pool: DesiredPool) -> Wish:
        now = self._finished or self.desired.phase == "down"
        return Wish(
            count=0,
            generation=self.desired.generation,
            drain_seconds=0.0 if now else pool.drain_seconds,
            over=self._finished,
        )

    def _learner_order(self, answers: bool) -> LearnerOrder:
        desired = self.desired
        return LearnerOrder(
            config=desired.learner.config if desired.phase == "up" or not self._empty else None,
            settings=_settings(desired.learner.config) if desired.phase == "up" else None,
            generation=desired.generation,
            answers=answers,
        )

    def _drain(self, names: Sequence[str]) -> None:
        """Ask the learner to let workers finish; where it does not hear, they are asked again later."""
        try:
            for first in range(0, len(names), _MOST_TARGETS):
                with Line(self.desired.learner.address, self.desired.learner.key_file) as line:
                    line.ask(Command("drain", tuple(names[first : first + _MOST_TARGETS])))
        except UserError as error:
            logger.warning("drain: %s", error)

    def _write(self) -> None:
        """Bring to the disk what is seen. Raises UserError where that cannot be."""
        with self._writing:
            now = time.monotonic()
            pools = {
                name: {**keeper.view, "error": keeper.error or _slow(keeper.began, now)}
                for name, keeper in list(self._keepers.items())
            }
            for name, reason in self._sizes.reasons.items():
                if name in pools:
                    pools[name] |= {"reason": reason, "scaled": self._sizes.scaled[name]}
            self._numbers |= {name: pool["next"] for name, pool in pools.items() if "next" in pool}
            learner = {**self._learner.view, "error": self._learner.error or _slow(self._learner.began, now)}
            earlier = self._before.get("pools", {})
            try:
                self.folder.write_observed(
                    {
                        "phase": "finished"
                        if self._finished
                        else "down"
                        if self._over
                        else self.desired.phase,
                        "generation": self.desired.generation,
                        "supervisor": os.getpid(),
                        "written_at": time.time(),
                        "learner": {
                            **learner,
                            "answers": self._answers,
                            "address": self.desired.learner.address,
                        },
                        "pools": {
                            name: pools.get(name) or {**UNSEEN, **earlier.get(name, {}), "generation": -1}
                            for name in self.desired.pools
                        },
                        "numbers": self._numbers,
                    }
                )
            except OSError as error:
                raise UserError(f"{self.folder.path} cannot be written: {error.strerror}") from error
            self._written_at = now


@lru_cache(2)
def _settings(config: str) -> Settings:
    return settings_of(config)


def _slow(began: float, now: float) -> str:
    """Return that a turn takes long."""
    return f"has not answered for {now - began:.0f} s" if began and now - began > HEARD_SECONDS else ""


def log_to(file: Path) -> None:
    """Log to the supervisor's log."""
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(handler)


def supervise(folder: FleetFolder, goes_on: Callable[[], bool] = lambda: True, patience: float = 1.0) -> bool:
    """Keep a fleet in this process, unless another one does; return whether it did. Raises UserError."""
    deadline = time.monotonic() + patience
    with ExitStack() as held:
        while not (free := held.enter_context(folder.supervising())) and time.monotonic() < deadline:
            held.close()  # somebody may only have looked whether it is held
            time.sleep(0.05)
        while free and (desired := folder.desired()):
            logger.info("supervisor %d begins: %s", os.getpid(), desired.phase)
            supervisor = Supervisor(folder, desired)
            try:
                supervisor.run(goes_on)
            except BaseException:
                logger.exception("supervisor %d ends", os.getpid())
                raise
            logger.info("supervisor %d ends", os.getpid())
            if not goes_on() or folder.desired() == supervisor.desired:
                return True
        return False


def start_supervisor(folder: FleetFolder) -> None:
    """Start a process that keeps a fleet, where none does. Raises UserError where it does not begin."""
    if folder.supervised():
        return
    command = [sys.executable, "-P", "-m", "deploy.fleet.supervisor", str(folder.run)]
    with folder.log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    deadline = time.monotonic() + _START_SECONDS
    while not folder.supervised():
        if time.monotonic() > deadline or process.poll() is not None:
            raise UserError(f"no supervisor began: {last_lines(folder.log, 1)}; see {folder.log}")
        time.sleep(0.05)


def main(arguments: Sequence[str]) -> int:
    """Keep the fleet of the run whose folder is given."""
    folder = FleetFolder(Path(arguments[0]))
    log_to(folder.log)
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    try:
        return 0 if supervise(folder, lambda: not told.is_set()) else 1
    except UserError as error:
        logger.error("%s", error)
        return 2


if __name__ == "__main__":
    status = main(sys.argv[1:])
    logging.shutdown()
    os._exit(status)  # a thread may hang in an engine
