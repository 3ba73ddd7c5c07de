"""Each rule of delivery is needed: without any one of them, `test_delivery_model` finds that its laws break.

A rule is one function of the real state machines. Each is taken away by itself, in every other respect the
machines are the real ones, and the model's search, from fixed seeds, must fail. Where another rule comes to
the rescue of a missing one, the search runs in a world without that: one in which nothing is found stuck
(`Patient`), or in which in addition nobody dies and connections come back at once (`Calm`); there every
ticket must be begun exactly once. What a search seldom meets is a short story instead.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from learner.book import Book
from learner.hands import Hand
from learner.ledger import Delivery as Verdict
from learner.lineage import Lineage
from learner.membership import Membership as Members
from learner.registry import Registry
from learner.tickets import TicketOffice
from protocol.messages import Built, Version, Weights
from protocol.tickets import Ticket
from rollout_worker.events import BuildDone, Instruction, Push
from rollout_worker.tickets import Tickets
from rollout_worker.versions import Versions
from tests.end_to_end.test_delivery_model import (
    SPACES,
    Delivery,
    ExactDelivery,
    Worker,
    World,
    make_config,
)

NEVER_SECONDS = 1e9
SEARCH = settings(
    max_examples=250,
    stateful_step_count=50,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate,),
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


class Patient(Delivery):
    """A world in which no ticket is found stuck and no worker's playing stands still."""

    stuck_after_seconds = NEVER_SECONDS
    faults = tuple(fault for fault in Delivery.faults if "freezes" not in fault)


class PatientExact(Patient):
    """The same in exact mode."""

    order, exact = "started", True


class Calm(Patient):
    """A world in which, in addition, nobody dies, and only what is under way gets lost."""

    liveness_seconds = NEVER_SECONDS
    dangerous_tickets = False
    faults = tuple(fault + "; comes back at once" for fault in Delivery.faults if "connection" in fault)

    @invariant()
    def each_ticket_is_begun_once(self) -> None:
        assert not [ticket for ticket, starts in self.world.starts.items() if starts > 1]


SETTINGS = settings(max_examples=40, stateful_step_count=50)
TestPatient, TestPatientExact, TestCalm = Patient.TestCase, PatientExact.TestCase, Calm.TestCase
TestPatient.settings = TestPatientExact.settings = TestCalm.settings = SETTINGS


def nothing(*arguments: object, **named: object) -> None:
    """Stand in for a rule that is not there."""


def no_instructions(*arguments: object) -> Iterator[Instruction]:
    return iter(())


def every_answer_is_seen(hand: Hand, answer: int) -> None:
    hand.unseen.clear()


def revoke_and_issue_at_once(book: Book, number: int, hand: Hand) -> None:
    ticket = book.open[number]
    ticket.holders.remove(hand)
    hand.remove(number)
    book._place(number, ticket)


def expire_at_once(book: Book, now: float) -> None:
    for number in list(book.unclaimed):
        del book.unclaimed[number]
        book._place(number, book.open[number])


def drop_only_news(hand: Hand, repeat: bool) -> set[int]:
    drops = hand.listed - hand.held - hand.told
    hand.told |= drops
    hand.changed = False
    return drops


def judge_any_copy_first(office: TicketOffice, episode: Any, invalid: str) -> Verdict:
    real = JUDGE(office, episode, invalid)
    return Verdict.FIRST if real is Verdict.DUPLICATE else real


def no_holders(book: Book, number: int, session: str) -> list[Hand]:
    return []


def always(*arguments: object) -> bool:
    return True


def no_gate(office: TicketOffice) -> int:
    return office.config.planned_episodes - office.train.account.issued


def push_and_forget(held: Tickets, tickets: list[Ticket], now: float) -> Iterator[Instruction]:
    if tickets:
        yield Push(tuple(tickets))


def newest(versions: Versions, terms: object) -> Version | None:
    return versions.newest


def look_though_unread(registry: Registry, now: float, drained: bool) -> Any:
    return TICK(registry, now, True)


def empty(*arguments: object) -> list[Ticket]:
    return []


def ask_for_nothing(versions: Versions, tickets: Tickets) -> set[int | None]:
    return set()


# --- Stories ---


def begun(workers: int = 1, stuck_after_seconds: float = NEVER_SECONDS) -> tuple[World, list[Worker]]:
    """Return a world in which the first worker runs its first tickets, and all workers."""
    world = World(make_config("arrival", False, stuck_after_seconds))
    first = world.start_worker(2)
    for _ in range(4):
        world.play(update=False, checkpoint=False, finish=0)
    assert len(first.running) == 2
    return world, [first, *(world.start_worker(2) for _ in range(workers - 1))]


def each_was_begun_once(world: World) -> None:
    world.settle()
    assert max(world.starts.values()) == 1


def lost_one_comes_back_as_another_joins() -> None:
    """What the first one runs goes to the second, unless its hello, which comes in time, keeps it."""
    world, (first, second) = begun(workers=2)
    first.break_connection()
    world.now += 6.0
    world.turn()
    world.tick_workers()
    world.deliver_up(second, 1)
    world.turn()
    world.deliver_down(second, 1)
    world.tell(second, BuildDone(Built(SPACES, "probe", "cpu")))
    first.connected = True
    for step in (1.0, 0.1):  # its heartbeat is answered with hello again, then it says hello
        world.now += step
        world.tick_workers()
        world.deliver_up(first, 1000)
        if step == 1.0:
            world.turn()
            world.deliver_down(first, 1000)
    world.deliver_up(second, 1000)
    world.turn()
    each_was_begun_once(world)


def heartbeat_and_grant_cross() -> None:
    """What the first one was granted and has not heard of goes to the second, unless that is known."""
    world = World(make_config("arrival", False, NEVER_SECONDS))
    first, *_ = both = [world.start_worker(2), world.start_worker(2)]
    world.tick_workers()
    for worker in both:
        world.deliver_up(worker, 1)
        world.turn()
        world.deliver_down(worker, 1)
        world.tell(worker, BuildDone(Built(SPACES, "probe", "cpu")))
    world.now += 0.1
    world.tick_workers()
    world.deliver_up(first, 1000)
    world.turn()
    world.now += 1.1
    world.tick_workers()
    for worker in both:
        world.deliver_up(worker, 1000)
    world.turn()
    each_was_begun_once(world)


def learner_restarts_and_meets_another_worker_first() -> None:
    """What the first one runs goes to the second, unless it waits until the first one may have said hello."""
    world, (first, _) = begun(workers=2)
    assert world.learner is not None
    world.checkpoint = json.dumps(world.learner.snapshot())
    world.crash_learner()
    world.start_learner()
    first.break_connection()
    for _ in range(8):
        world.play(update=False, checkpoint=False, finish=0)
    first.connected = True
    each_was_begun_once(world)


def episodes_of_one_worker_never_arrive() -> None:
    """Its tickets wait for ever, unless they are found stuck."""
    world, (first, _) = begun(workers=2, stuck_after_seconds=15.0)
    first.pushed = deque(maxlen=0)
    world.settle()


def one_plays_under_weights_that_a_restart_undoes() -> None:
    """Version 2 is done without a checkpoint, a worker plays under it, and the learner goes back to 1."""
    world, (_, second) = begun(workers=2)
    while len(world.consumed) < 2:
        second.published, second.down = None, deque(m for m in second.down if not isinstance(m, Weights))
        world.play(update=True, checkpoint=len(world.consumed) == 0)
    second.published = world.weights_of(2)
    world.deliver_weights(second)
    assert second.running
    for ticket in sorted(second.running):
        world.end(second, ticket)
    world.crash_learner()
    world.start_learner()
    world.settle()


STORIES = (
    heartbeat_and_grant_cross,
    lost_one_comes_back_as_another_joins,
    learner_restarts_and_meets_another_worker_first,
    episodes_of_one_worker_never_arrive,
    one_plays_under_weights_that_a_restart_undoes,
)


@pytest.mark.parametrize("story", STORIES)
def test_stories_end_well(story: Callable[[], None]) -> None:
    story()


JUDGE, TICK = TicketOffice._judge, Registry.tick
Rule = tuple[str, type[Delivery] | Callable[[], None], type, str, Callable[..., Any]]
RULES: list[Rule] = [
    # Where a ticket is
    ("what a worker no longer lists is issued again", Patient, Book, "issue_missing_again", nothing),
    ("a grant under way is not missing", STORIES[0], Hand, "acknowledge", every_answer_is_seen),
    ("what was taken away is issued once it is let go", Patient, Book, "let_go", nothing),
    ("what was taken away is not issued before", Patient, Book, "revoke", revoke_and_issue_at_once),
    ("a worker that says hello keeps what it has", STORIES[1], Book, "claim", nothing),
    ("what may be claimed waits for it", STORIES[2], Book, "expire", expire_at_once),
    ("what was open before a restart is unclaimed", Patient, TicketOffice, "_restore", nothing),
    ("what nobody claims is issued again", Patient, Book, "expire", nothing),
    # Whoever goes
    ("what a lost worker had is issued again", Patient, Book, "lose", nothing),
    ("what a leaving worker had is issued again", Patient, Book, "leave", nothing),
    ("nobody is lost whose messages are unread", Delivery, Registry, "tick", look_though_unread),
    ("who is not known says hello again", Patient, Members, "known", nothing),
    # Whatever breaks
    ("failures count", Delivery, Book, "count_failure", nothing),
    ("losses count", Delivery, Book, "count_loss", nothing),
    ("what is stuck goes to another worker", STORIES[3], Book, "unstick", nothing),
    # Episodes
    ("only the first copy counts", Delivery, TicketOffice, "_judge", judge_any_copy_first),
    ("a receipt ends it for whoever has a copy", Delivery, Book, "receive", nothing),
    ("only weights of this lineage count", STORIES[4], Lineage, "accepts", always),
    ("a stale episode gives its ticket back", PatientExact, Book, "holders", no_holders),
    ("what was received is dropped", Patient, Hand, "drops", lambda hand, repeat: set()),
    ("drops are repeated until they are heeded", Patient, Hand, "drops", drop_only_news),
    ("the gate counts what is out", Delivery, TicketOffice, "_gate", no_gate),
    # The worker
    ("an episode stays until it is dropped", Calm, Tickets, "push", push_and_forget),
    ("what may be lost is pushed again", Patient, Tickets, "unacknowledged", empty),
    ("what is dropped is forgotten", Patient, Tickets, "drop", no_instructions),
    ("a ticket begins under weights that it allows", ExactDelivery, Versions, "version_for", newest),
    ("weights that did not come are asked for", Patient, Versions, "_missing", ask_for_nothing),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("world", "machine", "rule", "without"), [rule[1:] for rule in RULES], ids=[rule[0] for rule in RULES]
)
def test_without_it_the_laws_break(
    world: type[Delivery] | Callable[[], None],
    machine: type,
    rule: str,
    without: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, rule, without)
    with pytest.raises((AssertionError, KeyError, ValueError)):
        if isinstance(world, type):
            run_state_machine_as_test(world, settings=SEARCH)
        else:
            world()
