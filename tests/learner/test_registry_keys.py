"""Sessions and tickets belong to keys, and what no honest worker does is counted against its key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learner.config import RunConfig
from learner.hold_times import OVERDUE_MEANS, OVERDUE_STUCK_TIMES, OVERDUE_UNKNOWN_SECONDS
from learner.instructions import Instruction, Log, Misconduct, Send
from learner.ledger import Delivery
from learner.registry import Registry
from protocol.messages import (
    Answer,
    Built,
    Episode,
    Failure,
    Heartbeat,
    Hello,
    Holdings,
    Refuse,
    SnapshotRequest,
    Version,
    Welcome,
)
from protocol.ranges import to_ranges
from protocol.specs import EnvironmentSpec, PolicySpec, Spaces
from protocol.tickets import Ticket

SPACES = Spaces(4, "float32", 2, False, 100)
BUILT = Built(SPACES, "probe", "processor")
NOTHING: Any = np.zeros(1, np.float32)
STUCK_SECONDS = 10.0
ALICE, MALLORY = "alice's key", "mallory's key"
KEYS = {"a": ALICE, "m": MALLORY}


class Fleet:
    """A registry and two sessions: "a" of Alice's key, and "m" of Mallory's."""

    def __init__(self, state: dict[str, Any] | None = None, batch: int = 4) -> None:
        config = RunConfig(
            episodes_per_update=batch,
            total_episodes=batch * 10,
            max_lag=1,
            stuck_after_seconds=STUCK_SECONDS,
            liveness_seconds=5.0,
        )
        welcome = Welcome(
            "run",
            7,
            2 if state else 1,
            "async",
            EnvironmentSpec("toy", {}, SPACES),
            PolicySpec(4, 2),
            1.0,
            5.0,
        )
        self.now, self.beats, self.incarnation = 100.0, 0, welcome.incarnation
        self.registry = Registry(config, welcome, "1.0", self.now, state)
        self.offences: list[Misconduct] = []

    def tick(self, seconds: float = 0.1) -> list[Instruction]:
        self.now += seconds
        instructions = self.registry.tick(self.now, True)
        self.offences += [one for one in instructions if isinstance(one, Misconduct)]
        return instructions

    def hello(self, session: str, slots: int = 2, **places: set[int]) -> None:
        hello = Hello(session, "host", 1, slots, "1.0", holdings=holdings(places))
        self.registry.membership.hello(hello, self.now, KEYS[session])

    def beat(
        self, session: str, answer: int = 0, failures: tuple[Failure, ...] = (), **places: set[int]
    ) -> None:
        self.beats += 1
        held = holdings(places, failures)
        self.registry.membership.heartbeat(
            Heartbeat(session, self.beats, self.incarnation, answer, "ready", held, built=BUILT), self.now
        )

    def join(self, session: str, slots: int = 2) -> set[int]:
        """Let a session join; return the tickets that it is granted."""
        self.hello(session, slots)
        self.beat(session)
        return granted(self.tick(), session)

    def holds(self, session: str) -> set[int]:
        return set(self.registry.roster._sessions[session].hands["train"].held)

    def deliver(self, number: int, session: str, key: str) -> Delivery | str:
        """Return what became of an episode, as the collector does it."""
        episode = Episode(
            "run",
            session,
            Ticket("train", number),
            Version(1, 0),
            True,
            1.0,
            NOTHING,
            NOTHING,
            NOTHING,
            NOTHING,
        )
        return self.registry.foreign(episode, key) or self.registry.episode(episode)


def holdings(places: dict[str, set[int]], failures: tuple[Failure, ...] = ()) -> Holdings:
    ranges: dict[str, Any] = {place: {"train": to_ranges(numbers)} for place, numbers in places.items()}
    return Holdings(**ranges, failures=failures)


def granted(instructions: list[Instruction], session: str) -> set[int]:
    found = [one.message for one in instructions if isinstance(one, Send) and one.session == session]
    grants = [grant for message in found if isinstance(message, Answer) for grant in message.grants]
    return {number for grant in grants for number in range(grant.start, grant.stop)}


def test_another_key_cannot_speak_for_a_session() -> None:
    fleet = Fleet()
    fleet.join("a")
    assert fleet.registry.roster.belongs("a", ALICE) and fleet.registry.roster.belongs("unknown", MALLORY)
    assert not fleet.registry.roster.belongs("a", MALLORY) and not fleet.registry.roster.belongs("a", "")


def test_an_episode_counts_only_from_a_key_that_has_or_had_its_ticket() -> None:
    fleet = Fleet()
    mine = fleet.join("a")
    theirs = fleet.join("m")
    one, other = min(mine), max(mine)
    assert fleet.deliver(one, "m", MALLORY) == "its ticket is another key's"
    assert fleet.deliver(one, "unknown", MALLORY) == "its ticket is another key's"
    assert fleet.deliver(one, "a", MALLORY) == "its session is another key's"
    assert fleet.holds("a") == mine and fleet.holds("m") == theirs
    assert fleet.deliver(one, "a", ALICE) is Delivery.FIRST
    # Alice is lost, and her ticket goes to Mallory: each of the two may bring it, whoever comes first.
    fleet.tick(1.0)
    for _ in range(6):
        fleet.beat("m", 1, running=theirs)
        fleet.tick(1.0)
    assert fleet.registry.roster.lost("a")
    assert fleet.deliver(other, "a", ALICE) is Delivery.FIRST
    assert fleet.registry.office.check() == []
    assert fleet.registry.ledger.deliveries.invalid == 3 and fleet.registry.ledger.check() == []


def test_another_keys_tickets_cannot_be_claimed() -> None:
    fleet = Fleet()
    mine = fleet.join("a")
    fleet.hello("m", running=mine, outbox=set())
    fleet.beat("m", running=mine)
    fleet.tick()
    assert fleet.holds("a") == mine and not fleet.holds("m") & mine
    assert fleet.registry.office.check() == []


def test_after_a_restart_a_thief_cannot_keep_the_rightful_holder_out() -> None:
    before = Fleet()
    mine = before.join("a")
    fleet = Fleet(before.registry.snapshot())
    fleet.hello("m", running=mine)
    fleet.hello("a", running=mine)
    fleet.tick()
    assert fleet.holds("a") == mine
    assert fleet.deliver(min(mine), "a", ALICE) is Delivery.FIRST
    assert fleet.registry.office.check() == []


def test_an_episode_may_come_before_its_workers_hello_after_a_restart() -> None:
    before = Fleet()
    mine = before.join("a")
    fleet = Fleet(before.registry.snapshot())
    assert fleet.deliver(min(mine), "a", ALICE) is Delivery.FIRST
    assert fleet.registry.office.check() == []


def test_tickets_that_are_kept_for_too_long_cost_their_key_and_go_to_others() -> None:
    fleet = Fleet()
    hoard = fleet.join("m", slots=50)
    assert hoard == set(range(8)), "all that may be outstanding"
    limit = max(OVERDUE_STUCK_TIMES * STUCK_SECONDS, OVERDUE_UNKNOWN_SECONDS)
    seconds = 0.0
    while fleet.registry.roster.key_of("m") and fleet.holds("m"):
        fleet.beat("m", 1, running=hoard)
        fleet.tick(1.0)
        seconds += 1.0
        assert seconds < limit + 10
    assert seconds >= limit
    [overdue] = [one for one in fleet.offences if one.offence == "tickets held for too long"]
    assert overdue == Misconduct(MALLORY, "tickets held for too long", 100.0)
    assert fleet.join("a", slots=4) == hoard
    assert fleet.registry.office.check() == []


def test_what_is_too_long_follows_from_how_long_the_others_take() -> None:
    fleet = Fleet()
    mine, kept = fleet.join("a"), fleet.join("m")
    for _ in range(20):
        fleet.beat("a", 1, running=mine)
        fleet.beat("m", 1, running=kept)
        fleet.tick(1.0)
    for number in mine:
        assert fleet.deliver(number, "a", ALICE) is Delivery.FIRST
    mean = fleet.registry._holds.mean_seconds
    assert mean is not None and 19 <= mean <= 20
    for _ in range(int(OVERDUE_MEANS * mean) - 25):
        fleet.beat("m", 1, running=kept)
        fleet.tick(1.0)
    assert fleet.holds("m") == kept, "slow is not hostile"
    for _ in range(30):
        fleet.beat("m", 1, running=kept)
        fleet.tick(1.0)
    assert not fleet.holds("m")


@pytest.mark.parametrize(
    ("deed", "offence"),
    [
        (lambda fleet: fleet.beat("m", answer=99), "refused session"),
        (lambda fleet: fleet.beat("m", running=set(range(100_000))), "refused session"),
        (
            lambda fleet: fleet.beat(
                "m", failures=tuple(Failure(Ticket("train", n), "x") for n in (0, 1, 77))
            ),
            "failed ticket",
        ),
    ],
)
def test_misdeeds_are_counted(deed: Any, offence: str) -> None:
    fleet = Fleet()
    fleet.join("m")
    assert [one.offence for one in fleet.offences] == ["new session"]
    deed(fleet)
    fleet.tick()
    found = fleet.offences[1:]
    assert [one.offence for one in found] == [offence]
    assert found[0].times == (2 if offence == "failed ticket" else 1), "only what it holds can fail"


def test_expelled_workers_are_refused_and_their_tickets_go_to_others() -> None:
    fleet = Fleet()
    held = fleet.join("m")
    fleet.registry.membership.expel(MALLORY, "enough", fleet.now)
    instructions = fleet.tick()
    assert [one.message for one in instructions if isinstance(one, Send)] == [Refuse("enough")]
    lines = [one.text for one in instructions if isinstance(one, Log)]
    assert any(line.startswith("refused 1 worker (") and line.endswith("): enough") for line in lines)
    assert held <= fleet.join("a", slots=8)


def test_requests_for_versions_that_nobody_has_are_not_kept() -> None:
    fleet = Fleet()
    fleet.join("m")
    for version in range(1, 1_000):
        fleet.registry.snapshot_request(SnapshotRequest("m", version), fleet.now)
    assert len(fleet.registry._snapshots.waiting) == 0


def test_without_keys_nothing_is_counted_and_any_first_copy_counts() -> None:
    fleet = Fleet()
    fleet.registry.membership.hello(Hello("a", "host", 1, 2, "1.0"), fleet.now)
    fleet.beat("a")
    [number, *_] = sorted(granted(fleet.tick(), "a"))
    assert fleet.offences == []
    assert fleet.deliver(number, "whoever", "") is Delivery.FIRST
