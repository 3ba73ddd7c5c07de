"""Proximal policy optimisation, from a batch of episodes to new weights, top to bottom.

PPO with clipping (Schulman et al., arXiv 1707.06347) in its decoupled form (Hilton et al., arXiv 2110.00641):
the ratio is clipped against the *proximal* policy, the learner's own at the start of the update, and a sample
is weighted by its probability under that policy over the one under the *behaviour* policy that played it,
truncated. Where the newest weights played the whole batch the two are the same, and this is plain PPO.

Actor and critic share the batch and nothing else, so each takes its gradient steps in a thread of its own;
the bits do not depend on how the two get on. All of it runs under `torch.inference_mode()`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.adam import Adam, Optimisers
from learner.advantages import generalised_advantages
from learner.batches import Batch
from learner.config import PPOConfig
from learner.diagnostics import explained_variance, staleness
from learner.losses import (
    clip_norm,
    clipped_policy_loss,
    clipped_value_loss,
    entropy_and_gradient,
    exploration_gradient,
    exploration_weights,
    log_prob_gradient,
)
from learner.models import ActorCritic, Perceptron, log_softmax

_FORWARD_ROWS = 4096
"""Rows of one forward pass outside the minibatches, few enough for the processor's cache."""


class UpdateAbandoned(Exception):
    """The update was told to stop; the weights are somewhere on the way."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What the gradient steps see of n environment steps; float32 except as noted."""

    observations: Tensor
    """[n, observation_size], float32 or uint8."""
    actions: Tensor
    """[n, 1], int64."""
    proximal_log_probs: Tensor
    """[n], of the weights at the start of the update."""
    weights: Tensor
    """[n], truncated proximal / behaviour probability."""
    advantages: Tensor
    """[n]"""
    values: Tensor
    """[n], of the weights at the start of the update."""
    returns: Tensor
    """[n]: advantage plus value, what the critic shall predict."""
    exploration: Tensor
    """[n]: weight of the pull towards all legal actions alike."""

    def take(self, index: Tensor) -> Samples:
        """Return the samples of these numbers, int64 [m]."""
        return Samples(*(getattr(self, field.name).index_select(0, index) for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Schedule:
    """What has its own value in each update."""

    learning_rate: float
    entropy_weight: float


@torch.inference_mode()
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


def judge(
    model: ActorCritic, batch: Batch, config: PPOConfig, progress: float, critic_thread: ThreadPoolExecutor
) -> tuple[Samples, NDArray[np.float64]]:
    """Return what the weights at the start of the update make of the batch, and of its advantages.

    With it comes log(proximal / behaviour probability) of each step, not truncated.
    """
    observations, actions = torch.from_numpy(batch.observations), torch.from_numpy(batch.actions)[:, None]
    valued = critic_thread.submit(evaluate_critic, model, observations)
    proximal = evaluate_actor(model, observations, actions)
    values = valued.result()
    final_values = evaluate_critic(model, torch.from_numpy(batch.final_observations))
    log_weights = proximal.numpy().astype(np.float64) - batch.log_probs

    advantages = generalised_advantages(
        batch.rewards.astype(np.float64) * config.reward_scale,
        values.numpy(),
        final_values.numpy(),
        batch.terminated,
        batch.lengths,
        config.gamma,
        config.gae_lambda,
    )
    returns = advantages + values.numpy()
    if config.normalise_advantages:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    samples = Samples(
        observations,
        actions,
        proximal,
        _tensor(np.exp(np.minimum(log_weights, np.log(config.behaviour_weight_cap)))),
        _tensor(advantages),
        values,
        _tensor(returns),
        _tensor(exploration_weights(batch.lengths, config, progress)),
    )
    return samples, log_weights


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

    def actor_losses(part: Samples) -> tuple[Tensor, ...]:
        return actor_losses_and_gradient(model, part, config, schedule.entropy_weight)

    def critic_losses(part: Samples) -> tuple[Tensor, ...]:
        return (critic_loss_and_gradient(model, part, config),)

    take_steps = partial(_take_steps, samples=samples, config=config, schedule=schedule, seeds=seeds)
    critic_steps = critic_thread.submit(
        take_steps, model.critic, optimisers.critic, critic_losses, should_stop=abandoned.is_set
    )
    try:
        actor_steps = take_steps(
            model.actor, optimisers.actor, actor_losses, should_stop=should_stop, target_kl=config.target_kl
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


@torch.inference_mode()  # a mode of each thread
def _take_steps(
    network: Perceptron,
    adam: Adam,
    losses_and_gradient: Callable[[Samples], tuple[Tensor, ...]],
    *,
    samples: Samples,
    config: PPOConfig,
    schedule: Schedule,
    seeds: list[int],
    should_stop: Callable[[], bool],
    target_kl: float = 0.0,
) -> list[Tensor]:
    """Take one network's gradient steps; return its losses and the norm of its gradient at each.

    They end early where `target_kl` > 0 and the KL divergence among the losses exceeds it. Raises
    UpdateAbandoned.
    """
    steps: list[Tensor] = []
    for index in minibatches(len(samples.actions), config, np.random.default_rng(seeds)):
        if should_stop():
            raise UpdateAbandoned
        losses = losses_and_gradient(samples.take(index))
        if target_kl and losses[_KL] > target_kl:
            break
        norm = clip_norm(network.gradients, config.max_grad_norm)
        adam.step(network.parameters, network.gradients, schedule.learning_rate)
        steps.append(torch.stack([*losses, norm]))
    return steps


ACTOR_FIGURES = ("policy_loss", "entropy", "approx_kl", "clip_fraction", "actor_grad_norm")
CRITIC_FIGURES = ("value_loss", "critic_grad_norm")
_KL = ACTOR_FIGURES.index("approx_kl")


def actor_losses_and_gradient(
    model: ActorCritic, samples: Samples, config: PPOConfig, entropy_weight: float
) -> tuple[Tensor, ...]:
    """Return the scalars ACTOR_FIGURES but the last, and leave the gradient in `model.actor.gradients`.

    It is that of policy loss - entropy_weight * mean entropy + exploration loss.
    """
    inputs, legality = model.inputs(samples.observations)
    layers = model.actor.forward(inputs)
    log_distribution = log_softmax(layers[-1], legality)
    log_ratios = log_distribution.gather(1, samples.actions)[:, 0] - samples.proximal_log_probs
    policy_loss, chosen_gradient, clip_fraction = clipped_policy_loss(
        log_ratios, samples.weights, samples.advantages, config.clip
    )
    distribution = log_distribution.exp()
    entropy, logit_gradient = entropy_and_gradient(distribution, log_distribution)
    logit_gradient *= -entropy_weight
    logit_gradient += log_prob_gradient(distribution, samples.actions, chosen_gradient)
    if config.exploration:
        logit_gradient += exploration_gradient(distribution, legality, samples.exploration)
    model.actor.backward(layers, logit_gradient)
    approximate_kl = (log_ratios.expm1() - log_ratios).mean()
    return policy_loss, entropy, approximate_kl, clip_fraction


def critic_loss_and_gradient(model: ActorCritic, samples: Samples, config: PPOConfig) -> Tensor:
    """Return the value loss; leave value_coefficient times its gradient in `model.critic.gradients`."""
    layers = model.critic.forward(model.inputs(samples.observations)[0])
    loss, gradient = clipped_value_loss(layers[-1][:, 0], samples.values, samples.returns, config.clip_value)
    model.critic.backward(layers, (gradient * config.value_coefficient)[:, None])
    return loss


def evaluate_actor(model: ActorCritic, observations: Tensor, actions: Tensor) -> Tensor:
    """Return the log-probabilities of `actions` [n, 1] at `observations`, [n]."""
    log_probs = []
    parts = (torch.split(tensor, _FORWARD_ROWS) for tensor in (observations, actions))
    for rows, chosen in zip(*parts, strict=True):
        inputs, legality = model.inputs(rows)
        distribution = log_softmax(model.actor.forward(inputs)[-1], legality)
        log_probs.append(distribution.gather(1, chosen)[:, 0])
    return torch.cat(log_probs)


@torch.inference_mode()
def evaluate_critic(model: ActorCritic, observations: Tensor) -> Tensor:
    """Return the values of `observations`, [n]."""
    return torch.cat([model.values(rows) for rows in torch.split(observations, _FORWARD_ROWS)])


def _set_up_thread() -> None:
    torch.set_flush_denormal(True)  # products of tiny numbers take 10 times as long otherwise
    torch.set_num_threads(torch.get_num_threads())  # a new thread takes all cores where nobody says otherwise


def _means(names: tuple[str, ...], steps: list[Tensor]) -> dict[str, float]:
    means = torch.stack(steps).mean(dim=0).tolist() if steps else [0.0] * len(names)
    return dict(zip(names, means, strict=True))


def _tensor(array: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
