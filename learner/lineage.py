"""Which versions a run descends from: each incarnation up to the update that survived it."""

from __future__ import annotations

from collections.abc import Iterable


class Lineage:
    """The incarnations of a run with their last versions; that of this life grows with it."""

    def __init__(self, ancestors: Iterable[tuple[int, int]], incarnation: int, version: int) -> None:
        self.ancestors = tuple((past, upto) for past, upto in ancestors)
        self.incarnation, self.version = incarnation, version
        if any(past >= incarnation for past, _ in self.ancestors):
            raise ValueError(f"incarnation {incarnation} does not follow {self.ancestors}")

    def accepts(self, incarnation: int, number: int) -> bool:
        """Say whether these weights belong to this run.

        A number below an incarnation's first is one that it inherited and served under its own name.
        """
        return any(past == incarnation and number <= upto for past, upto in self.entries())

    def entries(self) -> tuple[tuple[int, int], ...]:
        """Return (incarnation, last version), oldest first; the last is this life up to now."""
        return (*self.ancestors, (self.incarnation, self.version))
