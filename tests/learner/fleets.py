"""A registry with a clock, and workers of one run that say and see what a test wants."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from learner.config import RunConfig
from learner.instructions import Instruction, Log, Send
from learner.ledger import Delivery
from learner.registry import Registry
from learner.rounds import DEAL_SECONDS
from protocol.messages import (
    Answer,
    Built,
    Episode,
    Failure,
    Heartbeat,
    Hello,
    Holdings,
    Refuse,
    Version,
    Welcome,
)
from protocol.ranges import to_ranges
from protocol.specs import EnvironmentSpec, PolicySpec, Spaces
from protocol.tickets import Ticket

NOTHING: Any = np.zeros(1, np.float32)
SPACES = Spaces(4, "float32", 2, False, 100)
BUILT = Built(SPACES, "probe-1", "Zen 4")
LIVENESS = 5.0


class Fleet:
    """A registry with a clock, and workers that say and see what a test wants."""

    def __init__(
        self,
        batch: int = 4,
        updates: int = 10,
        max_lag: int = 1,
        exact: bool = False,
        incarnation: int = 1,
        state: dict[str, Any] | None = None,
    ) -> None:
        config = RunConfig(
            episodes_per_update=batch,
            total_episodes=batch * updates,
            max_lag=max_lag,
            exact=exact,
            order="started" if exact else "arrival",
            max_losses=2,
            stuck_after_seconds=10.0,
        )
        environment, policy = EnvironmentSpec("toy", {}, SPACES), PolicySpec(4, 2)
        self.welcome = Welcome("run-1", 7, incarnation, "async", environment, policy, 1.0, LIVENESS)
        self.now = 100.0
        self.registry = Registry(config, self.welcome, "1.4.0", self.now, state)
        self.beats = 0
        self.log: list[str] = []

    def tick(self, drained: bool = True) -> list[Instruction]:
        """Return what is to be done after a moment, log lines apart."""
        self.now += DEAL_SECONDS
        instructions = self.registry.tick(self.now, drained)
        self.log += [line.text for line in instructions if isinstance(line, Log)]
        return [instruction for instruction in instructions if not isinstance(instruction, Log)]

    def hello(self, session: str = "a", slots: int = 2, **fields: Any) -> None:
        hello = Hello(session, f"host-{session}", 11, slots, "1.2.9")
        self.registry.membership.hello(replace(hello, **fields), self.now)

    def beat(
        self,
        session: str = "a",
        answer: int = 0,
        incarnation: int = 1,
        state: Literal["building", "ready", "paused", "draining"] = "ready",
        built: Built | None = BUILT,
        failures: tuple[Failure, ...] = (),
        steps: int = 0,
        **places: set[int],
    ) -> None:
        """Send a heartbeat; `places` are queued, running, outbox and stalled train tickets."""
        self.beats += 1
        trains: dict[str, Any] = {place: {"train": to_ranges(tickets)} for place, tickets in places.items()}
        holdings = Holdings(**trains, failures=failures)
        heartbeat = Heartbeat(
            session, self.beats, incarnation, answer, state, holdings, built=built, steps=steps
        )
        self.registry.membership.heartbeat(heartbeat, self.now)

    def join(self, session: str = "a", slots: int = 2) -> Answer:
        """Let a worker say hello and its first heartbeat; return the answer to that."""
        self.hello(session, slots)
        self.beat(session)
        return answers(self.tick())[session]

    def episode(self, number: int, session: str = "a", version: int = 0, run: str = "run-1") -> Delivery:
        ticket, stamp = Ticket("train", number), Version(1, version)
        return self.registry.episode(
            Episode(run, session, ticket, stamp, True, 1.0, NOTHING, NOTHING, NOTHING, NOTHING)
        )

    def update(self) -> None:
        """Train on the next batch."""
        assert self.registry.office.batches.take() is not None
        self.registry.publish(self.registry.office.version + 1)

    def state(self, session: str = "a") -> str:
        return next(w.state for w in self.registry.status(self.now).workers if w.session == session)


def answers(instructions: list[Instruction]) -> dict[str, Answer]:
    """Return the answer to each worker, of which there is at most one."""
    found = [i for i in instructions if isinstance(i, Send) and isinstance(i.message, Answer)]
    assert len({send.session for send in found}) == len(found)
    return {send.session: send.message for send in found if isinstance(send.message, Answer)}


def granted(answer: Answer) -> list[int]:
    return [number for grant in answer.grants for number in range(grant.start, grant.stop)]


def refusal(instructions: list[Instruction]) -> str:
    (message,) = [i.message for i in instructions if isinstance(i, Send)]
    assert isinstance(message, Refuse)
    return message.reason
