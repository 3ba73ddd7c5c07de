"""What the learner says of itself and its workers, asked again and again by a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from deploy.fleet.state import DesiredLearner
from deploy.query import ask
from protocol.errors import UserError

HEARD_SECONDS = 10.0
"""A learner that answered within this time is there; one at work answers each second."""
_STATUS_SECONDS = 1.0
_LIVE = ("building", "ready", "paused", "draining")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a learner said of itself, and when it was asked and answered."""

    address: str
    report: Mapping[str, Any]
    asked: float
    heard: float


class Listener(threading.Thread):
    """Asks the learner for its status, again and again; what another one said does not count."""

    def __init__(self, learner: DesiredLearner) -> None:
        super().__init__(name="status", daemon=True)
        self.learner = learner
        self._last: Answer | None = None
        self.asked = threading.Event()
        """Whether the first question was answered, or was not."""
        self._ends = threading.Event()

    def run(self) -> None:
        """Ask."""
        while not self._ends.is_set():
            learner, asked = self.learner, time.monotonic()
            with suppress(UserError):
                report = ask(learner.address, "status", learner.key_file)
                self._last = Answer(learner.address, report, asked, time.monotonic())
            self.asked.set()
            self._ends.wait(_STATUS_SECONDS)

    def end(self) -> None:
        """Ask no more."""
        self._ends.set()

    @property
    def answer(self) -> Answer | None:
        """The last one; None where the learner did not answer lately."""
        last = self._last
        lately = last is not None and time.monotonic() - last.heard < HEARD_SECONDS
        return last if last and lately and last.address == self.learner.address else None


def sessions(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the states of the living workers by label."""
    return {w["label"]: w["state"] for w in report["workers"] if w["label"] and w["state"] in _LIVE}


def drained(report: Mapping[str, Any]) -> frozenset[str]:
    """Return the labels of the workers that were told to drain, also of those that have left since."""
    return frozenset(w["label"] for w in report["workers"] if w["label"] and w["desired"] == "drain")
