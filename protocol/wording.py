"""Words of what is told to people."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return a number of things in words: 1 worker, 2,000 workers."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
