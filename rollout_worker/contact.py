"""A worker's contact with its learner: how long it has been silent, and the hellos until it knows us."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from protocol.messages import Hello
from rollout_worker.addresses import DIAL_SECONDS, Addresses
from rollout_worker.events import Dial, Instruction, Log, Send

HELLO_SECONDS, HELLO_MOST_SECONDS = 0.1, 2.0
"""First and longest pause between hellos; each doubles the one before, less up to half at random."""


class Contact:
    """Looks for a learner at its addresses in turn, until none has answered for too long."""

    def __init__(
        self, session: str, addresses: Sequence[str], give_up_after_seconds: float, now: float
    ) -> None:
        self.known = False
        """Whether the learner knows this session: heartbeats then, hellos otherwise."""
        self.hello_at = now
        self.elapsed_seconds = 0.0
        """Between the last two ticks, as far as it counts."""
        self.liveness_seconds = math.inf
        """A learner that knows this session is silent from then on."""
        self._addresses, self._give_up_after_seconds = Addresses(addresses), give_up_after_seconds
        self._silent_seconds, self._ticked_at = 0.0, now
        self._hellos = self._dials = 0
        self._jitter = random.Random(session)

    @property
    def several(self) -> bool:
        """Say whether there is another address to turn to."""
        return self._addresses.several

    def heard(self) -> None:
        """Note a word of the learner that this worker follows."""
        self._silent_seconds = 0.0
        self._addresses.heard()

    def tick(self, now: float) -> Iterator[Instruction]:
        """Note that time has passed."""
        before = self._silent_seconds
        # A process that was frozen did neither listen nor play, so a long pause counts little.
        self.elapsed_seconds, self._ticked_at = min(now - self._ticked_at, 2.0), now
        self._silent_seconds += self.elapsed_seconds
        if before < (limit := self.liveness_seconds) <= self._silent_seconds:
            yield Log("warning", f"no word from the learner for {limit:g} s: playing on with what is in hand")

    def given_up(self) -> str:
        """Return why the worker must end, once no learner was heard for too long; "" before."""
        if self._silent_seconds < self._give_up_after_seconds:
            return ""
        return (
            f"no word from a learner at {self._addresses} for {self._silent_seconds:.0f} s: is it "
            "running, and is this the first of its ports? (its run's file `address` says)"
        )

    def missed(self) -> bool:
        """Say, once a tick, whether the learner is to be looked for at another address."""
        patience = self.liveness_seconds if self.known else DIAL_SECONDS
        return self._addresses.silent(self.elapsed_seconds, patience)

    def dial_next(self, why: str, now: float) -> Iterator[Instruction]:
        """Look for the learner at its next address, and say hello there."""
        before = self._addresses.current
        self.lose(now)
        self._dials += 1
        if self._dials & (self._dials - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...
            yield Log("warning", f"{why} at {before}: trying the next address")
        yield Dial(self._addresses.turn())

    def lose(self, now: float) -> None:
        """Note that the learner does not know this session: hellos begin anew."""
        self.known, self.hello_at, self._hellos = False, now, 0

    def greet(self, hello: Hello, now: float) -> Iterator[Instruction]:
        """Say hello, and put off the next one."""
        longest = min(HELLO_SECONDS * 2 ** min(self._hellos, 10), HELLO_MOST_SECONDS)
        pause = self._jitter.uniform(0.5, 1.0) * longest
        self.hello_at, self._hellos = now + pause, self._hellos + 1
        if self._hellos in (3, 6) or self._hellos % 20 == 0:
            yield Log("warning", f"no learner at {self._addresses} yet: waiting (retry in {pause:.1f} s)")
        yield Send(hello)
