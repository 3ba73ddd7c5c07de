"""How much goes over the sockets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Traffic:
    """Frames and their bytes, in and out."""

    messages: int = 0
    size_bytes: int = 0

    def count(self, frame: bytes, receivers: int = 1) -> None:
        """Count a frame that came in, or went out to so many."""
        self.messages += receivers
        self.size_bytes += receivers * len(frame)
