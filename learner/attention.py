"""Whether the learner may call somebody silent: not before it has read all that was said to it."""

from __future__ import annotations


class Attention:
    """Of the I/O thread, turn by turn, for peers that are lost after `liveness_seconds` of silence."""

    def __init__(self, liveness_seconds: float, now: float) -> None:
        self._liveness_seconds = liveness_seconds
        self._turned_at = self._without_pause_since = now
        self._emptied = False

    def heard_everyone(self, emptied: bool, now: float) -> bool:
        """Say after a turn whether nobody's words can be left unread; `emptied`: it read control empty.

        Two such turns running, because after this process stood still ZeroMQ may bring what came meanwhile
        after the first one. A socket gives every peer its turn: reading for long says it, too, where a flood
        keeps it from empty.
        """
        emptied_again, self._emptied = emptied and self._emptied, emptied
        if now - self._turned_at > self._liveness_seconds / 4:
            self._without_pause_since = now
        self._turned_at = now
        return emptied_again or now - self._without_pause_since > self._liveness_seconds
