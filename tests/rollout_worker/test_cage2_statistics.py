"""Free-running laws: returns against the reference tables, frequencies of every draw. Seeds are fixed."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from rollout_worker.environments.cage2 import kernels, tables
from rollout_worker.environments.cage2.conformance import load_trace
from rollout_worker.environments.cage2.scenario import Cage2Options
from rollout_worker.environments.cage2.slots import Cage2Slots
from rollout_worker.environments.cage2.state import OUTCOME, ROW, initial_row

ROOT = Path(__file__).parents[2]
RECORDED = ROOT.parent / "shared" / "cage2" / "traces"
TRACES = sorted(RECORDED.glob("*.npz")) or [ROOT / "tests" / "data" / "cage2_meander_memory.npz"]
EPISODES, STEPS = 4000, 100
SIGMAS = 3.5
RARE = 2 * stats.norm.sf(SIGMAS)  # the probability of a deviation that large

# MECHANICS.md, sections 13 and 14.3: mean and standard error at 30, 50, 100 steps, of the real environment
# and of another simulator written from the same rules.
REFERENCE = """
current b_line sleep -218.13 1.40 -480.13 1.40 -1135.13 1.40 -218.04 .35 -480.04 .35 -1135.04 .35
current b_line uniform -148.37 4.55 -329.89 8.74 -730.21 19.53 -154.44 1.43 -339.50 2.91 -744.03 6.49
current b_line restore -14.87 .18 -27.39 .58 -64.03 2.26 -14.90 .05 -27.33 .14 -64.08 .52
current meander sleep -40.96 1.77 -264.17 5.66 -967.64 5.21 -39.93 .37 -269.33 1.26 -972.23 1.26
current meander uniform -32.79 .65 -168.77 4.42 -587.81 13.64 -34.13 .28 -169.36 1.68 -576.04 5.21
current meander restore -12.24 .06 -24.11 .18 -58.48 .83 -12.35 .02 -24.08 .06 -58.45 .21
current sleep sleep 0 0 0 0 0 0 0 0 0 0 0 0
current sleep uniform -2.77 .22 -4.52 .27 -8.62 .40 -2.69 .03 -4.48 .04 -9.01 .05
current sleep restore 0 0 0 0 0 0 0 0 0 0 0 0
leaderboard b_line sleep -219.26 1.49 -481.26 1.49 -1136.26 1.49 -217.73 .35 -479.73 .35 -1134.73 .35
leaderboard b_line uniform -152.88 3.79 -335.58 7.69 -738.28 16.70 -154.10 1.44 -336.74 2.94 -731.16 6.50
leaderboard b_line restore -11.31 .38 -20.88 .83 -51.15 2.51 -10.95 .10 -20.47 .21 -51.05 .65
leaderboard b_line decoys -9.75 .33 -16.64 .57 -34.02 1.25 -9.77 .08 -16.58 .15 -33.69 .31
leaderboard meander sleep -39.20 1.69 -271.79 6.43 -976.42 7.23 -39.83 .37 -268.87 1.27 -971.76 1.27
leaderboard meander uniform -34.49 .76 -163.34 4.43 -561.36 13.82 -33.74 .29 -167.25 1.68 -581.85 5.23
leaderboard meander restore -10.70 .09 -19.74 .22 -46.76 .79 -10.64 .03 -19.99 .07 -47.39 .22
leaderboard meander decoys -10.26 .09 -18.55 .16 -40.21 .50 -10.33 .02 -18.59 .04 -40.61 .14
""".strip().splitlines()


Observations = NDArray[np.uint8]
Actions = NDArray[np.int64]


def restore(observations: Observations, step: int, otherwise: int = 0) -> Actions:
    """Restore the first host marked User or Privileged."""
    marked = observations.reshape(-1, 13, 4)[:, :, 3]
    actions: Actions = np.where(marked.any(1), 132 + marked.argmax(1), otherwise)
    return actions


def decoys(observations: Observations, step: int) -> Actions:
    return restore(observations, step, (43, 44, 55, 61)[step % 4])


def policies(seed: int) -> dict[str, Callable[[Observations, int], Actions]]:
    """Blue's policies of the reference tables."""
    rng = np.random.default_rng(seed)
    return {
        "sleep": lambda observations, step: np.zeros(len(observations), np.int64),
        "uniform": lambda observations, step: rng.integers(0, 145, len(observations)),
        "restore": restore,
        "decoys": decoys,
    }


@cache
def play(
    rules: str, red: str, policy: str, green: bool = False
) -> tuple[NDArray[np.float64], dict[str, NDArray[Any]]]:
    """The rewards of a free run and its outcomes with the ports Red chose from, each [episodes, steps]."""
    options = Cage2Options(rules=rules, green=green, red_agent=red, max_steps=STEPS)
    slots = Cage2Slots(EPISODES, options)
    everyone = np.arange(EPISODES)
    observations = slots.reset(everyone, np.arange(EPISODES, dtype=np.uint64) + 10**6, [{}] * EPISODES)
    choose = policies(1)[policy]
    rewards = np.zeros((EPISODES, STEPS))
    outcomes = {name: np.zeros((EPISODES, STEPS), np.int64) for name in (*(OUTCOME.names or ()), "ports")}
    for step in range(STEPS):
        ports = slots.rows["ports"].copy()
        observations, rewards[:, step], terminated, truncated = slots.step(
            everyone, choose(observations, step)
        )
        for name in OUTCOME.names or ():
            outcomes[name][:, step] = slots.rows["outcome"][name]
        outcomes["ports"][:, step] = ports[everyone, np.maximum(slots.rows["outcome"]["red_target"], 0)]
        assert not terminated.any()
        assert truncated.all() == truncated.any() == (step == STEPS - 1)
    return rewards, outcomes


@pytest.mark.parametrize("line", REFERENCE, ids=lambda line: "-".join(line.split()[:3]))
def test_returns_agree_with_the_reference(line: str) -> None:
    rules, red, policy, *figures = line.split()
    returns = play(rules, red, policy)[0].cumsum(1)
    means, errors = np.array(figures, float).reshape(2, 3, 2).transpose(2, 0, 1)  # [source, length]
    own = returns[:, [29, 49, 99]]
    combined = np.hypot(errors, own.std(0, ddof=1) / np.sqrt(EPISODES))
    rounding = 0.005
    deviations = np.abs(own.mean(0) - means)
    assert (deviations <= SIGMAS * combined + rounding).all(), (
        deviations / np.maximum(combined, 1e-9)
    ).round(1)


def fair(counts: NDArray[np.int64]) -> bool:
    """Whether counts are those of a uniform draw."""
    return bool(stats.chisquare(counts).pvalue > RARE)


def probable(hits: int, trials: int, probability: float) -> bool:
    return bool(stats.binomtest(int(hits), int(trials), probability).pvalue > RARE)


RUNS = [
    ("current", "b_line", "uniform"),
    ("current", "meander", "restore"),
    ("leaderboard", "meander", "uniform"),
]


@pytest.mark.parametrize("run", RUNS, ids="-".join)
def test_exploits_favour_the_heaviest_three_times_in_four_and_are_detected_19_times_in_20(
    run: tuple[str, str, str],
) -> None:
    outcomes = play(*run)[1]
    exploiting = outcomes["exploit"] >= 0
    candidates = tables.CANDIDATES[outcomes["ports"][exploiting]].astype(np.int64)
    chosen = outcomes["exploit"][exploiting]
    assert (candidates >> chosen & 1).all()
    several = candidates & (candidates - 1) != 0
    favourite = chosen == tables.FAVOURITE[candidates]
    assert favourite[~several].all()
    assert probable(favourite[several].sum(), several.sum(), 0.75)
    for mask in np.unique(candidates[several]):
        numbers = [e for e in range(8) if mask >> e & 1 and e != tables.FAVOURITE[mask]]
        others = chosen[several & (candidates == mask) & ~favourite]
        counts = np.array([(others == e).sum() for e in numbers])
        if counts.sum() >= 20 and len(counts) > 1:
            assert fair(counts), (mask, counts)
    detections = outcomes["detected"][outcomes["detected"] >= 0]
    assert probable(detections.sum(), detections.size, 0.95)
    # The draws of one step are independent: detection does not depend on the choice.
    drawn = several & (outcomes["detected"][exploiting] >= 0)
    table = np.array([[(favourite[drawn] == a)[outcomes["detected"][exploiting][drawn] == b].sum()
                       for a in (0, 1)] for b in (0, 1)])  # fmt: skip
    assert stats.chi2_contingency(table).pvalue > RARE


def test_red_draws_its_targets_uniformly() -> None:
    foothold = play("current", "b_line", "sleep")[1]["red_target"][:, 1]
    assert fair(np.bincount(foothold, minlength=13)[9:13])
    order = play("current", "meander", "sleep")[1]["red_target"][:, 1:6]  # the five hosts of the first sweep
    assert (np.sort(order, 1) == np.arange(8, 13)).all()
    permutations = np.unique(order, axis=0, return_counts=True)[1]
    assert len(permutations) == 120
    assert fair(permutations)


def test_green_scans_every_other_step_one_of_eight_hosts() -> None:
    outcomes = play("current", "sleep", "sleep", True)[1]
    kinds, targets = outcomes["green_kind"], outcomes["green_target"]
    assert probable(kinds.sum(), kinds.size, 0.5)
    hosts = [1, 2, 3, 8, 9, 10, 11, 12]
    counts = np.bincount(targets[kinds == 1], minlength=13)
    assert counts[hosts].sum() == kinds.sum()
    assert fair(counts[hosts])
    lag = np.corrcoef(kinds[:, :-1].ravel(), kinds[:, 1:].ravel())[0, 1]
    assert abs(lag) * np.sqrt(kinds[:, 1:].size) < SIGMAS


def test_escalation_picks_every_user_session_alike() -> None:
    rows, host = np.zeros(3000, ROW), 9
    slots, ones = np.arange(len(rows)), np.ones(len(rows), np.int64)
    settings = np.tile([tables.AGENT_B_LINE, 0, 0, 0, 100], (len(rows), 1))
    kernels.reset_rows(rows, initial_row(), slots, slots.astype(np.uint64), settings)
    rows["b_line_counter"], rows["red_success"], rows["b_line_foothold"] = 2, 1, host  # escalates User1 next
    rows["access"] |= 1 << host
    rows["fixed_sessions"][:, host], rows["removable_sessions"][:, host] = 1, 2
    rows["removable_order"][:, host] = 0b101
    observations, rewards = np.zeros((len(rows), 52), np.uint8), np.zeros(len(rows), np.float32)
    scripts, truncated = np.zeros(len(rows), OUTCOME), np.zeros(len(rows), np.bool_)
    kernels.step_rows(rows, scripts, slots, ones * 0, observations, rewards, truncated)
    picks = rows["outcome"]["escalate_pick"]
    assert fair(np.bincount(picks))
    np.testing.assert_array_equal(rows["outcome"]["escalate_pick_removable"], np.array([1, 0, 1])[picks])
    np.testing.assert_array_equal(rows["removable_sessions"][:, host], np.array([1, 2, 1])[picks])


def splitmix64(state: int, draws: int) -> list[int]:
    """The published generator, in Python's integers."""
    numbers = []
    for _ in range(draws):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        numbers.append(z ^ z >> 31)
    return numbers


def test_random_numbers_are_splitmix64_and_neighbouring_seeds_are_unrelated() -> None:
    from rollout_worker.environments.cage2.randomness import random_bits

    rows = np.zeros(64, ROW)
    settings = np.tile([0, 0, 0, 0, 100], (64, 1))
    kernels.reset_rows(rows, initial_row(), np.arange(64), np.arange(64, dtype=np.uint64), settings)
    numbers = []
    for row in rows:
        assert [int(random_bits(row, draw)) for draw in range(3)] == splitmix64(int(row["key"]), 3)
        numbers += [number / 2**64 for number in splitmix64(int(row["key"]), 8 * STEPS)]
    draws = np.array(numbers).reshape(64, -1)
    assert stats.kstest(draws.ravel(), "uniform").pvalue > RARE
    correlations = np.corrcoef(draws)[np.triu_indices(64, 1)]
    assert abs(correlations * np.sqrt(draws.shape[1])).max() < stats.norm.isf(RARE / 2 / correlations.size)


def z_score(happened: NDArray[np.bool_], probabilities: NDArray[np.float64]) -> float:
    variance = (probabilities * (1 - probabilities)).sum()
    return float((happened.sum() - probabilities.sum()) / np.sqrt(variance)) if variance else 0.0


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_recorded_outcomes_are_as_probable_as_the_rules_say(path: Path) -> None:
    trace = load_trace(path)
    exploiting = trace["exploit"] >= 0
    episodes, steps = np.nonzero(exploiting)
    ports = trace["red_port_memory"][episodes, steps, trace["red_target"][exploiting]]
    candidates = tables.CANDIDATES[ports].astype(np.int64)
    number = np.array([mask.bit_count() for mask in candidates.tolist()], np.int64)
    chosen = trace["exploit"][exploiting]
    for which in range(8):
        possible = (candidates >> which & 1 == 1) & (number > 1)
        others = 0.25 / np.maximum(number[possible] - 1, 1)
        weights = np.where(tables.FAVOURITE[candidates[possible]] == which, 0.75, others)
        assert abs(z_score(chosen[possible] == which, weights)) < SIGMAS, tables.EXPLOITS[which]
    detected = trace["detected"][trace["detected"] >= 0]
    assert abs(z_score(detected == 1, np.full(detected.size, 0.95))) < SIGMAS
