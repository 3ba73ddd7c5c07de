"""Synthetic episodes for the learner's tests."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch

from protocol.messages import Episode, Version
from protocol.specs import PolicySpec
from protocol.tickets import Ticket

EpisodeMaker = Callable[..., list[Episode]]


@pytest.fixture(autouse=True)
def leave_no_processor_state() -> Iterator[None]:
    """Undo what an update does to its thread: other tests of the process need numbers next to zero."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def make_episodes() -> EpisodeMaker:
    def make(spec: PolicySpec, lengths: Sequence[int], seed: int = 0, version: int = 0) -> list[Episode]:
        return [_episode(spec, length, number, seed, version) for number, length in enumerate(lengths)]

    return make


def _episode(spec: PolicySpec, length: int, number: int, seed: int, version: int) -> Episode:
    random = np.random.default_rng([seed, number])
    observations = random.standard_normal((length + 1, spec.inputs)).astype(np.float32)
    actions = random.integers(0, spec.actions, length)
    if spec.masked:
        mask = (random.random((length + 1, spec.actions)) < 0.6).astype(np.uint8)
        mask[np.arange(length), actions] = 1
        observations = np.concatenate([(observations > 0.5).astype(np.uint8), mask], axis=1)
    return Episode(
        run="run",
        session="session",
        ticket=Ticket("train", number),
        version=Version(1, version),
        terminated=bool(number % 2),
        seconds=0.1,
        observations=observations,
        actions=actions,
        rewards=random.standard_normal(length).astype(np.float32),
        log_probs=(np.log(1 / spec.actions) + 0.3 * random.standard_normal(length)).astype(np.float32),
    )
