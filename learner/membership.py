"""Who takes part in a run: workers join, are heard, leave, fall silent or are refused.

What is answered to a heartbeat is not decided here, but once a turn in `learner/rounds.py`.
"""

from __future__ import annotations

from dataclasses import replace

from learner.admission import Admission
from learner.config import RunConfig
from learner.hands import Listing, sequences
from learner.instructions import Instructions, Level, one_line, printable
from learner.roster import Roster
from learner.rounds import Rounds
from learner.sessions import InvalidMove, Session, SessionState
from learner.tickets import TicketOffice
from protocol.messages import (
    MOST_NAME_CHARACTERS,
    Built,
    Goodbye,
    Heartbeat,
    Hello,
    HelloAgain,
    Holdings,
    Refuse,
)
from protocol.wording import counted


class Membership:
    """The lives of the workers of `roster`, by what they say, by silence, and by what others decide."""

    def __init__(
        self,
        config: RunConfig,
        admission: Admission,
        office: TicketOffice,
        roster: Roster,
        rounds: Rounds,
        instructions: Instructions,
        now: float,
    ) -> None:
        self._config, self._admission, self._welcome = config, admission, admission.welcome
        self._office, self._roster, self._rounds = office, roster, rounds
        self._instructions = instructions
        self._next_loss = now

    def known(self, name: str) -> Session | None:
        """Return a live session; tell any other where it stands."""
        session = self._roster.get(name)
        if session is None or session.state is SessionState.LOST:
            self._instructions.send(name, HelloAgain())
        elif session.state is SessionState.REFUSED:
            self._instructions.send(session.hello.session, Refuse(session.error))
        elif session.live:
            return session
        return None

    # What workers say

    def hello(self, hello: Hello, now: float, key: str = "") -> None:
        """Welcome a worker that joins or comes back, and let it keep what nobody else has.

        `key` is the public key of its connection, where there are keys: the session is its own from now on.
        """
        session = self._roster.get(hello.session)
        host, pool, label = (
            printable(name, MOST_NAME_CHARACTERS) for name in (hello.host, hello.pool, hello.label)
        )
        kept = replace(hello, host=host, pool=pool, label=label, holdings=Holdings())
        joins = session is None or session.state is SessionState.LOST
        if session is None:
            session = self._roster.join(kept, now, key)
            self._instructions.charge(session.key, "new session")
        elif session.state is SessionState.LOST:
            session.move(SessionState.BUILDING, "hello again", now)
        elif not session.live:
            reason = session.error or "this session has said goodbye: start a new worker"
            self._instructions.send(session.hello.session, Refuse(reason))
            return
        session.hello, session.heard_at, session.heartbeat = kept, now, None
        if reason := self._admission.refuses(hello):
            self.refuse(session, reason, now)
            return
        if not self._admissible(session, hello.holdings, now):
            return
        for name, book in self._office.books.items():
            book.claim(session.hands[name], Listing.of(hello.holdings, name))
        if joins:
            self._instructions.log("info", f"{session.name} joins with {session.slots} slots")
        self._instructions.send(session.hello.session, self._welcome)

    def heartbeat(self, heartbeat: Heartbeat, now: float) -> None:
        """Take in all that a worker holds and does; the next tick answers."""
        session = self.known(heartbeat.session)
        if session is None:
            return
        if session.heartbeat is not None and heartbeat.number <= session.heartbeat.number:
            return
        if heartbeat.incarnation > self._welcome.incarnation:
            # Whether the run goes on elsewhere is told by its folder: anyone can send a number.
            theirs, ours = heartbeat.incarnation, self._welcome.incarnation
            self.refuse(session, f"it has heard incarnation {theirs} of the run, this one is {ours}", now)
            return
        if not self._admissible(session, heartbeat.holdings, now):
            return
        session.heartbeat = replace(heartbeat, holdings=Holdings())
        session.heard_at, session.reachable = now, True
        session.pace.note(now, heartbeat.episodes, heartbeat.steps, heartbeat.cpu_seconds)
        if heartbeat.built and not session.admitted and not self._admit(session, heartbeat.built, now):
            return
        to = SessionState[heartbeat.state.upper()]
        try:
            if to is not session.state:
                session.move(to, "heartbeat", now)
                self._instructions.log("info", f"{session.name} is {heartbeat.state}")
        except InvalidMove as error:
            self.refuse(session, str(error), now)
            return
        seen = heartbeat.answer if heartbeat.incarnation == self._welcome.incarnation else 0
        if seen > session.answers:
            self.refuse(session, f"it has seen answer {seen}, this learner sent it {session.answers}", now)
            self._instructions.charge(session.key, "refused session")
            return
        self._restate(session, heartbeat, seen, now)
        session.due = True
        self._rounds.note(session)

    def goodbye(self, goodbye: Goodbye, now: float) -> None:
        """Take back the tickets of a worker that leaves; episodes it has just pushed may still arrive."""
        session = self._roster.get(goodbye.session)
        if session is None or not session.live or not self._admissible(session, goodbye.holdings, now):
            return
        session.move(SessionState.LEFT, goodbye.reason, now)
        for name, book in self._office.books.items():
            hand = session.hands[name]
            outbox = hand.outbox | Listing.of(goodbye.holdings, name).outbox
            book.leave(hand, outbox, now + self._config.liveness_seconds)
        self._rounds.stir()
        self._instructions.log("info", f"{session.name} leaves: {goodbye.reason}")

    def undeliverable(self, session: str) -> None:
        """Note that a message could not be sent: the worker is granted nothing until it is heard again."""
        if known := self._roster.get(session):
            known.reachable = False

    # Refused or lost

    def refuse(self, session: Session, reason: str, now: float, *, log: bool = True) -> None:
        """Refuse a worker for good; what it held is issued again."""
        reason = one_line(reason)
        session.move(SessionState.REFUSED, reason, now)
        session.error = reason
        for name, book in self._office.books.items():
            book.leave(session.hands[name])
        self._rounds.stir()
        self._instructions.send(session.hello.session, Refuse(reason))
        if log:
            self._instructions.log("warning", f"{session.name} is refused: {reason}")

    def refuse_by_name(self, session: str, reason: str, now: float) -> None:
        """Refuse a worker for what it did outside the control socket."""
        if (known := self._roster.get(session)) and known.live:
            self.refuse(known, reason, now)
            self._instructions.charge(known.key, "refused session")

    def expel(self, key: str, reason: str, now: float) -> None:
        """Refuse all workers of a key, telling of them together: there may be thousands."""
        expelled = [session for session in self._roster.live() if session.key == key]
        for session in expelled:
            self.refuse(session, reason, now, log=False)
        if expelled:
            names = ", ".join(session.name for session in expelled[:5])
            self._instructions.log(
                "warning", f"refused {counted(len(expelled), 'worker')} ({names}): {reason}"
            )

    def declare_lost(self, now: float) -> None:
        """Take back the tickets of workers that are silent; called once nothing they said can be unread."""
        if now <= self._next_loss:
            return
        silent_since = now - self._config.liveness_seconds
        for session in self._roster.live():
            if session.heard_at >= silent_since:
                continue
            running = {name: hand.could_be_running(session.slots) for name, hand in session.hands.items()}
            session.move(SessionState.LOST, "silent", now)
            for name, book in self._office.books.items():
                book.lose(session.hands[name], () if session.lost_before else running[name])
            session.lost_before = True
            self._rounds.stir()
            level: Level = "warning" if session.heartbeat else "info"
            silent = f"silent for {now - session.heard_at:.1f} s"
            self._instructions.log(level, f"{session.name} is lost: {silent}")
        heard = (session.heard_at for session in self._roster.live())
        self._next_loss = min(heard, default=now) + self._config.liveness_seconds

    # Parts

    def _admissible(self, session: Session, holdings: Holdings, now: float) -> bool:
        """Refuse a worker that claims more tickets than there are, before they are looked at."""
        if reason := self._admission.refuses_claims(holdings):
            self.refuse(session, reason, now)
            self._instructions.charge(session.key, "refused session")
        return not reason

    def _admit(self, session: Session, built: Built, now: float) -> bool:
        """Compare what a worker built with what the run needs; refuse it, or note that it fits."""
        if reason := self._admission.refuses_built(built):
            self.refuse(session, reason, now)
            return False
        if difference := self._admission.difference(built):
            self._instructions.log("info", f"{session.name}: {difference}; that matters in exact mode only")
        session.admitted = True
        return True

    def _restate(self, session: Session, heartbeat: Heartbeat, seen: int, now: float) -> None:
        """Take in what a heartbeat lists; `seen` is the last answer of this incarnation that it knows of."""
        tickets = (failure.ticket for failure in heartbeat.holdings.failures)
        if failed := sum(ticket.number in session.hands[ticket.sequence].held for ticket in tickets):
            self._instructions.charge(session.key, "failed ticket", failed)
        vacant = self._vacant()
        listed = sequences(heartbeat.holdings)
        for name, hand in session.hands.items():
            if hand.says_no_news(heartbeat.holdings, name) or (hand.empty and name not in listed):
                continue
            self._office.books[name].restate(hand, Listing.of(heartbeat.holdings, name), seen, now)
            hand.remember(heartbeat.holdings, name)
        if self._vacant() > vacant:
            self._rounds.stir()

    def _vacant(self) -> int:
        """Return how many tickets wait to be issued to whoever is there."""
        return sum(len(book.pool) + len(book.again) for book in self._office.books.values())
