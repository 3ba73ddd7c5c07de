from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from protocol.tickets import (
    SEQUENCES,
    Ticket,
    action_key,
    action_uniforms,
    environment_seed,
    mix64,
)

tickets = st.builds(Ticket, st.sampled_from(SEQUENCES), st.integers(0, 2**63 - 1))
seeds = st.integers(0, 2**63 - 1)
keys = st.integers(0, 2**64 - 1)


def test_mix64_is_the_finaliser_of_splitmix64() -> None:
    """The published first outputs of SplitMix64 from seed 1234567."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * golden
    assert mix64(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_keys_never_change() -> None:
    """Recorded runs are replayed from these: a change here breaks every checkpoint."""
    assert environment_seed(7, Ticket("train", 3)) == 8291948987866145469
    assert action_key(7, Ticket("evaluate", 3)) == 6464767658422109953
    uniforms = action_uniforms(np.array([6464767658422109953], np.uint64), np.array([5], np.int64))
    assert uniforms.tolist() == [0.7382145984160416]


def test_no_two_streams_of_a_run_are_the_same() -> None:
    drawn = [
        stream(run_seed, Ticket(sequence, number))
        for stream in (environment_seed, action_key)
        for run_seed, sequence, number in product(range(5), SEQUENCES, range(500))
    ]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("stream", [environment_seed, action_key])
@given(run_seed=seeds, ticket=tickets)
def test_keys_are_64_bits_and_repeatable(
    stream: Callable[[int, Ticket], int], run_seed: int, ticket: Ticket
) -> None:
    key = stream(run_seed, ticket)
    assert type(key) is int
    assert 0 <= key < 2**64
    assert stream(run_seed, Ticket(ticket.sequence, ticket.number)) == key


@given(st.lists(st.tuples(keys, st.integers(0, 10_000)), min_size=1, max_size=20))
def test_a_draw_depends_on_its_key_and_step_alone(rows: list[tuple[int, int]]) -> None:
    together = action_uniforms(
        np.array([key for key, _ in rows], np.uint64), np.array([step for _, step in rows], np.int64)
    )
    alone = [action_uniforms(np.array([key], np.uint64), np.array([step], np.int64))[0] for key, step in rows]
    assert together.tolist() == alone
    assert (together >= 0).all() and (together < 1).all()


def test_draws_are_uniform_and_independent_over_steps_and_tickets() -> None:
    numbers, steps = np.meshgrid(np.arange(400), np.arange(100), indexing="ij")
    key = np.array([action_key(1, Ticket("train", number)) for number in range(400)], np.uint64)
    draws = action_uniforms(key[numbers.ravel()], steps.ravel()).reshape(numbers.shape)
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 0.001
    for pairs in ((draws[:, 1:], draws[:, :-1]), (draws[1:], draws[:-1])):
        assert abs(np.corrcoef(pairs[0].ravel(), pairs[1].ravel())[0, 1]) < 4 / np.sqrt(draws.size)


def test_a_ticket_names_itself_and_sorts_by_number() -> None:
    assert str(Ticket("train", 12)) == "train:12"
    assert sorted([Ticket("train", 12), Ticket("train", 2)]) == [Ticket("train", 2), Ticket("train", 12)]
