"""Proximal policy optimisation, from a batch of episodes to new weights.

PPO with clipping (Schulman et al., arXiv 1707.06347) in its decoupled form (Hilton et al., arXiv 2110.00641):
the ratio is clipped against the *proximal* policy, the learner's own at the start of the update, and a sample
is weighted by its probability under that policy over the one under the *behaviour* policy that played it,
truncated. Where the newest weights played the whole batch the two are the same, and this is plain PPO.

Actor and critic share the batch and nothing else, so each takes its gradient steps in a thread of its own;
the bits do not depend on how the two get on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam

from learner.batches import Batch
from learner.config import PPOConfig
from learner.diagnostics import explained_variance, staleness
from learner.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    exploration_loss,
    mean_entropy,
)
from learner.models import ActorCritic
from learner.samples import Samples, judge

_ADAM_EPSILON = 1e-5


class UpdateAbandoned(Exception):
    """The update was told to stop; the weights are somewhere on the way."""


class Optimisers(NamedTuple):
    """Those of the two networks."""

    actor: Adam
    critic: Adam

    @classmethod
    def of(cls, model: ActorCritic) -> Optimisers:
        """Return fresh ones."""
        networks = (model.actor, model.critic)
        return cls(*(Adam(network.parameters(), eps=_ADAM_EPSILON, fused=True) for network in networks))


@dataclass(frozen=True, slots=True)
class Schedule:
    """What has its own value in each update."""

    learning_rate: float
    entropy_weight: float


def run_update(
    model: ActorCritic,
    optimisers: Optimisers,
    batch: Batch,
    config: PPOConfig,
    *,
    seed: int,
    update: int,
    updates: int,
    should_stop: Callable[[], bool],
) -> dict[str, float]:
    """Change `model` and `optimisers` by update `update` of 0 .. `updates` - 1, and return its figures.

    The result depends on the other arguments alone. `should_stop` is asked before every gradient step of the
    actor; when it says so, UpdateAbandoned is raised.
    """
    began = time.perf_counter()
    progress = min(1.0, update / max(1, updates - 1))
    schedule = Schedule(
        learning_rate=config.learning_rate + progress * (config.final_learning_rate - config.learning_rate),
        entropy_weight=config.entropy + progress * (config.final_entropy - config.entropy),
    )
    _set_up_thread()
    with ThreadPoolExecutor(1, "critic", _set_up_thread) as critic_thread:
        samples, log_weights = judge(model, batch, config, progress, critic_thread)
        evaluated = time.perf_counter()
        seeds = [seed % 2**64, update]
        figures = improve(model, optimisers, samples, config, schedule, seeds, critic_thread, should_stop)
    return {
        **figures,
        **staleness(log_weights, update - batch.versions),
        "explained_variance": explained_variance(samples.values.numpy(), samples.returns.numpy()),
        **asdict(schedule),
        "evaluate_seconds": evaluated - began,
        "optimise_seconds": time.perf_counter() - evaluated,
    }


def improve(
    model: ActorCritic,
    optimisers: Optimisers,
    samples: Samples,
    config: PPOConfig,
    schedule: Schedule,
    seeds: list[int],
    critic_thread: ThreadPoolExecutor,
    should_stop: Callable[[], bool],
) -> dict[str, float]:
    """Take the gradient steps of both networks, the critic's in its thread; return means of their figures.

    Both see the samples in the same order, which `seeds` decide.
    """
    abandoned = threading.Event()
    take_steps = partial(_take_steps, samples=samples, config=config, schedule=schedule, seeds=seeds)
    critic_steps = critic_thread.submit(
        take_steps,
        model.critic,
        optimisers.critic,
        lambda part: critic_losses(model, part, config),
        should_stop=abandoned.is_set,
    )
    try:
        actor_steps = take_steps(
            model.actor,
            optimisers.actor,
            lambda part: actor_losses(model, part, config, schedule.entropy_weight),
            should_stop=should_stop,
            target_kl=config.target_kl,
        )
    except BaseException:
        abandoned.set()
        raise
    return {
        **_means(ACTOR_FIGURES, actor_steps),
        **_means(CRITIC_FIGURES, critic_steps.result()),
        "gradient_steps": len(actor_steps),
    }


def minibatches(n: int, config: PPOConfig, generator: np.random.Generator) -> Iterator[Tensor]:
    """Yield the sample numbers of each gradient step: all once an epoch, in parts of nearly one size."""
    parts = max(1, round(n / config.minibatch_steps))
    for _ in range(config.epochs):
        yield from torch.from_numpy(generator.permutation(n)).tensor_split(parts)


def _take_steps(
    network: nn.Module,
    optimiser: Adam,
    losses_of: Callable[[Samples], tuple[Tensor, ...]],
    *,
    samples: Samples,
    config: PPOConfig,
    schedule: Schedule,
    seeds: list[int],
    should_stop: Callable[[], bool],
    target_kl: float = 0.0,
) -> list[Tensor]:
    """Take one network's gradient steps; return its figures and the norm of its gradient at each.

    `losses_of` gives what is minimised, then the figures. The steps end early where `target_kl` > 0 and the
    KL divergence among the figures exceeds it. Raises UpdateAbandoned.
    """
    steps: list[Tensor] = []
    optimiser.param_groups[0]["lr"] = schedule.learning_rate
    for index in minibatches(len(samples.actions), config, np.random.default_rng(seeds)):
        if should_stop():
            raise UpdateAbandoned
        loss, *figures = losses_of(samples.take(index))
        if target_kl and figures[_KL] > target_kl:
            break
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm)
        optimiser.step()
        steps.append(torch.stack([*figures, norm]).detach())
    return steps


ACTOR_FIGURES = ("policy_loss", "entropy", "approx_kl", "clip_fraction", "actor_grad_norm")
CRITIC_FIGURES = ("value_loss", "critic_grad_norm")
_KL = ACTOR_FIGURES.index("approx_kl")


def actor_losses(
    model: ActorCritic, samples: Samples, config: PPOConfig, entropy_weight: float
) -> tuple[Tensor, ...]:
    """Return what the actor minimises, then the scalars ACTOR_FIGURES but the last."""
    log_distribution, legality = model.log_probs(samples.observations)
    log_ratios = log_distribution.gather(1, samples.actions)[:, 0] - samples.proximal_log_probs
    policy_loss = clipped_policy_loss(log_ratios, samples.weights, samples.advantages, config.clip)
    entropy = mean_entropy(log_distribution)
    loss = policy_loss - entropy_weight * entropy
    if config.exploration:
        loss = loss + exploration_loss(log_distribution, legality, samples.exploration)
    with torch.no_grad():
        moved = log_ratios.expm1()
        approximate_kl = (moved - log_ratios).mean()
        clip_fraction = (moved.abs() > config.clip).float().mean()
    return loss, policy_loss, entropy, approximate_kl, clip_fraction


def critic_losses(model: ActorCritic, samples: Samples, config: PPOConfig) -> tuple[Tensor, Tensor]:
    """Return what the critic minimises, then the value loss."""
    values = model.values(samples.observations)
    loss = clipped_value_loss(values, samples.values, samples.returns, config.clip_value)
    return config.value_coefficient * loss, loss


def _set_up_thread() -> None:
    torch.set_flush_denormal(True)  # products of tiny numbers take 10 times as long otherwise
    torch.set_num_threads(torch.get_num_threads())  # a new thread takes all cores where nobody says otherwise


def _means(names: tuple[str, ...], steps: list[Tensor]) -> dict[str, float]:
    means = torch.stack(steps).mean(dim=0).tolist() if steps else [0.0] * len(names)
    return dict(zip(names, means, strict=True))
