"""The last lines of this process's log, kept in memory: an operator asks for them over the wire."""

from __future__ import annotations

import logging
from collections import deque

MOST_LINES = 1000
MOST_CHARACTERS = 1000
"""Of a line; the rest is cut off."""


class LogRing(logging.Handler):
    """Keeps the newest lines; may be read from any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=MOST_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, which may have several lines; `logging` holds the lock."""
        self._lines.extend(line[:MOST_CHARACTERS] for line in self.format(record).splitlines())

    def last(self, lines: int, most_bytes: int) -> tuple[str, ...]:
        """Return up to `lines` >= 1 of the newest, the oldest first, together no longer than `most_bytes`."""
        self.acquire()
        newest = list(self._lines)[-lines:]
        self.release()
        kept: list[str] = []
        for line in reversed(newest):
            encoded = line.encode(errors="replace")  # half a surrogate pair has no place in a message
            most_bytes -= len(encoded) + 4
            if most_bytes < 0:
                break
            kept.append(encoded.decode())
        return tuple(reversed(kept))
