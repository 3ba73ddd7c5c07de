"""What is done so that a pool becomes as it is wanted, played against simulated machines."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.backoff import FIRST_SECONDS, LONGEST_SECONDS
from deploy.engines import Member
from deploy.fleet.pool_reconciler import (
    DEATHS_IN_VAIN,
    FORGOTTEN_SECONDS,
    MISSING_SECONDS,
    STOP_SECONDS,
    Action,
    End,
    PoolReconciler,
    Seen,
    Start,
    Wish,
)


@dataclass
class Worker:
    host: str
    began: float
    told: str = ""
    told_at: float = 0.0


@dataclass
class Machines:
    """Hosts that run workers, a learner that knows them, and a reconciler that keeps them; time is ours."""

    hosts: list[str]
    broken: set[str] = field(default_factory=set)
    """Hosts where a worker dies at once."""
    stubborn: bool = False
    """Nobody leaves when asked to, only when killed."""
    learner: bool = True
    now: float = 0.0
    workers: dict[str, Worker] = field(default_factory=dict)
    dead: list[Member] = field(default_factory=list)
    state: PoolReconciler = field(default_factory=lambda: PoolReconciler("lab"))
    starts: list[tuple[float, str]] = field(default_factory=list)
    most: int = 0
    random: random.Random = field(default_factory=lambda: random.Random(1))

    def members(self) -> list[Member]:
        found = [Member(name, worker.host, "running") for name, worker in self.workers.items()]
        found += self.dead
        self.dead = []
        return found

    def sessions(self) -> dict[str, str]:
        if not self.learner:
            return {}
        return {
            name: "draining" if worker.told == "drain" else "ready"
            for name, worker in self.workers.items()
            if self.now - worker.began > 2 and worker.host not in self.broken
        }

    def kill(self, name: str) -> None:
        worker = self.workers.pop(name)
        self.dead.append(Member(name, worker.host, "failed", "killed"))

    def turn(self, wish: Wish, seconds: float = 1.0) -> list[Action]:
        for name, worker in list(self.workers.items()):
            if worker.host in self.broken:
                self.workers.pop(name)
                self.dead.append(Member(name, worker.host, "failed", "crashed"))
            elif worker.told and not self.stubborn and self.now - worker.told_at > 3:
                self.workers.pop(name)  # it has left, as it was asked to: its engine says no more of it
        drained = {name for name, worker in self.workers.items() if worker.told == "drain"}
        seen = Seen(self.members(), self.sessions(), drained=drained if self.learner else ())
        actions = self.state.step(wish, seen, self.now)
        for action in actions:
            self.carry_out(action, wish)
        self.now += seconds
        return actions

    def carry_out(self, action: Action, wish: Wish) -> None:
        if isinstance(action, Start):
            before = len(self.workers)
            results = []
            for name in action.names:
                assert name not in {started for _, started in self.starts}, "a name was given twice"
                self.starts.append((self.now, name))
                hosts = [host for host in self.hosts if host not in action.avoid]
                if not hosts:
                    results.append(Member(name, "", "failed", "no host is left"))
                    continue
                self.workers[name] = Worker(self.random.choice(hosts), self.now)
                results.append(Member(name, self.workers[name].host, "running"))
            self.state.started(results, self.now)
            assert len(self.workers) <= max(wish.count, before), "more than are wanted were started"
            return
        for name in action.names:
            if name in self.workers and action.how == "kill":
                self.workers.pop(name)
            elif name in self.workers and not self.workers[name].told:
                self.workers[name].told, self.workers[name].told_at = action.how, self.now

    def settle(self, wish: Wish, turns: int = 400) -> None:
        for _ in range(turns):
            self.turn(wish)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["count", "kill", "break", "mend", "learner", "stubborn", "successor", "nothing"]),
        st.integers(0, 12),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(EVENTS, st.integers(0, 12))
def test_it_converges_and_never_starts_more_than_are_wanted(events: list[tuple[str, int]], last: int) -> None:
    machines = Machines([f"host{number}" for number in range(4)])
    count, generation = 3, 1
    for event, number in events:
        match event:
            case "count":
                count, generation = number, generation + 1
            case "kill" if machines.workers:
                machines.kill(sorted(machines.workers)[number % len(machines.workers)])
            case "break":
                machines.broken.add(machines.hosts[number % 4])
            case "mend":
                machines.broken.clear()
            case "learner":
                machines.learner = not machines.learner
            case "stubborn":
                machines.stubborn = not machines.stubborn
            case "successor":  # a new supervisor, which knows what the one before wrote down
                gone = [name for name, life in machines.state.lives.items() if life.leaving]
                machines.state = PoolReconciler("lab", machines.state.next, gone)
        machines.turn(Wish(count, generation))
    machines.broken.clear()
    machines.learner, machines.stubborn = True, False
    wish = Wish(last, generation + 1, drain_seconds=20)
    machines.settle(wish, 100)
    assert len(machines.workers) == last
    assert not any(worker.told for worker in machines.workers.values())
    assert machines.turn(wish) == [], "it is settled, and still something is done"


@given(st.integers(1, 12), st.integers(0, 11))
def test_the_youngest_go_first(many: int, stay: int) -> None:
    machines = Machines(["host"])
    machines.settle(Wish(many), 5)
    stay = min(stay, many)
    machines.settle(Wish(stay), 10)
    assert sorted(machines.workers, key=lambda name: int(name[4:])) == [f"lab-{n + 1}" for n in range(stay)]


def test_who_waits_for_a_place_goes_before_who_plays() -> None:
    state = PoolReconciler("lab")
    state.step(Wish(3), Seen([]), 0.0)
    members = [
        Member("lab-1", "", "pending"),
        Member("lab-2", "a", "running"),
        Member("lab-3", "b", "running"),
    ]
    sessions = {"lab-2": "ready", "lab-3": "ready"}
    assert state.step(Wish(1), Seen(members, sessions), 5.0) == [
        End("drain", ("lab-3",)),
        End("stop", ("lab-1",)),
    ]


def test_the_dead_are_replaced_with_growing_pauses_and_their_host_is_put_aside() -> None:
    machines = Machines(["host"], broken={"host"})
    wish = Wish(1)
    for _ in range(1000):
        machines.turn(wish, 0.1)
    assert machines.state.aside == {"host": "crashed"}
    assert machines.state.despairs
    assert [failure.detail for failure in machines.state.failures][:DEATHS_IN_VAIN] == ["crashed"] * 3
    begun = [at for at, _ in machines.starts]
    pauses = [later - earlier for earlier, later in itertools.pairwise(begun)]
    assert pauses[:2] == pytest.approx([FIRST_SECONDS, 2 * FIRST_SECONDS], abs=0.25)
    assert max(pauses) == pytest.approx(LONGEST_SECONDS, abs=0.25)

    machines.broken.clear()
    machines.settle(Wish(1, generation=1), 10)
    assert len(machines.workers) == 1, "a command forgives"
    assert not machines.state.failures


def test_a_broken_host_holds_up_no_other() -> None:
    machines = Machines(["a", "b", "c"], broken={"b"})
    machines.settle(Wish(9), 60)
    assert len(machines.workers) == 9
    assert set(machines.state.aside) == {"b"}


def test_a_worker_that_was_of_use_is_replaced_at_once_and_its_host_kept() -> None:
    machines = Machines(["host"])
    for _ in range(2 * DEATHS_IN_VAIN):
        machines.settle(Wish(1), 90)
        [name] = machines.workers
        machines.kill(name)
        machines.turn(Wish(1))
        machines.turn(Wish(1))
        assert len(machines.workers) == 1
    assert not machines.state.aside


def test_who_does_not_leave_is_asked_then_killed() -> None:
    machines = Machines(["host"], stubborn=True)
    machines.settle(Wish(1), 10)
    began, seen = machines.now, []
    for _ in range(60):
        for action in machines.turn(Wish(0, drain_seconds=20)):
            assert isinstance(action, End)
            seen.append((action.how, machines.now - 1 - began))
    assert [how for how, _ in seen] == ["drain", "stop", "kill"]
    assert [at for _, at in seen] == [0, pytest.approx(21), pytest.approx(21 + STOP_SECONDS + 1)]
    assert not machines.workers


def test_who_is_frozen_while_it_drains_is_not_waited_for() -> None:
    state, member = PoolReconciler("lab"), Member("lab-1", "host", "running")
    state.step(Wish(1), Seen([member], {"lab-1": "ready"}), 0.0)
    assert state.step(Wish(0), Seen([member], {"lab-1": "ready"}), 1.0) == [End("drain", ("lab-1",))]
    said = {now: state.step(Wish(0), Seen([member], {"other": "ready"}), float(now)) for now in range(2, 60)}
    assert {now: actions for now, actions in said.items() if actions} == {
        int(FORGOTTEN_SECONDS) + 2: [End("stop", ("lab-1",))],
        int(FORGOTTEN_SECONDS + STOP_SECONDS) + 3: [End("kill", ("lab-1",))],
        int(FORGOTTEN_SECONDS + 2 * STOP_SECONDS) + 4: [End("kill", ("lab-1",))],
    }


def test_without_a_learner_workers_are_asked_to_return_what_they_hold() -> None:
    machines = Machines(["host"], learner=False)
    machines.settle(Wish(1), 10)
    assert machines.turn(Wish(0)) == [End("stop", ("lab-1",))]


def test_a_learner_that_did_not_hear_is_asked_again() -> None:
    state, member = PoolReconciler("lab"), Member("lab-1", "host", "running")
    seen = Seen([member], {"lab-1": "ready"})
    state.step(Wish(1), seen, 0.0)
    asked = [now for now in range(1, 20) if state.step(Wish(0), seen, float(now))]
    assert asked == [1, 7, 13, 19]


def test_workers_launched_for_something_else_are_replaced_and_places_never_doubled() -> None:
    machines = Machines(["host"])
    machines.settle(Wish(4), 10)
    since = machines.state.next
    for _ in range(20):
        machines.turn(Wish(4, since=since))
        assert len(machines.workers) <= 4
    assert sorted(machines.workers) == ["lab-5", "lab-6", "lab-7", "lab-8"]


def test_a_worker_that_an_operator_drains_is_not_replaced_until_the_next_command() -> None:
    machines = Machines(["host"])
    machines.settle(Wish(3), 10)
    machines.workers["lab-2"].told, machines.workers["lab-2"].told_at = "drain", machines.now
    machines.turn(Wish(3))
    machines.kill("lab-2")
    machines.settle(Wish(3), 50)
    assert sorted(machines.workers) == ["lab-1", "lab-3"]
    machines.settle(Wish(3, generation=1), 10)
    assert sorted(machines.workers) == ["lab-1", "lab-3", "lab-4"]


def test_who_drains_between_two_looks_is_judged_by_a_later_word_of_the_learner() -> None:
    state, member = PoolReconciler("lab"), Member("lab-1", "host", "running")
    gone = replace(member, state="failed", detail="ended with status 0")
    state.step(Wish(1), Seen([member], {"lab-1": "ready"}, asked=0.5), 1.0)
    assert state.step(Wish(1), Seen([gone], {"lab-1": "ready"}, asked=1.5), 2.0) == []
    assert state.step(Wish(1), Seen([], {"lab-1": "ready"}, asked=1.9), 2.5) == []
    for now in range(3, 100):
        assert state.step(Wish(1), Seen([], drained={"lab-1"}, asked=now - 0.5), float(now)) == []
    assert not state.failures
    assert state.step(Wish(1, generation=1), Seen([], drained={"lab-1"}, asked=99.5), 100.0) == [
        Start(("lab-2",), frozenset())
    ]


def test_the_next_command_fills_the_place_of_who_still_drains() -> None:
    state, member = PoolReconciler("lab"), Member("lab-1", "host", "running")
    drains = Seen([member], {"lab-1": "draining"}, drained={"lab-1"}, asked=1.0)
    state.step(Wish(1), drains, 1.0)
    assert state.step(Wish(1, generation=1), drains, 2.0) == []
    gone = Seen([replace(member, state="failed")], drained={"lab-1"}, asked=3.0)
    assert state.step(Wish(1, generation=1), gone, 3.0) == [Start(("lab-2",), frozenset())]
    assert not state.failures


@pytest.mark.parametrize("asked", [None, 3.0])
def test_who_drains_of_its_own_accord_is_replaced(asked: float | None) -> None:
    state, member = PoolReconciler("lab"), Member("lab-1", "host", "running")
    gone = replace(member, state="failed", detail="its time is over")
    state.step(Wish(1), Seen([member], {"lab-1": "ready"}, asked=0.5), 1.0)
    state.step(Wish(1), Seen([member], {"lab-1": "draining"}, asked=1.5), 2.0)
    state.step(Wish(1), Seen([gone], {"lab-1": "draining"}, asked=asked), 3.0)
    assert [failure.name for failure in state.failures] == ["lab-1"]
    again = state.step(Wish(1), Seen([], asked=asked), 3.0 + FIRST_SECONDS)
    assert again == [Start(("lab-2",), frozenset())]


def test_what_an_engine_lists_late_is_not_started_again_and_what_it_lost_is() -> None:
    state = PoolReconciler("lab")
    assert state.step(Wish(1), Seen([]), 0.0) == [Start(("lab-1",), frozenset())]
    for now in range(1, int(MISSING_SECONDS)):
        assert state.step(Wish(1), Seen([]), float(now)) == []
    again = [state.step(Wish(1), Seen([]), MISSING_SECONDS + later) for later in (1.0, 2.0)]
    assert again == [[], [Start(("lab-2",), frozenset())]]


def test_a_worker_that_joins_clears_its_host() -> None:
    state, now = PoolReconciler("lab"), 0.0
    for round in range(DEATHS_IN_VAIN):
        for _ in range(DEATHS_IN_VAIN - 1):
            [*_, start] = _until_start(state, now)
            now += 40
            state.step(Wish(1), Seen([Member(start.names[0], "host", "running")]), now)
            state.step(Wish(1), Seen([Member(start.names[0], "host", "failed", "crashed")]), now)
        now += 40
        [*_, start] = _until_start(state, now)
        joined = Member(start.names[0], "host", "running")
        state.step(Wish(1), Seen([joined], {joined.name: "ready"}), now)
        state.step(Wish(1), Seen([Member(joined.name, "host", "failed", "killed")]), now + 1)
        now += 40
        assert state.aside == {}, round


def _until_start(state: PoolReconciler, now: float) -> list[Start]:
    for later in range(40):
        starts = [a for a in state.step(Wish(1), Seen([]), now + later) if isinstance(a, Start)]
        if starts:
            return starts
    raise AssertionError("nothing was started")


def test_a_new_reconciler_gives_no_name_that_it_sees() -> None:
    state = PoolReconciler("lab")
    members = [Member("lab-7", "host", "running"), Member("lab-9", "host", "failed", "crashed")]
    assert state.step(Wish(2), Seen(members), 0.0) == [Start(("lab-10",), frozenset())]
    assert not state.failures, "it was not there when that one failed"


def test_who_was_asked_to_leave_fails_nobody() -> None:
    state, member = PoolReconciler("lab"), Member("lab-1", "host", "running")
    state.step(Wish(1), Seen([member]), 0.0)
    state.step(Wish(0), Seen([member]), 1.0)
    state.step(Wish(0), Seen([Member("lab-1", "host", "failed", "ended with status 0")]), 2.0)
    assert not state.failures and not state.lives


def test_those_beyond_the_count_that_drain_already_leave_no_place_empty() -> None:
    machines = Machines(["host"])
    machines.settle(Wish(4), 10)
    for name in ("lab-3", "lab-4"):
        machines.workers[name].told, machines.workers[name].told_at = "drain", machines.now
    machines.state = PoolReconciler("lab", machines.state.next)
    machines.turn(Wish(2))
    for name in ("lab-3", "lab-4"):
        machines.kill(name)
    machines.turn(Wish(2))
    machines.kill("lab-1")
    machines.settle(Wish(2), 10)
    assert sorted(machines.workers) == ["lab-2", "lab-5"]


def test_nothing_is_started_or_blamed_once_the_run_is_over() -> None:
    machines = Machines(["host"])
    machines.settle(Wish(2), 10)
    machines.kill("lab-1")
    machines.turn(Wish(0, over=True, drain_seconds=0))
    machines.settle(Wish(0, over=True, drain_seconds=0), 10)
    assert not machines.workers
    assert not machines.state.failures
    assert len(machines.starts) == 2
