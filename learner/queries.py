"""What an operator asks and commands over the control port, and what is answered; no socket, no clock.

Logs take time: the workers are asked, and their answers passed on together. Who has not answered after
`PATIENCE_SECONDS` is reported as such. Nothing that is kept for an asker grows beyond the bounds below.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from learner.instructions import one_line
from learner.registry import Registry
from learner.targets import named
from protocol.messages import Command, LogLines, LogRequest, Query, Report

PATIENCE_SECONDS = 2.0
MOST_ASKED = 20
"""Workers whose logs one request brings."""
MOST_OPEN = 50
"""Requests for logs that wait at the same time."""
MOST_LOG_BYTES = 600_000
"""Of all the logs in one answer."""
MOST_LINES = 1000
MOST_NAMED = 100
"""Workers and unknown targets that an answer names."""
_MOST_TARGET_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class _OpenRequest:
    """A request for logs, on its way."""

    asker: bytes
    until: float
    names: Mapping[str, str]
    """Of the workers asked, by session."""
    most_bytes: int
    """Of each one's answer."""
    rest: Mapping[str, Any]
    """What else is answered."""
    lines: dict[str, list[str]] = field(default_factory=dict)
    """By session, as they come in."""


class Queries:
    """Answers queries, commands and requests for logs; `figures` adds what only the I/O thread knows."""

    def __init__(self, registry: Registry, figures: Callable[[float], Mapping[str, Any]]) -> None:
        self._registry, self._figures = registry, figures
        self._open: dict[int, _OpenRequest] = {}
        self._number = 0
        self._ready: list[tuple[bytes, Report]] = []

    def take_in(self, message: Query | Command | LogRequest, asker: bytes, now: float) -> None:
        """Take a message of this asker in; `take` returns the answer, at once or later."""
        match message:
            case Query():
                self._ready.append((asker, Report(message.what, self._report(message, now))))
            case Command():
                self._ready.append((asker, Report("command", self._command(message))))
            case LogRequest():
                self._ask_for_logs(message, asker, now)

    def log_lines(self, answer: LogLines) -> None:
        """Take in what a worker answers; one that is late, or was not asked, changes nothing."""
        request = self._open.get(answer.number)
        if request and answer.session in request.names:
            request.lines.setdefault(answer.session, _last(answer.lines, request.most_bytes))

    def take(self, now: float) -> list[tuple[bytes, Report]]:
        """Return the answers that are ready, each with whom it is for."""
        for number, request in list(self._open.items()):
            if len(request.lines) == len(request.names) or now >= request.until:
                del self._open[number]
                logs = [
                    {"worker": name, "lines": request.lines.get(key)} for key, name in request.names.items()
                ]
                self._ready.append((request.asker, Report("log", {"logs": logs, **request.rest})))
        ready, self._ready = self._ready, []
        return ready

    def _report(self, query: Query, now: float) -> Mapping[str, Any]:
        if query.what == "status":
            content = self._registry.report(now, query.first)
            return {**content, **self._figures(now), "clock": time.time()}
        office = self._registry.office
        rejected = self._figures(now)["rejected"]
        ledger = self._registry.ledger_report()
        return {**ledger, "violations": office.check(), "version": office.version, "rejected": rejected}

    def _command(self, command: Command) -> Mapping[str, Any]:
        matched, unknown = self._registry.command(command.what, command.targets)
        return {
            "what": command.what,
            "count": len(matched),
            "workers": [session.number for session in matched],
            "matched": [session.called for session in matched[:MOST_NAMED]],
            "unknown": _shown(unknown),
        }

    def _ask_for_logs(self, request: LogRequest, asker: bytes, now: float) -> None:
        matched, unknown = named(self._registry.roster.live(), request.targets)
        asked = matched[:MOST_ASKED] if len(self._open) < MOST_OPEN else []
        more = [session.called for session in matched[len(asked) :]]
        most_bytes = MOST_LOG_BYTES // max(1, len(asked))
        self._number += 1
        self._open[self._number] = _OpenRequest(
            asker,
            now + PATIENCE_SECONDS,
            {session.hello.session: session.called for session in asked},
            most_bytes,
            {"not_asked": more[:MOST_NAMED], "unknown": _shown(unknown)},
        )
        lines = min(max(request.lines, 1), MOST_LINES)
        for session in asked:
            self._registry.ask_for_log(LogRequest(lines, (), self._number, most_bytes), session)


def _shown(targets: Sequence[str]) -> list[str]:
    return [one_line(target[:_MOST_TARGET_CHARACTERS]) for target in targets[:MOST_NAMED]]


def _last(lines: Sequence[str], most_bytes: int) -> list[str]:
    """Return the last lines, of others' making, that are no longer than this together."""
    kept: list[str] = []
    for line in map(one_line, reversed(lines[-MOST_LINES:])):
        most_bytes -= len(line.encode()) + 4
        if most_bytes < 0:
            break
        kept.append(line)
    return kept[::-1]
