"""The real state machines of learner and worker against a simulated network, driven by hypothesis.

Each worker has three sockets: control (FIFO both ways), episodes and weights; between sockets nothing
keeps order. A break loses what is in flight on control, and loses, keeps or repeats episodes. Workers
crash, freeze and are told to leave, some tickets break their environment or kill their worker; the learner
crashes and restarts from its last checkpoint. Whatever happened: the laws of the ledger hold at every step,
each ticket counts once on the surviving lineage, each episode was played under weights of this lineage that
its ticket allows, no more tickets are out than the credit gate lets, none is granted that a worker still
lists, nobody is lost whose messages were not read, and once the faults end the run comes to its end, and
nobody holds anything. `test_delivery_rules` takes one rule at a time away and shows that this finds it.
"""

from __future__ import annotations

import json
import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from learner.config import RunConfig
from learner.instructions import Instruction as LearnerInstruction
from learner.instructions import Send as LearnerSend
from learner.instructions import SendSnapshot, StopRun
from learner.ledger import Ledger
from learner.registry import Registry
from protocol.messages import (
    Answer,
    Built,
    Episode,
    Failure,
    Goodbye,
    Heartbeat,
    Hello,
    Holdings,
    Refuse,
    SnapshotRequest,
    ToLearner,
    ToWorker,
    Version,
    Weights,
    Welcome,
)
from protocol.ranges import to_ranges
from protocol.specs import EnvironmentSpec, PolicySpec, Spaces
from protocol.tickets import Ticket
from rollout_worker.events import (
    Abandon,
    Build,
    BuildDone,
    EpisodeFinished,
    Event,
    Forget,
    Push,
    Release,
    Send,
    Start,
    Stop,
    Telemetry,
    Terminate,
    Tick,
    TicketFailed,
)
from rollout_worker.membership import Membership

BATCH, UPDATES = 4, 8
SPACES = Spaces(2, "float32", 2, False, 10)
POLICY = PolicySpec(2, 2)
NOTHING: Any = np.zeros(1, np.float32)


@dataclass
class Worker:
    """A worker process: the real Membership, and what its threads and sockets would hold."""

    membership: Membership
    session: str
    slots: int
    up: deque[ToLearner] = field(default_factory=deque)
    down: deque[ToWorker] = field(default_factory=deque)
    pushed: deque[Episode] = field(default_factory=deque)
    published: Weights | None = None
    connected: bool = True
    frozen: bool = False
    building: bool = False
    passes: int = 0
    steps: int = 0
    running: dict[Ticket, Version] = field(default_factory=dict)
    played_under: dict[Ticket, int] = field(default_factory=dict)
    episodes: dict[Ticket, Episode] = field(default_factory=dict)
    weights: dict[Version, int] = field(default_factory=dict)
    """What the weights of each version really are: the number that the trainer gave them."""
    stopped: Stop | None = None

    def break_connection(self) -> None:
        """Lose what is in flight on control."""
        self.connected = False
        self.up.clear()
        self.down.clear()


class World:
    """One learner, its workers, and the network between them."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.now = config, 100.0
        self.weights, self.trained = [0], 0
        """The weights of each version of the surviving lineage, and the number of the last ones made."""
        self.failing: set[int] = set()
        """Tickets that break their environment, in exact mode only twice."""
        self.killing: set[int] = set()
        """Tickets that kill their worker."""
        self.workers: dict[str, Worker] = {}
        self.joined = 0
        self.incarnation = 0
        self.learner: Registry | None = None
        self.checkpoint: str | None = None
        self.batches: deque[list[Episode]] = deque()
        self.consumed: list[list[Episode]] = []
        """By update, on the surviving lineage."""
        self.starts: Counter[Ticket] = Counter()
        self.failures: Counter[Ticket] = Counter()
        self.listed: dict[str, set[Ticket]] = {}
        """What each worker listed in the last message that this learner had from it, and had issued."""
        self.stop_reason = ""
        self.start_learner()

    # The learner

    def start_learner(self) -> None:
        """Start it, from the last checkpoint if there is one."""
        self.incarnation += 1
        self.listed = {}
        state = json.loads(self.checkpoint) if self.checkpoint else None
        kept = state["version"] if state else 0
        rolled_back = sum(map(len, self.consumed[kept:]))
        del self.consumed[kept:], self.weights[kept + 1 :]
        environment = EnvironmentSpec("toy", {}, SPACES)
        stuck = self.config.stuck_after_seconds
        welcome = Welcome("run", 1, self.incarnation, "async", environment, POLICY, 1.0, 5.0, stuck)
        self.learner = Registry(self.config, welcome, "0.1.0", self.now, state)
        self.learner.ledger.rolled_back += rolled_back

    def crash_learner(self) -> None:
        """Kill it: received episodes, unpublished updates and everything in flight is gone."""
        self.learner = None
        self.batches.clear()
        for worker in self.workers.values():
            worker.down.clear()
            worker.up.clear()
            worker.pushed.clear()
            worker.published = None

    def turn(self) -> None:
        """Let the learner's loop go round once."""
        if self.learner is None:
            return
        while (batch := self.learner.office.batches.take()) is not None:
            self.batches.append(batch)
        unread = {worker.session for worker in self.workers.values() if worker.connected and worker.up}
        heard = {session for session in unread if not self.learner.roster.lost(session)}
        for instruction in self.learner.tick(self.now, drained=not unread):
            self.obey_learner(self.learner, instruction)
        assert not any(map(self.learner.roster.lost, heard)), "one is lost whose messages were not read"

    def obey_learner(self, learner: Registry, instruction: LearnerInstruction) -> None:
        """Carry out what the registry wants."""
        match instruction:
            case LearnerSend(session, message):
                self.send_down(learner, session, message)
            case SendSnapshot(session, version):
                assert version in learner.office.pinned_versions()
                self.send_down(learner, session, self.weights_of(version))
            case StopRun(reason):
                self.stop_reason = reason

    def send_down(self, learner: Registry, session: str, message: ToWorker) -> None:
        """Send without blocking; to a peer that is not there it fails."""
        assert not isinstance(message, Refuse), message
        if isinstance(message, Answer):
            self.check_grants(learner, message)
        worker = self.workers.get(session)
        if worker is None or not worker.connected:
            learner.membership.undeliverable(session)
        else:
            worker.down.append(message)

    def check_grants(self, learner: Registry, answer: Answer) -> None:
        """Assert that nobody still lists what is granted, but where it is stuck there."""
        for grant in answer.grants:
            for number in range(grant.start, grant.stop):
                stuck = learner.office.books[grant.sequence].open[number].stuck
                for session, listed in self.listed.items():
                    there = learner.roster.knows(session) and not learner.roster.lost(session)
                    still = there and Ticket(grant.sequence, number) in listed
                    assert stuck or not still, f"{grant.sequence}:{number} is granted, {session} lists it"

    def weights_of(self, version: int) -> Weights:
        """Return the weights of a version as this learner publishes them."""
        arrays = {"content": np.array(self.weights[version])}
        return Weights("run", Version(self.incarnation, version), POLICY.fingerprint(), arrays)

    def update(self, checkpoint: bool) -> None:
        """Train on the next batch, publish its version, and perhaps write a checkpoint."""
        if self.learner is None or not self.batches:
            return
        batch = self.batches.popleft()
        self.consumed.append(batch)
        self.trained += 1
        self.weights.append(self.trained)
        version = len(self.consumed)
        self.learner.publish(version)
        if checkpoint:
            self.checkpoint = json.dumps(self.learner.snapshot())
        for worker in self.workers.values():
            worker.published = self.weights_of(version)

    # The workers

    def start_worker(self, slots: int) -> Worker:
        """Start a worker process."""
        self.joined += 1
        session = f"worker-{self.joined}"
        hello = Hello(session, "host", self.joined, slots, "0.1.0")
        worker = Worker(Membership(hello, self.now, give_up_after_seconds=math.inf), session, slots)
        self.workers[session] = worker
        return worker

    def tell(self, worker: Worker, event: Event) -> None:
        """Pass an event to a worker's membership and carry out what it wants."""
        for instruction in worker.membership.handle(event, self.now):
            match instruction:
                case Send(message):
                    worker.up.append(message)
                case Build():
                    worker.building = True
                case Start(ticket, version):
                    assert version in worker.weights and ticket not in worker.running
                    started = self.config.order == "started"
                    assert version.number >= self.floor(ticket) or not started, "begun under old weights"
                    assert len(worker.running) < worker.slots
                    worker.running[ticket] = version
                    worker.played_under[ticket] = worker.weights[version]
                    self.starts[ticket] += 1
                case Abandon(tickets):
                    for ticket in tickets:
                        worker.running.pop(ticket, None)
                case Push(tickets):
                    worker.pushed.extend(worker.episodes[ticket] for ticket in tickets)
                case Forget(tickets):
                    for ticket in tickets:
                        worker.episodes.pop(ticket, None)
                case Release(versions):
                    for version in versions:
                        worker.weights.pop(version, None)
                case Stop():
                    worker.stopped = instruction

    def tick_workers(self) -> None:
        """Let every worker's membership thread go round."""
        for worker in list(self.workers.values()):
            worker.passes += not worker.frozen
            worker.steps += 0 if worker.frozen else len(worker.running)
            self.tell(worker, Tick(Telemetry(passes=worker.passes, steps=worker.steps)))
            if worker.stopped and not worker.up and not worker.pushed:
                del self.workers[worker.session]

    def end(self, worker: Worker, ticket: Ticket) -> None:
        """Let a running ticket end: as an episode, as a failure, or with its worker."""
        version = worker.running.pop(ticket)
        if ticket.number in self.killing:
            self.workers.pop(worker.session, None)  # two of its tickets may kill it at once
        elif ticket.number in self.failing and not (self.config.exact and self.failures[ticket] == 2):
            self.failures[ticket] += 1
            self.tell(worker, TicketFailed(Failure(ticket, "it broke")))
        else:
            content = float(worker.played_under.pop(ticket))
            worker.episodes[ticket] = Episode(
                "run", worker.session, ticket, version, True, content, NOTHING, NOTHING, NOTHING, NOTHING
            )
            self.tell(worker, EpisodeFinished(ticket))

    # The network

    def deliver_up(self, worker: Worker, count: int) -> None:
        """Carry control messages to the learner."""
        while worker.connected and self.learner and worker.up and count:
            count -= 1
            message = worker.up.popleft()
            match message:
                case Hello() as hello:
                    self.learner.membership.hello(hello, self.now)
                case Heartbeat() as heartbeat:
                    self.learner.membership.heartbeat(heartbeat, self.now)
                case SnapshotRequest() as request:
                    self.learner.snapshot_request(request, self.now)
                case Goodbye() as goodbye:
                    self.learner.membership.goodbye(goodbye, self.now)
            if isinstance(message, Hello | Heartbeat):
                books = self.learner.office.books
                listed = tickets_in(message.holdings)
                self.listed[worker.session] = {t for t in listed if t.number in books[t.sequence].open}
            elif isinstance(message, Goodbye):
                self.listed.pop(worker.session, None)

    def deliver_down(self, worker: Worker, count: int) -> None:
        """Carry control messages to a worker."""
        while worker.connected and worker.down and count:
            count -= 1
            message = worker.down.popleft()
            assert not isinstance(message, Refuse | Goodbye) or self.finished, message
            if isinstance(message, Weights):
                worker.weights[message.version] = int(message.arrays["content"])
            self.tell(worker, message)  # type: ignore[arg-type]  # a Report is never sent here

    def deliver_episodes(self, worker: Worker, count: int) -> None:
        """Carry pushed episodes to the learner."""
        while worker.connected and self.learner and worker.pushed and count:
            count -= 1
            self.learner.episode(worker.pushed.popleft())

    def deliver_weights(self, worker: Worker) -> None:
        """Carry the newest published weights to a worker."""
        if worker.published:
            message, worker.published = worker.published, None
            worker.weights[message.version] = int(message.arrays["content"])
            self.tell(worker, message)

    @property
    def finished(self) -> bool:
        """Say whether all updates are done."""
        return len(self.consumed) == self.config.updates

    def play(self, update: bool, checkpoint: bool, finish: int = 1000) -> None:
        """Let a quarter of a second pass in which everything arrives, and episodes end."""
        self.now += 0.25
        for worker in list(self.workers.values()):
            self.deliver_weights(worker)
            self.deliver_down(worker, 1000)
            if worker.building:
                worker.building = False
                self.tell(worker, BuildDone(Built(SPACES, "probe", "cpu")))
            for ticket in [] if worker.frozen else sorted(worker.running)[:finish]:
                if ticket in worker.running:  # one that fails may make its worker abandon the rest
                    self.end(worker, ticket)
            self.deliver_episodes(worker, 1000)
        self.tick_workers()
        for worker in self.workers.values():
            self.deliver_up(worker, 1000)
        self.turn()
        if update:
            self.update(checkpoint)
            self.turn()

    # The laws

    def check(self) -> None:
        """Assert what holds at any time."""
        seen: set[Ticket] = set()
        for update, batch in enumerate(self.consumed):
            tickets = [episode.ticket for episode in batch]
            assert not seen.intersection(tickets), "a ticket counts twice"
            assert tickets == sorted(tickets)
            seen.update(tickets)
            for episode in batch:
                assert episode.seconds == self.weights[episode.version.number], (
                    "played under rolled-back weights"
                )
                floor = self.floor(episode.ticket)
                if self.config.exact:
                    assert episode.version.number == floor
                elif self.config.order == "started":
                    assert floor <= episode.version.number <= update
        if self.learner is None:
            return
        assert self.learner.office.check() == []
        assert Ledger.from_plain(self.learner.ledger_report()).check() == []
        account, config = self.learner.ledger.accounts["train"], self.config
        assert account.consumed.to_ranges() == to_ranges(ticket.number for ticket in seen)
        credit = min(self.learner.office.version + config.max_lag + 1, config.updates) * BATCH
        out = account.issued - (account.discards if config.order == "arrival" else 0)
        assert out <= credit, f"{out} tickets are out, the gate lets {credit}"
        for worker in self.workers.values():
            assert worker.membership.state.name != "ENDED" or worker.stopped

    def floor(self, ticket: Ticket) -> int:
        """Return the version that a ticket may begin under, where none is replaced."""
        return max(0, ticket.number // BATCH - self.config.max_lag)

    def settle(self) -> None:
        """End all faults, and play on until the run is over; it must come to its end."""
        if self.learner is None:
            self.start_learner()
        frozen = [worker for worker in self.workers.values() if worker.frozen]
        for worker in self.workers.values():
            worker.connected, worker.frozen = True, worker in frozen[:1]
        if self.learner:
            self.learner.command("play")
        for _ in range(800):
            if self.finished or self.stop_reason:
                break
            if not any(worker.stopped is None and not worker.frozen for worker in self.workers.values()):
                self.start_worker(2)
            self.play(update=True, checkpoint=True)
            self.check()
        assert self.finished, f"the run stands still at {len(self.consumed)}: {self.stop_reason}"
        assert self.learner is not None
        account = self.learner.ledger.accounts["train"]
        assert not account.outstanding
        if self.config.order == "arrival":
            assert len(account.consumed) == BATCH * UPDATES
        assert account.issued == len(account.consumed) + account.discards
        for _ in range(30):
            self.play(update=False, checkpoint=False)
        for worker in self.workers.values():
            held = tickets_in(worker.membership.tickets.holdings())
            assert worker.frozen or not held, f"{worker.session} still holds {held}"


def tickets_in(holdings: Holdings) -> set[Ticket]:
    """Return all tickets that a message lists."""
    places = (holdings.queued, holdings.running, holdings.outbox)
    ranged = {
        Ticket(sequence, number)
        for place in places
        for sequence, ranges in place.items()
        for start, stop in ranges
        for number in range(start, stop)
    }
    return ranged | {failure.ticket for failure in holdings.failures}


PLACES = st.integers(0, 5)
BAD = st.sets(st.integers(0, BATCH * UPDATES), max_size=2)
COUNTS = st.sampled_from([1000, 1, 2])
ROUNDS = st.sampled_from([8, 4, 2, 1])
OFTEN = st.sampled_from([True, True, False])
FAULTS = (
    "worker crashes",
    "worker is terminated",
    "worker freezes or thaws",
    "learner crashes",
    "connection breaks, episodes lost",
    "connection breaks, episodes kept",
    "connection breaks, episodes repeated",
)


def make_config(
    order: Literal["arrival", "started"],
    exact: bool,
    stuck_after_seconds: float = 0.0,
    liveness_seconds: float = 5.0,
) -> RunConfig:
    return RunConfig(
        total_episodes=BATCH * UPDATES,
        episodes_per_update=BATCH,
        max_lag=1,
        order=order,
        exact=exact,
        liveness_seconds=liveness_seconds,
        stuck_after_seconds=stuck_after_seconds or (100.0 if exact else 15.0),
        max_losses=100 if exact else 3,
    )


class Delivery(RuleBasedStateMachine):
    """Any interleaving of steps and faults."""

    order: Literal["arrival", "started"] = "arrival"
    exact = False
    stuck_after_seconds = 0.0
    liveness_seconds = 5.0
    dangerous_tickets = True
    faults: tuple[str, ...] = FAULTS

    def __init__(self) -> None:
        super().__init__()
        config = make_config(self.order, self.exact, self.stuck_after_seconds, self.liveness_seconds)
        self.world = World(config)

    def workers(self) -> list[Worker]:
        return list(self.world.workers.values())

    def pick(self, place: int) -> Worker:
        return self.workers()[place % len(self.world.workers)]

    @initialize(slots=st.lists(st.integers(1, 3), min_size=1, max_size=3), failing=BAD, killing=BAD)
    def begin(self, slots: list[int], failing: set[int], killing: set[int]) -> None:
        if self.dangerous_tickets:
            self.world.failing, self.world.killing = failing, set() if self.exact else killing
        for count in slots:
            self.world.start_worker(count)
        for _ in range(4):
            self.world.play(update=False, checkpoint=False, finish=0)

    @rule(rounds=ROUNDS, finish=st.sampled_from([3, 1, 0]), update=OFTEN, checkpoint=OFTEN)
    def everyone_plays(self, rounds: int, finish: int, update: bool, checkpoint: bool) -> None:
        for _ in range(rounds):
            self.world.play(update, checkpoint, finish)
            self.world.check()

    @rule(seconds=st.sampled_from([0.006, 0.03, 0.3, 1.0, 4.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.tick_workers()
        self.world.turn()

    @rule(place=PLACES, count=COUNTS)
    @precondition(lambda self: self.world.workers)
    def control_up(self, place: int, count: int) -> None:
        self.world.deliver_up(self.pick(place), count)
        self.world.turn()

    @rule(place=PLACES, count=COUNTS)
    @precondition(lambda self: self.world.workers)
    def control_down(self, place: int, count: int) -> None:
        self.world.deliver_down(self.pick(place), count)

    @rule(place=PLACES, count=COUNTS)
    @precondition(lambda self: self.world.workers)
    def episodes_arrive(self, place: int, count: int) -> None:
        self.world.deliver_episodes(self.pick(place), count)
        self.world.turn()

    @rule(place=PLACES)
    @precondition(lambda self: self.world.workers)
    def weights_arrive(self, place: int) -> None:
        self.world.deliver_weights(self.pick(place))

    @rule(place=PLACES, which=st.integers(0, 2))
    @precondition(lambda self: any(worker.running for worker in self.workers()))
    def episode_ends(self, place: int, which: int) -> None:
        playing = [worker for worker in self.workers() if worker.running and not worker.frozen]
        if playing:
            worker = playing[place % len(playing)]
            self.world.end(worker, sorted(worker.running)[which % len(worker.running)])

    @rule(checkpoint=st.booleans())
    @precondition(lambda self: self.world.batches)
    def update_ends(self, checkpoint: bool) -> None:
        self.world.update(checkpoint)
        self.world.turn()

    @rule(fault=st.integers(0, len(FAULTS) - 1), place=PLACES)
    @precondition(lambda self: self.world.workers)
    def something_goes_wrong(self, fault: int, place: int) -> None:
        """One rule for all faults, so that most steps are none."""
        worker = self.pick(place)
        what, _, comes_back = self.faults[fault % len(self.faults)].partition("; ")
        match what:
            case "worker crashes":
                del self.world.workers[worker.session]
            case "worker is terminated":
                self.world.tell(worker, Terminate("SIGTERM"))
            case "worker freezes or thaws":  # its playing loop stands still while its membership lives on
                worker.frozen = not worker.frozen
            case "learner crashes":
                self.world.crash_learner()
            case "connection breaks, episodes lost":
                worker.break_connection()
                worker.pushed.clear()
            case "connection breaks, episodes kept":
                worker.break_connection()
            case "connection breaks, episodes repeated":
                worker.break_connection()
                worker.pushed.extend(worker.episodes.values())
        worker.connected |= bool(comes_back)

    @rule(slots=st.integers(1, 3))
    @precondition(lambda self: len(self.world.workers) < 3)
    def worker_starts(self, slots: int) -> None:
        self.world.start_worker(slots)

    @rule(place=PLACES)
    @precondition(lambda self: not all(worker.connected for worker in self.workers()))
    def connection_comes_back(self, place: int) -> None:
        cut_off = [worker for worker in self.workers() if not worker.connected]
        cut_off[place % len(cut_off)].connected = True

    @rule(place=PLACES, desired=st.sampled_from(["play", "pause", "drain"]))
    @precondition(lambda self: self.world.learner and self.world.workers)
    def user_asks(self, place: int, desired: Literal["play", "pause", "drain"]) -> None:
        assert self.world.learner is not None
        session = self.pick(place).session
        for worker in self.world.learner.status(self.world.now).workers:
            if worker.session == session:
                self.world.learner.command(desired, (f"{worker.host}:{worker.pid}",))
                self.world.turn()

    @rule()
    @precondition(lambda self: self.world.learner is None)
    def learner_restarts(self) -> None:
        self.world.start_learner()

    @invariant()
    def laws_hold(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.settle()


class StartedDelivery(Delivery):
    order = "started"


class ExactDelivery(Delivery):
    order, exact = "started", True


_SETTINGS = settings(max_examples=60, stateful_step_count=50)
TestArrival = Delivery.TestCase
TestStarted = StartedDelivery.TestCase
TestExact = ExactDelivery.TestCase
TestArrival.settings = TestStarted.settings = TestExact.settings = _SETTINGS


@pytest.mark.parametrize(("order", "exact"), [("arrival", False), ("started", False), ("started", True)])
def test_without_faults_each_ticket_is_played_once(order: Literal["arrival", "started"], exact: bool) -> None:
    world = World(make_config(order, exact))
    for slots in (1, 2, 3):
        world.start_worker(slots)
    world.settle()
    assert world.learner is not None
    assert world.starts == {Ticket("train", number): 1 for number in range(BATCH * UPDATES)}
    counts = world.learner.ledger.deliveries
    assert (counts.received, counts.first_copies) == (BATCH * UPDATES, BATCH * UPDATES)
    world.play(update=False, checkpoint=False)
    world.play(update=False, checkpoint=False)
    assert not any(worker.episodes for worker in world.workers.values()), "what is received is dropped"
