"""All worker processes that this incarnation remembers, by session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from learner.ledger import Deliveries, Share, Shares
from learner.sessions import Desired, Session, SessionState
from learner.targets import named
from protocol.messages import Hello

MOST_SHARES = 300
"""Workers whose parts the ledger tells apart."""
MOST_ENDED = 200
"""Workers that are gone are remembered up to this number."""


class Roster:
    """Sessions in the order of their first hellos; `earlier` is what earlier incarnations were delivered."""

    def __init__(self, earlier: Deliveries) -> None:
        self._sessions: dict[str, Session] = {}
        self._numbered = 0
        self._desired: Desired = "play"
        """Of whoever joins."""
        self._earlier, self.others = replace(earlier), Share("others")
        """`others` is the part of workers that are no longer remembered."""

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, session: str) -> Session | None:
        """Return a session, None where it is unknown."""
        return self._sessions.get(session)

    def join(self, hello: Hello, now: float, key: str) -> Session:
        """Take a new session in."""
        self._numbered += 1
        session = Session(hello, now, self._numbered, desired=self._desired, key=key)
        self._sessions[hello.session] = session
        return session

    def desire(self, what: Desired, targets: Sequence[str]) -> tuple[list[Session], list[str]]:
        """Note what is asked of workers, as `Registry.command` says; return which, and unknown targets."""
        if not targets:
            self._desired = what
        if not targets and what == "play":
            for session in self._sessions.values():
                session.desired = what
        matched, unknown = named(self.live(), targets)
        for session in matched:
            session.desired = what
        return matched, unknown

    def forget_ended(self) -> None:
        """Forget those that are gone, but for the last of them."""
        ended = [key for key, session in self._sessions.items() if not session.live]
        for key in ended[: max(0, len(ended) - MOST_ENDED)]:
            self.others += self._sessions.pop(key).share

    def shares(self) -> Shares:
        """Return each worker's part in the ledger; of many, those that came last."""
        sessions = self.all()
        others = sum((session.share for session in sessions[:-MOST_SHARES]), self.others)
        shares = tuple(session.share for session in sessions[-MOST_SHARES:])
        return Shares(self._earlier, (*shares, others))

    def all(self) -> list[Session]:
        """Return all that are remembered, in the order of their hellos."""
        return list(self._sessions.values())

    def live(self) -> list[Session]:
        """Return those that take part."""
        return [session for session in self._sessions.values() if session.live]

    def hosts(self) -> tuple[str, ...]:
        """Return the sessions that can host slots in synchronous mode, in the order of their arrival."""
        return tuple(name for name, session in self._sessions.items() if session.hosts)

    def note_dealt(self, slots: Mapping[str, int]) -> None:
        """Note, for the status, how many slots each session hosts in synchronous mode."""
        for name, session in self._sessions.items():
            session.dealt = slots.get(name, 0)

    def name(self, session: str) -> str:
        """Return how the user is told of a session, as host:pid."""
        if session not in self._sessions:
            return session
        hello = self._sessions[session].hello
        return f"{hello.host}:{hello.pid}"

    def lost(self, session: str) -> bool:
        """Say whether a session is lost: what it hosted may have killed it."""
        return session in self._sessions and self._sessions[session].state is SessionState.LOST

    def knows(self, session: str) -> bool:
        """Say whether a session is remembered."""
        return session in self._sessions

    def belongs(self, session: str, key: str) -> bool:
        """Say whether a session is this key's; one that is unknown may become anybody's."""
        known = self._sessions.get(session)
        return known is None or known.key == key

    def key_of(self, session: str) -> str:
        """Return the public key of a session; empty where it is unknown, or there are no keys."""
        known = self._sessions.get(session)
        return known.key if known else ""
