"""What is known of workers on hosts that may fall silent: pure, told the answers and the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.engines import Member
from deploy.engines.remote import Process
from deploy.engines.ssh_scripts import HostError

UNKNOWN_SECONDS = 60.0
"""Workers of a host that has not answered for so long count as lost; if they are there afterwards, they are
members again."""


@dataclass(slots=True)
class _Entry:
    host: str
    answered: float
    """When its host last told of it."""
    stopping: bool = False


class Roll:
    """The workers that were started or seen by this process, until their end has been told."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._ended: list[Member] = []

    def host_of(self, name: str) -> str:
        """Return the host of a worker, "" if it is not known."""
        entry = self._entries.get(name)
        return entry.host if entry else ""

    def started(self, name: str, host: str, now: float) -> Member:
        """Note that a worker was started, and return it."""
        self._entries[name] = _Entry(host, now)
        return Member(name, host, "running")

    def stopping(self, name: str) -> None:
        """Note that a worker was asked to end: then its end is nothing to tell."""
        self._entries[name].stopping = True

    def note(self, host: str, answer: Sequence[Process] | HostError, now: float) -> Sequence[Member]:
        """Take a host's answer; return its workers that live, as far as one knows."""
        before = {name: entry for name, entry in self._entries.items() if entry.host == host}
        if isinstance(answer, HostError):
            return [
                Member(name, host, "running", f"state unknown: {answer.reason}")
                for name, entry in before.items()
                if now - entry.answered <= UNKNOWN_SECONDS
                or self._end(name, f"nothing heard of it for {UNKNOWN_SECONDS:.0f} s: {answer.reason}")
            ]
        living = []
        for process in answer:
            known = before.pop(process.name, None)
            if process.alive:
                self._entries[process.name] = _Entry(host, now, process.stopping)
                detail = "is asked to end" if process.stopping else ""
                living.append(Member(process.name, host, "running", detail))
            elif known:
                self._end(process.name, f"ended: {process.last_words or 'its log is empty'}")
        for name in before:
            self._end(name, "gone, and its host knows nothing of it")
        return living

    def tell(self, member: Member) -> None:
        """Let `ended` return this one too."""
        self._ended.append(member)

    def ended(self) -> Sequence[Member]:
        """Return, once, those that ended by themselves, and what else was to be told."""
        told, self._ended = self._ended, []
        return told

    def _end(self, name: str, detail: str) -> bool:
        entry = self._entries.pop(name)
        if not entry.stopping:
            self._ended.append(Member(name, entry.host, "failed", detail))
        return False
