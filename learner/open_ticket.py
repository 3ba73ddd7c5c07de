"""One outstanding ticket: who has it, whose it may be, and what it has cost so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from learner.hands import Hand

MOST_FAILURES = 3
"""A ticket is issued again after its first two failures, and discarded with the third."""
MOST_STUCK = 3
"""A ticket that is stuck goes to a second and a third worker, then it is discarded."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a ticket may cost before it is given up, or, in exact mode, before the run stops."""

    max_losses: int
    stuck_after_seconds: float
    stop: bool


@dataclass(slots=True)
class OpenTicket:
    """A ticket between its issue and its end."""

    holders: list[Hand] = field(default_factory=list)
    leaving: list[Hand] = field(default_factory=list)
    received: bool = False
    failures: int = 0
    losses: int = 0
    stuck: int = 0
    keys: set[str] = field(default_factory=set)
    """Of the workers that hold it or held it, as far as this learner knows."""
    inherited: bool = False
    """Outstanding at a restart, and not granted since: any key may have it."""

    def may_be_of(self, key: str) -> bool:
        """Say whether the owner of a key may have this ticket."""
        return not key or self.inherited or not self.keys or key in self.keys

    @property
    def strikes(self) -> tuple[int, int, int]:
        """Return failures, losses and how often it was stuck."""
        return self.failures, self.losses, self.stuck

    @strikes.setter
    def strikes(self, counts: tuple[int, int, int]) -> None:
        self.failures, self.losses, self.stuck = counts

    def count_failure(self, final: bool) -> bool:
        """Count a failure, a final one as the last; return whether that is too many."""
        self.failures += 1
        return final or self.failures >= MOST_FAILURES

    def count_loss(self, limits: Limits) -> bool:
        """Count the loss of a worker that was running it; return whether that is too many."""
        self.losses += 1
        return self.losses >= limits.max_losses

    def count_stuck(self) -> bool:
        """Count that no holder makes progress; return whether that is too often."""
        self.stuck += 1
        return self.stuck >= MOST_STUCK
