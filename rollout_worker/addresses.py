"""Where a worker looks for its learner: one address, or several in turn."""

from __future__ import annotations

from collections.abc import Sequence

DIAL_SECONDS = 3.0
"""A worker that no learner knows waits for a word at one address for this long before it dials the next."""


class Addresses:
    """The addresses at which the learner may be; `current` is dialled, until it is silent for too long."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._all, self._index, self._silent_seconds = tuple(addresses), 0, 0.0

    @property
    def several(self) -> bool:
        """Say whether there is another to turn to."""
        return len(self._all) > 1

    @property
    def current(self) -> str:
        """Return the address that is dialled now."""
        return self._all[self._index]

    def heard(self) -> None:
        """Note that the learner which this worker follows has answered there."""
        self._silent_seconds = 0.0

    def silent(self, seconds: float, patience_seconds: float) -> bool:
        """Note that so much time went by; return whether it is another address's turn."""
        self._silent_seconds += seconds
        return self.several and self._silent_seconds >= patience_seconds

    def turn(self) -> str:
        """Turn to the next address and return it."""
        self._index, self._silent_seconds = (self._index + 1) % len(self._all), 0.0
        return self.current

    def __str__(self) -> str:
        return " or ".join(self._all)
