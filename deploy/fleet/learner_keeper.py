"""The thread that keeps the learner of a run."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.fleet.keeper import Keeper
from deploy.fleet.learner_process import LearnerProcess
from deploy.fleet.learner_reconciler import LearnerReconciler
from deploy.settings import Settings

logger = logging.getLogger(__name__)


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
        self._last_words = ""
        """Of one that died, until another answers."""
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
        if not self._state.deaths:
            self._last_words = ""
        elif not alive:
            self._last_words = process.log(1).removeprefix("fleet: ")
        self.view = {
            "generation": order.generation,
            "alive": alive,
            "finished": finished,
            "failed": failed and (self.view.get("failed") or failed),
            "last_words": self._last_words,
            "config": self._state.config,
        }
        return bool(action)

    def close(self) -> None:
        """Let go of connections."""
        self._process.close()
