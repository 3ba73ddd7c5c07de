"""The learner's side of the fleet as one pure state machine: events in, instructions out.

No socket, clock, thread or torch inside. The thread that owns the sockets

1. passes in what it received: to the `membership` what concerns a worker's life, with each send that the
   ROUTER refused, and to the registry all else; `now` is monotonic, in seconds;
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
from typing import Any

from learner.admission import Admission
from learner.config import RunConfig
from learner.evaluation_requests import EVALUATION_CAP
from learner.hold_times import HoldTimes
from learner.instructions import Instruction, Instructions, StopRun
from learner.ledger import Delivery, Ledger, Share
from learner.load import LoadWindow
from learner.membership import Membership
from learner.roster import Roster
from learner.rounds import Rounds, round_seconds
from learner.sessions import Desired, Session
from learner.snapshots import SnapshotQueue
from learner.status import FleetStatus, page
from learner.tickets import TicketOffice
from protocol.messages import Episode, Goodbye, LogRequest, SnapshotRequest, Welcome
from protocol.wording import counted

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
        self._instructions = Instructions()
        self.membership = Membership(
            config, self._admission, self.office, self.roster, self._rounds, self._instructions, now
        )
        self._watch_at = now
        self._stopped = False
        self._holds = HoldTimes(config.stuck_after_seconds)
        self._now = now

    @property
    def ledger(self) -> Ledger:
        """The accounts of all tickets and deliveries."""
        return self.office.ledger

    # Events from workers

    def snapshot_request(self, request: SnapshotRequest, now: float) -> None:
        """Note that a worker asks for weights; `tick` says when to send them."""
        session = self.membership.known(request.session)
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
        self._instructions.log(
            "info", f"an operator asks {which} to {what}: {counted(len(matched), 'worker')}"
        )
        return matched, unknown

    def ask_for_log(self, request: LogRequest, session: Session) -> None:
        """Ask a worker for the end of its log."""
        self._instructions.send(session.hello.session, request)

    def finish(self, reason: str) -> None:
        """Say goodbye to every worker: the run is over."""
        self._stopped = True
        for session in self.roster.live():
            self._instructions.send(session.hello.session, Goodbye(session.hello.session, reason))

    # What comes out

    def tick(self, now: float, drained: bool) -> list[Instruction]:
        """Return all that is to be done now."""
        self._now = now
        if drained:
            self.membership.declare_lost(now)
        self._report_discards()
        spacing = self.round_seconds
        if now >= self._watch_at:
            self._watch_at = now + max(WATCH_SECONDS, spacing)
            self._expire(now)
            self._note_load(now)
        deals = not self._stopped and self.config.mode == "async"
        self._instructions.extend(self._rounds.turn(now, spacing, deals))
        self._instructions.extend(self._snapshots.take(now, self._version_for))
        return self._instructions.take()

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

    @property
    def round_seconds(self) -> float:
        """Return how often all workers may be looked at."""
        return round_seconds(len(self.roster))

    # Parts

    def _status(self, now: float, shown: Sequence[Session]) -> FleetStatus:
        return FleetStatus.of(
            self.welcome.run, self.office, self.roster.all(), now, self._rounds.issue_times, shown
        )

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
                self._instructions.log(
                    "warning", f"{session.name} holds tickets that make no progress: others get them, too"
                )
            if overdue := self._holds.overdue(session, now):
                outstanding = (self.config.max_lag + 1) * self.config.episodes_per_update
                times = max(5.0, 100.0 * overdue / outstanding)
                self._instructions.charge(session.key, "tickets held for too long", times)
                self.membership.refuse(session, f"it holds {overdue} tickets for too long", now)
        self.roster.forget_ended()

    def _report_discards(self) -> None:
        for line in self.office.take_discards():
            self._rounds.stir()
            self._instructions.log("warning", line)
        for book in self.office.books.values():
            if book.stopped and not self._stopped:
                self._stopped = True
                self._instructions.extend([StopRun(book.stopped)])

    def _note_load(self, now: float) -> None:
        ready = [session for session in self.roster.all() if session.takes_tickets]
        slots = sum(session.slots for session in ready)
        self.load.sample(slots, sum(min(session.load, session.slots) for session in ready), now)

    def _version_for(self, name: str, asked: int | None) -> int | None:
        """Return which version a session that waits for weights gets; None where it is gone, or they are."""
        version = self.office.version if asked is None else asked
        session = self.roster.get(name)
        return version if session and session.live and version in self.office.pinned_versions() else None
