"""What the learner shows of its fleet: an immutable picture of one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from learner.instructions import one_line
from learner.pace import IssueTimes
from learner.sessions import Session, SessionState
from learner.tickets import TicketOffice

MOST_REPORTED = 250
"""Workers that one report tells of, so that it fits in a message."""
_MOST_ERROR_CHARACTERS = 200

Binds = Literal["workers", "pause", "credit", "ticket", "update"]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker, by its last heartbeat."""

    session: str
    number: int
    """Counts the sessions of this incarnation: it tells workers of the same name apart."""
    host: str
    pid: int
    pool: str
    label: str
    state: str
    desired: str
    slots: int
    running: int
    queued: int
    outbox: int
    episodes: int
    steps: int
    version: int | None
    staleness: int | None
    """Versions that it is behind the learner; None in synchronous mode, where it holds none."""
    heartbeat_age_seconds: float
    episodes_per_second: float
    steps_per_second: float
    cpu_percent: float
    """Of one core; these three over the last seconds."""
    resident_bytes: int
    cpu_seconds: float
    error: str

    @classmethod
    def of(cls, session: Session, now: float, version: int) -> WorkerStatus:
        """Describe a session to a learner at this version."""
        beat, hands = session.heartbeat, session.hands.values()
        episodes, steps, cpu = (session.live and session.pace.rates(now)) or (0.0, 0.0, 0.0)
        holds = beat.version.number if beat and beat.version else None
        return cls(
            session=session.hello.session,
            number=session.number,
            host=session.hello.host,
            pid=session.hello.pid,
            pool=session.hello.pool,
            label=session.hello.label,
            state=session.state.name.lower(),
            desired=session.desired,
            slots=session.slots,
            running=session.dealt or sum(len(hand.running & hand.held) for hand in hands),
            queued=sum(hand.load - len(hand.running & hand.held) for hand in hands),
            outbox=sum(len(hand.outbox) for hand in hands),
            episodes=beat.episodes if beat else 0,
            steps=beat.steps if beat else 0,
            version=holds,
            staleness=None if holds is None else max(0, version - holds),
            heartbeat_age_seconds=now - session.heard_at,
            episodes_per_second=episodes,
            steps_per_second=steps,
            cpu_percent=100 * cpu,
            resident_bytes=beat.resident_bytes if beat else 0,
            cpu_seconds=beat.cpu_seconds if beat else 0.0,
            error=one_line(session.error or (beat.error if beat else ""))[:_MOST_ERROR_CHARACTERS],
        )


@dataclass(frozen=True, slots=True)
class BindingTicket:
    """In started order, the oldest ticket that the next batch waits for."""

    number: int
    holders: tuple[str, ...]
    """Who has it, or will be heard to have let go of it; empty while it waits to be issued again."""
    age_seconds: float | None
    """Since it was first issued; None where that was in an earlier incarnation."""
    missing: int
    """Tickets that the batch waits for, this one included."""


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """The run and its workers."""

    run: str
    incarnation: int
    version: int
    updates: int
    binds: Binds
    """What the run waits for: workers, an operator who paused them, episodes that hold back credit
    (--max-lag), one ticket that does, or the update."""
    ticket: BindingTicket | None
    issued: int
    consumed: int
    discarded: int
    received: int
    """Train episodes that wait for their batch."""
    ready: int
    """Workers."""
    ready_slots: int
    processes: frozenset[int]
    """Ids of the ready workers, each on its own host."""
    drained: frozenset[tuple[str, int]]
    """Host and process of those that an operator wants gone."""
    workers: tuple[WorkerStatus, ...]
    """All that are remembered, in the order of their hellos; empty in a `glance`."""

    @classmethod
    def of(
        cls,
        run: str,
        office: TicketOffice,
        sessions: Sequence[Session],
        now: float,
        issued: IssueTimes,
        shown: Sequence[Session],
    ) -> FleetStatus:
        """Describe the fleet, and of its workers those `shown`."""
        account = office.train.account
        ready = [session for session in sessions if session.state is SessionState.READY]
        binds = _binds(office, sessions)
        return cls(
            run=run,
            incarnation=office.lineage.incarnation,
            version=office.version,
            updates=office.config.updates,
            binds=binds,
            ticket=_binding_ticket(office, sessions, now, issued) if binds == "ticket" else None,
            issued=account.issued,
            consumed=len(account.consumed),
            discarded=account.discards,
            received=office.batches.waiting_episodes,
            ready=len(ready),
            ready_slots=sum(session.slots for session in ready),
            processes=frozenset(session.hello.pid for session in ready),
            drained=frozenset((s.hello.host, s.hello.pid) for s in sessions if s.desired == "drain"),
            workers=tuple(WorkerStatus.of(session, now, office.version) for session in shown),
        )

    def to_plain(self) -> dict[str, Any]:
        """Return MessagePack or JSON values; of the workers no session: it is a password."""
        plain = asdict(replace(self, workers=(), processes=frozenset(), drained=frozenset()))
        del plain["processes"], plain["drained"]
        workers = [asdict(worker) for worker in self.workers]
        for worker in workers:
            del worker["session"]
        return {**plain, "workers": workers}


@dataclass(frozen=True, slots=True)
class View:
    """What the trainer's thread may see of the I/O thread's state."""

    status: FleetStatus
    evaluated: int
    """First copies of evaluate episodes."""
    rejected: int
    """Frames that were no valid message."""


def page(sessions: Sequence[Session], first: int) -> tuple[list[Session], int]:
    """Return the sessions of one report, from this number on, and with which the next begins; 0 if none."""
    later = [session for session in sessions if session.number >= first]
    following = later[MOST_REPORTED].number if len(later) > MOST_REPORTED else 0
    return later[:MOST_REPORTED], following


def _binds(office: TicketOffice, sessions: Sequence[Session]) -> Binds:
    if office.batches.whole and office.config.mode == "sync":
        return "update"
    if not any(session.hosts for session in sessions):
        paused = any(session.live and session.desired == "pause" for session in sessions)
        return "pause" if paused else "workers"
    idle = any(session.takes_tickets and session.load < session.slots for session in sessions)
    if office.config.mode == "sync" or not idle or office.room():
        return "workers"
    if office.batches.whole:
        return "update"
    return "credit" if office.config.order == "arrival" or office.batches.missing() is None else "ticket"


def _binding_ticket(
    office: TicketOffice, sessions: Sequence[Session], now: float, issued: IssueTimes
) -> BindingTicket | None:
    missing = office.batches.missing()
    if missing is None:
        return None
    number, count = missing
    names: Mapping[str, str] = {session.hello.session: session.called for session in sessions}
    ticket = office.train.open[number]
    holders = tuple(names.get(hand.session, "a worker") for hand in ticket.holders or ticket.leaving)
    since = issued.of(number)
    return BindingTicket(number, holders, None if since is None else now - since, count)
