from __future__ import annotations

from collections import Counter
from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from learner.conduct import BUDGETS, HALF_LIFE_SECONDS, LIMIT, POINTS, Conduct, Line, Offence

KEY, OTHER = "a", "b"
OFFENCES: list[Offence] = list(get_args(Offence))
LINES: list[Line] = list(BUDGETS)


def test_every_offence_costs() -> None:
    assert POINTS.keys() == set(OFFENCES)
    assert all(0 < points <= LIMIT for points in POINTS.values())


@given(st.sampled_from(OFFENCES))
def test_enough_of_anything_expels_once_and_says_why(offence: Offence) -> None:
    conduct = Conduct()
    needed = round(LIMIT / POINTS[offence])
    for _ in range(needed - 1):
        conduct.offend(KEY, offence, 0.0)
    assert conduct.take_verdicts() == []
    for _ in range(10):
        conduct.offend(KEY, offence, 0.0)
    [(key, reason)] = conduct.take_verdicts()
    assert key == KEY and offence in reason
    assert conduct.take_verdicts() == []
    assert conduct.to_plain(0.0)[KEY]["expelled"] == reason


def test_points_fade_and_one_key_does_not_pay_for_another() -> None:
    conduct = Conduct()
    for _ in range(99):
        conduct.offend(KEY, "no valid message", 0.0)
    conduct.offend(OTHER, "no valid message", 0.0)
    assert conduct.to_plain(HALF_LIFE_SECONDS)[KEY]["points"] == 49.5
    assert conduct.to_plain(HALF_LIFE_SECONDS)[OTHER]["points"] == 0.5
    assert conduct.take_verdicts() == []


def test_good_episodes_pay_for_mistakes() -> None:
    conduct = Conduct()
    for _ in range(10 * int(LIMIT)):
        conduct.offend(KEY, "invalid episode", 0.0)
        for _ in range(100):
            conduct.useful(KEY, "episodes", 0.0)
    assert conduct.take_verdicts() == []


def test_a_clock_that_stands_still_or_goes_back_breaks_nothing() -> None:
    conduct = Conduct()
    for now in (10.0, 5.0, -1e9, 10.0):
        conduct.offend(KEY, "no valid message", now)
        assert conduct.spend(KEY, "control", now)
    assert conduct.to_plain(10.0)[KEY]["points"] <= 4


@settings(max_examples=10)
@given(st.sampled_from(LINES), st.floats(0.1, 1e4))
def test_a_flood_is_cut_to_the_budget_then_expelled(line: Line, seconds: float) -> None:
    conduct, budget, sent = Conduct(), BUDGETS[line], 30_000
    passed = sum(conduct.spend(KEY, line, seconds * number / sent) for number in range(sent))
    assert passed <= budget.burst + budget.per_second * seconds + 1
    dropped = sent - passed
    assert conduct.to_plain(seconds)[KEY]["offences"] == (
        {"frame beyond the budget": dropped} if dropped else {}
    )


def test_a_flood_at_once_expels() -> None:
    conduct = Conduct()
    for _ in range(int(BUDGETS["control"].burst + LIMIT / POINTS["frame beyond the budget"]) + 10):
        conduct.spend(KEY, "control", 0.0)
    assert [key for key, _ in conduct.take_verdicts()] == [KEY]
    assert conduct.to_plain(0.0)[KEY]["throttled"]


def test_an_honest_fleet_of_a_thousand_workers_on_one_key_is_never_held_up() -> None:
    conduct, dropped = Conduct(), Counter[str]()
    for _ in range(1_000):
        conduct.offend(KEY, "new session", 0.0)
    conduct.spend(KEY, "control", 0.0)
    conduct.count_sessions({KEY: 1_000})
    for second in range(60):
        for number in range(2_000):  # heartbeats
            dropped["control"] += not conduct.spend(KEY, "control", second + number / 2_000)
        for number in range(3_000):  # each episode twice, as after a reconnect
            dropped["episodes"] += not conduct.spend(KEY, "episodes", second + number / 3_000)
            if number % 2:
                conduct.useful(KEY, "episodes", second + number / 3_000)
    assert not +dropped
    assert conduct.take_verdicts() == []


def test_a_key_that_was_revoked_and_allowed_begins_anew() -> None:
    conduct = Conduct()
    conduct.offend(KEY, "another key's session", 0.0, times=100)
    assert conduct.take_verdicts()
    conduct.forget(KEY)
    assert conduct.to_plain(0.0) == {}
    conduct.offend(KEY, "another key's session", 0.0, times=100)
    assert conduct.take_verdicts()
