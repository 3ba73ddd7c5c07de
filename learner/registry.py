"""The learner's side of the fleet as one pure state machine: events in, instructions out.

No socket, clock, thread or torch inside. The thread that owns the sockets

1. passes in what it received: `hello`, `heartbeat`, `goodbye`, `snapshot_request`, `episode`, and
   `undeliverable` for a send that the ROUTER refused; `now` is monotonic, in seconds;
2. takes whole batches from the `office` and, when their update is done, passes its version to `publish`; a
   `snapshot` taken then belongs to the weights of that version;
3. calls `tick(now, drained)` once per turn of its loop, at least every 50 ms, and carries out the
   instructions it returns, in order. Events only change the state; all that is to be sent comes from `tick`,
   so the events of one turn share one answer per worker. `drained` says whether nothing that workers said
   can be left unread: only then is a silent worker declared lost, so a learner that was itself stopped loses
   nobody.

After StopRun nothing is granted any more. No event from the network raises or, but for exact mode's tickets
that cannot be played, ends the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from learner.admission import Admission
from learner.conduct import Offence
from learner.config import RunConfig
from learner.evaluation_requests import EVALUATION_CAP
from learner.hands import Listing, sequences
from learner.hold_times import HoldTimes
from learner.instructions import Instruction, Log, Misconduct, Send, StopRun, one_line, printable
from learner.ledger import Delivery, Ledger, Share
from learner.load import LoadWindow
from learner.roster import Roster
from learner.rounds import Rounds, round_seconds
from learner.sessions import Desired, InvalidMove, Session, SessionState
from learner.snapshots import SnapshotQueue
from learner.status import FleetStatus, page
from learner.tickets import TicketOffice
from protocol.messages import (
    MOST_NAME_CHARACTERS,
    Built,
    Episode,
    Goodbye,
    Heartbeat,
    Hello,
    HelloAgain,
    Holdings,
    LogRequest,
    Refuse,
    SnapshotRequest,
    ToWorker,
    Welcome,
)

WATCH_SECONDS = 0.2
"""Between two looks at what time brings."""


class Registry:
    """All workers of a run, and its ticket office.

    `welcome` is what every worker is told, with the run, the incarnation and the environment's spaces;
    `software` is this program's version; `state` is a `snapshot()` to go on from.
    """

    def __init__(
        self,
        config: RunConfig,
        welcome: Welcome,
        software: str,
        now: float,
        state: Mapping[str, Any] | None = None,
        evaluation_cap: int = EVALUATION_CAP,
    ) -> None:
        self.config, self.welcome = config, welcome
        self.office = TicketOffice(config, welcome.incarnation, now, state, evaluation_cap)
        probe, processor = state["probe"] if state else ("", "")
        self._admission = Admission(welcome, software, config, str(probe), str(processor))
        self.load = LoadWindow()
        self.roster = Roster(self.ledger.deliveries)
        self._snapshots = SnapshotQueue(now)
        self._rounds = Rounds(self.office, self.roster, now)
        self._watch_at = self._next_loss = now
        self._instructions: list[Instruction] = []
        self._stopped = False
        self._holds = HoldTimes(config.stuck_after_seconds)
        self._now = now

    @property
    def ledger(self) -> Ledger:
        """The accounts of all tickets and deliveries."""
        return self.office.ledger

    # Events from workers

    def hello(self, hello: Hello, now: float, key: str = "") -> None:
        """Welcome a worker that joins or comes back, and let it keep what nobody else has.

        `key` is the public key of its connection, where there are keys: the session is its own from now on.
        """
        session = self.roster.get(hello.session)
        host, pool, label = (
            printable(name, MOST_NAME_CHARACTERS) for name in (hello.host, hello.pool, hello.label)
        )
        kept = replace(hello, host=host, pool=pool, label=label, holdings=Holdings())
        joins = session is None or session.state is SessionState.LOST
        if session is None:
            session = self.roster.join(kept, now, key)
            self._note(session, "new session")
        elif session.state is SessionState.LOST:
            session.move(SessionState.BUILDING, "hello again", now)
        elif not session.live:
            self._send(session, Refuse(session.error or "this session has said goodbye: start a new worker"))
            return
        session.hello, session.heard_at, session.heartbeat = kept, now, None
        if reason := self._admission.refuses(hello):
            self._refuse(session, reason, now)
            return
        if not self._admissible(session, hello.holdings, now):
            return
        for name, book in self.office.books.items():
            book.claim(session.hands[name], Listing.of(hello.holdings, name))
        if joins:
            self._log("info", f"{session.name} joins with {session.slots} slots")
        self._send(session, self.welcome)

    def heartbeat(self, heartbeat: Heartbeat, now: float) -> None:
        """Take in all that a worker holds and does; the next tick answers."""
        session = self._known(heartbeat.session)
        if session is None:
            return
        if session.heartbeat is not None and heartbeat.number <= session.heartbeat.number:
            return
        if heartbeat.incarnation > self.welcome.incarnation:
            # Whether the run goes on elsewhere is told by its folder: anyone can send a number.
            theirs, ours = heartbeat.incarnation, self.welcome.incarnation
            self._refuse(session, f"it has heard incarnation {theirs} of the run, this one is {ours}", now)
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
                self._log("info", f"{session.name} is {heartbeat.state}")
        except InvalidMove as error:
            self._refuse(session, str(error), now)
            return
        seen = heartbeat.answer if heartbeat.incarnation == self.welcome.incarnation else 0
        if seen > session.answers:
            self._refuse(session, f"it has seen answer {seen}, this learner sent it {session.answers}", now)
            self._note(session, "refused session")
            return
        tickets = (failure.ticket for failure in heartbeat.holdings.failures)
        if failed := sum(ticket.number in session.hands[ticket.sequence].held for ticket in tickets):
            self._note(session, "failed ticket", failed)
        vacant = self._vacant()
        listed = sequences(heartbeat.holdings)
        for name, hand in session.hands.items():
            if hand.says_no_news(heartbeat.holdings, name) or (hand.empty and name not in listed):
                continue
            self.office.books[name].restate(hand, Listing.of(heartbeat.holdings, name), seen, now)
            hand.remember(heartbeat.holdings, name)
        if self._vacant() > vacant:
            self._rounds.stir()
        session.due = True
        self._rounds.note(session)

    def goodbye(self, goodbye: Goodbye, now: float) -> None:
        """Take back the tickets of a worker that leaves; episodes it has just pushed may still arrive."""
        session = self.roster.get(goodbye.session)
        if session is None or not session.live or not self._admissible(session, goodbye.holdings, now):
            return
        session.move(SessionState.LEFT, goodbye.reason, now)
        for name, book in self.office.books.items():
            hand = session.hands[name]
            outbox = hand.outbox | Listing.of(goodbye.holdings, name).outbox
            book.leave(hand, outbox, now + self.config.liveness_seconds)
        self._rounds.stir()
        self._log("info", f"{session.name} leaves: {goodbye.reason}")

    def snapshot_request(self, request: SnapshotRequest, now: float) -> None:
        """Note that a worker asks for weights; `tick` says when to send them."""
        session = self._known(request.session)
        if session is not None:
            session.heard_at = now
            if request.version is None or request.version in self.office.pinned_versions():
                self._snapshots.ask(request.session, request.version)

    def episode(self, episode: Episode, invalid: str = "") -> Delivery:
        """Take an episode in; `invalid` says what is wrong with it, where something is."""
        if not invalid and episode.run != self.welcome.run:
            invalid = f"it belongs to run {episode.run}, this is run {self.welcome.run}"
        session = self.roster.get(episode.session)
        ticket = episode.ticket
        since = session.hands[ticket.sequence].since.get(ticket.number) if session else None
        delivery = self.office.deliver(episode, invalid)
        (session or self.roster.others).deliveries.count(delivery)
        if delivery is Delivery.FIRST and since is not None:
            self._holds.note(self._now - since)
        if session is None or delivery is not Delivery.FIRST:
            self._rounds.stir()
        else:
            self._rounds.note_episode(session)
        return delivery

    def foreign(self, episode: Episode, key: str) -> str:
        """Say what in an episode is another key's, and count it as invalid; empty if nothing is."""
        sender: Session | Share | None = self.roster.get(episode.session)
        if not self.roster.belongs(episode.session, key):
            sender, fault = None, "its session is another key's"
        elif not self.office.books[episode.ticket.sequence].may_be_of(episode.ticket.number, key):
            fault = "its ticket is another key's"
        else:
            return ""
        for deliveries in (self.ledger.deliveries, (sender or self.roster.others).deliveries):
            deliveries.count(Delivery.INVALID)
        return fault

    def expel(self, key: str, reason: str, now: float) -> None:
        """Refuse all workers of a key, telling of them together: there may be thousands."""
        expelled = [session for session in self.roster.live() if session.key == key]
        for session in expelled:
            self._refuse(session, reason, now, log=False)
        if expelled:
            names = ", ".join(session.name for session in expelled[:5])
            self._log("warning", f"{len(expelled):,} workers are refused ({names}): {reason}")

    def undeliverable(self, session: str) -> None:
        """Note that a message could not be sent: the worker is granted nothing until it is heard again."""
        if known := self.roster.get(session):
            known.reachable = False

    # Events from the trainer and the user

    def publish(self, version: int) -> None:
        """Note that an update is done: its batch is consumed. ValueError if it is not the next."""
        self.office.publish(version)
        self._rounds.stir()

    def request_evaluation(self, version: int, episodes: int) -> range:
        """Ask for fresh episodes under exactly this version; return their evaluate numbers."""
        self._rounds.stir()
        return self.office.evaluations.add(version, episodes)

    def command(self, what: Desired, targets: Sequence[str] = ()) -> tuple[list[Session], list[str]]:
        """Ask workers to play, to pause or to drain; return which, and the targets that name none.

        Without targets it holds for all, for those that join later, and to play for those that were drained
        and are gone: whoever started them may do so again.
        """
        matched, unknown = self.roster.desire(what, targets)
        for session in matched:
            session.due = True
            self._rounds.stir()
        which = "all" if not targets else ", ".join(targets)
        self._log("info", f"an operator asks {which} to {what}: {len(matched)} workers")
        return matched, unknown

    def ask_for_log(self, request: LogRequest, session: Session) -> None:
        """Ask a worker for the end of its log."""
        self._send(session, request)

    def finish(self, reason: str) -> None:
        """Say goodbye to every worker: the run is over."""
        self._stopped = True
        for session in self.roster.live():
            self._send(session, Goodbye(session.hello.session, reason))

    # What comes out

    def tick(self, now: float, drained: bool) -> list[Instruction]:
        """Return all that is to be done now."""
        self._now = now
        if drained:
            self._declare_lost(now)
        self._report_discards()
        spacing = self.round_seconds
        if now >= self._watch_at:
            self._watch_at = now + max(WATCH_SECONDS, spacing)
            self._expire(now)
            self._note_load(now)
        deals = not self._stopped and self.config.mode == "async"
        self._instructions += self._rounds.turn(now, spacing, deals)
        self._instructions += self._snapshots.take(now, self._version_for)
        instructions, self._instructions = self._instructions, []
        return instructions

    def snapshot(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON values; it belongs to the newest version's weights."""
        probe = [self._admission.probe, self._admission.processor]
        return {**self.office.snapshot(), "ledger": self.ledger_report(), "probe": probe}

    def ledger_report(self) -> dict[str, Any]:
        """Return the ledger as JSON values, with each worker's part; of many, those that came last."""
        return replace(self.ledger, shares=self.roster.shares()).to_plain()

    def status(self, now: float) -> FleetStatus:
        """Return a picture of the run and all its workers."""
        return self._status(now, self.roster.all())

    def glance(self, now: float) -> FleetStatus:
        """Return the same without the workers: it is taken often."""
        return self._status(now, ())

    def report(self, now: float, first: int = 0) -> dict[str, Any]:
        """Return the status as MessagePack values, with the workers from a number on: as many as fit."""
        sessions = self.roster.all()
        shown, following = page(sessions, first)
        status = self._status(now, shown).to_plain()
        known = {
            "all_workers": len(sessions),
            "next": following,
            "software": self._admission.software,
            "exact": self.config.exact,
            "probe": {"hash": self._admission.probe, "processor": self._admission.processor},
        }
        return status | known

    def refuse(self, session: str, reason: str, now: float) -> None:
        """Refuse a worker for what it did outside the control socket."""
        if (known := self.roster.get(session)) and known.live:
            self._refuse(known, reason, now)
            self._note(known, "refused session")

    @property
    def round_seconds(self) -> float:
        """Return how often all workers may be looked at."""
        return round_seconds(len(self.roster))

    # Parts

    def _status(self, now: float, shown: Sequence[Session]) -> FleetStatus:
        return FleetStatus.of(
            self.welcome.run, self.office, self.roster.all(), now, self._rounds.issue_times, shown
        )

    def _send(self, session: Session, message: ToWorker) -> None:
        self._instructions.append(Send(session.hello.session, message))

    def _log(self, level: Literal["info", "warning", "error"], text: str) -> None:
        self._instructions.append(Log(level, one_line(text)))

    def _stop(self, reason: str) -> None:
        if not self._stopped:
            self._stopped = True
            self._instructions.append(StopRun(reason))

    def _known(self, name: str) -> Session | None:
        """Return a live session; tell any other where it stands."""
        session = self.roster.get(name)
        if session is None or session.state is SessionState.LOST:
            self._instructions.append(Send(name, HelloAgain()))
        elif session.state is SessionState.REFUSED:
            self._send(session, Refuse(session.error))
        elif session.live:
            return session
        return None

    def _admissible(self, session: Session, holdings: Holdings, now: float) -> bool:
        """Refuse a worker that claims more tickets than there are, before they are looked at."""
        if reason := self._admission.refuses_claims(holdings):
            self._refuse(session, reason, now)
            self._note(session, "refused session")
        return not reason

    def _note(self, session: Session, offence: Offence, times: float = 1.0) -> None:
        """Count something against the key of a worker, where there are keys."""
        if session.key:
            self._instructions.append(Misconduct(session.key, offence, times))

    def _refuse(self, session: Session, reason: str, now: float, *, log: bool = True) -> None:
        reason = one_line(reason)
        session.move(SessionState.REFUSED, reason, now)
        session.error = reason
        for name, book in self.office.books.items():
            book.leave(session.hands[name])
        self._rounds.stir()
        self._send(session, Refuse(reason))
        if log:
            self._log("warning", f"{session.name} is refused: {reason}")

    def _admit(self, session: Session, built: Built, now: float) -> bool:
        """Compare what a worker built with what the run needs; refuse it, or note that it fits."""
        if reason := self._admission.refuses_built(built):
            self._refuse(session, reason, now)
            return False
        if difference := self._admission.difference(built):
            self._log("info", f"{session.name}: {difference}; that matters in exact mode only")
        session.admitted = True
        return True

    def _declare_lost(self, now: float) -> None:
        if now <= self._next_loss:
            return
        silent_since = now - self.config.liveness_seconds
        for session in self.roster.live():
            if session.heard_at >= silent_since:
                continue
            running = {name: hand.could_be_running(session.slots) for name, hand in session.hands.items()}
            session.move(SessionState.LOST, "silent", now)
            for name, book in self.office.books.items():
                book.lose(session.hands[name], () if session.lost_before else running[name])
            session.lost_before = True
            self._rounds.stir()
            level: Literal["info", "warning"] = "warning" if session.heartbeat else "info"
            self._log(level, f"{session.name} is lost: silent for {now - session.heard_at:.1f} s")
        heard = (session.heard_at for session in self.roster.live())
        self._next_loss = min(heard, default=now) + self.config.liveness_seconds

    def _expire(self, now: float) -> None:
        """Do what time alone brings about."""
        for book in self.office.books.values():
            book.expire(now)
        for session in self.roster.live():
            stuck = [
                self.office.books[name].unstick(hand, now)
                for name, hand in session.hands.items()
                if hand.stalled_since
            ]
            if any(stuck) and session.heartbeat:
                session.stuck_at_steps = session.heartbeat.steps
                session.due = True
                self._rounds.stir()
                self._log(
                    "warning", f"{session.name} holds tickets that make no progress: others get them, too"
                )
            if overdue := self._holds.overdue(session, now):
                outstanding = (self.config.max_lag + 1) * self.config.episodes_per_update
                self._note(session, "tickets held for too long", max(5.0, 100.0 * overdue / outstanding))
                self._refuse(session, f"it holds {overdue} tickets for too long", now)
        self.roster.forget_ended()

    def _report_discards(self) -> None:
        for line in self.office.take_discards():
            self._rounds.stir()
            self._log("warning", line)
        for book in self.office.books.values():
            if book.stopped:
                self._stop(book.stopped)

    def _vacant(self) -> int:
        """Return how many tickets wait to be issued to whoever is there."""
        return sum(len(book.pool) + len(book.again) for book in self.office.books.values())

    def _note_load(self, now: float) -> None:
        ready = [session for session in self.roster.all() if session.takes_tickets]
        slots = sum(session.slots for session in ready)
        self.load.sample(slots, sum(min(session.load, session.slots) for session in ready), now)

    def _version_for(self, name: str, asked: int | None) -> int | None:
        """Return which version a session that waits for weights gets; None where it is gone, or they are."""
        version = self.office.version if asked is None else asked
        session = self.roster.get(name)
        return version if session and session.live and version in self.office.pinned_versions() else None
