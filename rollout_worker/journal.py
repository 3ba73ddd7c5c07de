"""What this worker played and pushed, a line each in a file of its own: evidence without the learner.

    {"event": "begins", "session": "5f0c…", "pid": 4711}
    {"event": "played", "ticket": ["train", 17], "version": [2, 5], "return": -13.2}
    {"event": "failed", "ticket": ["train", 18], "reason": "ValueError: …"}
    {"event": "pushed", "ticket": ["train", 17]}

Each line is one write to the end of the file, made before what it tells can be seen from outside, so a
process that is killed has told of all that it did.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from protocol.errors import UserError
from protocol.messages import Episode, Failure
from protocol.tickets import Ticket

logger = logging.getLogger(__name__)


class Journal:
    """Writes to `file`; without one it is silent. UserError where the file cannot be written."""

    def __init__(self, file: Path | None, session: str) -> None:
        self._descriptor: int | None = None
        if file is None:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"--journal {file} cannot be written: {error.strerror}") from error
        self._write({"event": "begins", "session": session, "pid": os.getpid()})

    def ended(self, ended: Episode | Failure) -> None:
        """Note an episode that was played to its end, or a ticket that could not be."""
        ticket = [ended.ticket.sequence, ended.ticket.number]
        if isinstance(ended, Failure):
            self._write({"event": "failed", "ticket": ticket, "reason": ended.reason})
            return
        version = [ended.version.incarnation, ended.version.number]
        total = round(float(ended.rewards.sum(dtype=np.float64)), 4)
        self._write({"event": "played", "ticket": ticket, "version": version, "return": total})

    def pushed(self, tickets: Iterable[Ticket]) -> None:
        """Note episodes that are about to be pushed, for the first time or again."""
        for ticket in tickets:
            self._write({"event": "pushed", "ticket": [ticket.sequence, ticket.number]})

    def _write(self, entry: dict[str, Any]) -> None:
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, json.dumps(entry).encode() + b"\n")
        except OSError as error:  # playing goes on: a journal is evidence, not a part of the run
            logger.warning("the journal cannot be written any more: %s", error)
            os.close(self._descriptor)
            self._descriptor = None
