"""The true state as features: a function of the row, complete, and different where the state differs."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rollout_worker.environments.cage2 import kernels, tables
from rollout_worker.environments.cage2.full_view import STATE_SIZE
from rollout_worker.environments.cage2.options import HISTORY_SIZE
from rollout_worker.environments.cage2.scenario import Cage2Options
from rollout_worker.environments.cage2.slots import Cage2Slots
from rollout_worker.environments.cage2.state import OUTCOME, ROW, initial_row

B_LINE, MEANDER = tables.AGENT_B_LINE, tables.AGENT_MEANDER


def states(rows: NDArray[Any]) -> NDArray[np.uint8]:
    features = np.full((len(rows), STATE_SIZE), 99, np.uint8)
    mind = np.full(1, 77, np.uint8).repeat(ROW.itemsize).view(ROW)
    kernels.write_states(rows, np.arange(len(rows)), mind, np.zeros(1, OUTCOME), features)
    return features


def played(red: str, seeds: int, steps: int, **options: Any) -> list[tuple[NDArray[Any], Any]]:
    """Rows before each step of random episodes, and what was shown of them."""
    chosen = Cage2Options(observation="state", actions="compact", **options)
    slots, every = Cage2Slots(seeds, chosen), np.arange(seeds)
    shown = slots.reset(every, every.astype(np.uint64), [{"red_agent": red}] * seeds)
    rng, found = np.random.default_rng(3), []
    for _ in range(steps):
        found.append((slots.rows.copy(), shown[:, HISTORY_SIZE : HISTORY_SIZE + STATE_SIZE]))
        useful = rng.integers(1, 37, seeds) * (rng.random(seeds) < 0.4)
        shown = slots.step(every, useful)[0]
    return found


@pytest.mark.parametrize("red", ["sleep", "b_line", "meander"])
def test_the_state_is_a_function_of_the_row_alone(red: str) -> None:
    for rows, shown in played(red, 20, 40):
        before = rows.tobytes()
        np.testing.assert_array_equal(states(rows), shown)
        np.testing.assert_array_equal(states(rows[::-1].copy()), shown[::-1])
        assert rows.tobytes() == before
        assert shown.max() == 1
        same = rows.copy()
        same["key"], same["ports_known"], same["blue_action"], same["compromised"] = 9, 0, 0, 5
        np.testing.assert_array_equal(states(same), shown)


@pytest.mark.parametrize(
    ("agent", "field", "value"),
    [
        (B_LINE, "red_agent", MEANDER),
        (B_LINE, "red_agent", tables.AGENT_SLEEP),
        (B_LINE, "green", 1),
        (B_LINE, "leaderboard", 1),
        (B_LINE, "step", 99),
        (B_LINE, "step", 70),
        (B_LINE, "malware", 1 << 7),
        (B_LINE, "mail_safe", 1 << 12),
        (B_LINE, "ot_running", 0),
        (B_LINE, "ot_pid_known", 0),
        (B_LINE, "ot_known", 1),
        (B_LINE, "decoys", (7, 1 << tables.TOMCAT)),
        (B_LINE, "ports", (2, int(tables.ORIGINAL_PORTS[2]))),
        (B_LINE, "privileged_sessions", (3, 1)),
        (B_LINE, "removable_sessions", (3, 1)),
        (B_LINE, "fixed_sessions", (12, 2)),
        (B_LINE, "b_line_counter", 9),
        (B_LINE, "b_line_foothold", 10),
        (B_LINE, "b_line_attacked_server", 1),
        (B_LINE, "red_success", tables.TRUE),
        (MEANDER, "scanned_subnets", 1 << 2),
        (MEANDER, "known_subnets", 1 << 2 | 1),
        (MEANDER, "known_addresses", 1 << 8 | 1 << 2),
        (MEANDER, "known_names", 1 << 8 | 1 << 9),
        (MEANDER, "meander_scanned", 1 << 9),
        (MEANDER, "meander_exploited", 1 << 9),
        (MEANDER, "meander_escalated", 1 << 9),
        (MEANDER, "meander_mapped", 1 << 9),
    ],
)
def test_states_that_differ_show_differently(agent: int, field: str, value: int | tuple[int, int]) -> None:
    rows = np.repeat(initial_row(), 2)
    rows["red_agent"], rows["length"] = agent, 100
    if isinstance(value, tuple):
        rows[field][1, value[0]] = value[1]
    else:
        rows[field][1] = value
    one, other = states(rows)
    assert (one != other).any()


def test_the_last_exploit_shows_in_what_red_makes_of_it() -> None:
    rows = np.repeat(initial_row(), 3)
    rows["red_agent"], rows["length"], rows["meander_exploited"] = MEANDER, 100, 1 << 9 | 1 << 10
    rows["red_success"], rows["last_exploit"] = tables.FALSE, (-1, 9, 10)
    assert len({state.tobytes() for state in states(rows)}) == 3


@pytest.mark.parametrize("red", ["b_line", "meander"])
def test_reds_next_action_is_among_those_shown(red: str) -> None:
    found = played(red, 50, 60)
    several = 0
    for (_, shown), (after, _) in pairwise(found):
        kinds, hosts, subnets = np.split(shown[:, 25:47], [6, 19], axis=1)
        took = after["outcome"]
        np.testing.assert_array_equal(kinds.argmax(1), took["red_kind"])
        sweep = took["red_kind"] == tables.SWEEP
        assert not hosts[sweep].any() and not subnets[~sweep].any()
        every = np.flatnonzero(sweep)
        assert subnets[every, took["red_target"][every]].all()
        every = np.flatnonzero(~sweep)
        assert hosts[every, took["red_target"][every]].all()
        several += int((hosts.sum(1) > 1).sum())
    assert several > 100 or red == "b_line"


@pytest.mark.parametrize("rules", ["current", "leaderboard"])
@pytest.mark.parametrize("red", ["b_line", "meander"])
def test_states_that_show_alike_have_the_same_future(red: str, rules: str) -> None:
    """Rows of different pasts, given the same luck from here on, go on alike in Red's deeds and rewards."""
    first: dict[bytes, NDArray[Any]] = {}
    pairs = []
    for rows, shown in played(red, 400, 25, rules=rules):
        for row, state in zip(rows, shown, strict=True):
            known = first.setdefault(state.tobytes(), row)
            if any(known[name].tobytes() != row[name].tobytes() for name in ("outcome", "compromised")):
                pairs.append((known, row))
    assert len(pairs) > 200
    slots = Cage2Slots(2 * len(pairs))
    left, right = (np.array([pair[i] for pair in pairs], ROW) for i in (0, 1))
    # Luck: the random numbers, and which of several sessions of a host is the first.
    for name in ("key", "step", "length", "removable_order", "removable_sessions", "fixed_sessions"):
        right[name] = left[name]
    slots.rows[: len(pairs)], slots.rows[len(pairs) :] = left, right
    rng = np.random.default_rng(1)
    for _ in range(20):
        actions = np.tile(rng.integers(0, 145, len(pairs)) * (rng.random(len(pairs)) < 0.3), 2)
        rewards = slots.step(np.arange(2 * len(pairs)), actions)[1]
        one, other = np.split(states(slots.rows), 2)
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(rewards[: len(pairs)], rewards[len(pairs) :])
