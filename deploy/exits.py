"""Exit statuses of the `fleet` command."""

from __future__ import annotations

from enum import IntEnum

import typer


class Exit(IntEnum):
    """What the shell is told."""

    OK = 0
    FAILED = 1
    """A check found a difference, or the program itself failed."""
    USAGE = 2
    """A mistake that its user can mend, told in one line."""
    INTERRUPTED = 130
    """Ctrl-C (128 + SIGINT)."""
    TERMINATED = 143
    """SIGTERM (128 + 15)."""


def complain(text: str, status: Exit = Exit.FAILED) -> Exit:
    """Print one line in red, without what a terminal would obey, and return `status`."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    typer.secho(f"fleet: {' '.join(line.split())}", err=True, fg=typer.colors.RED)
    return status
