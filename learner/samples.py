"""What the gradient steps of an update see: a batch, judged by the weights that the update begins with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.advantages import generalised_advantages
from learner.batches import Batch
from learner.config import PPOConfig
from learner.losses import exploration_weights
from learner.models import ActorCritic

_FORWARD_ROWS = 4096
"""Rows of one forward pass outside the minibatches, few enough for the processor's cache."""


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


@torch.no_grad()
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


@torch.no_grad()
def evaluate_actor(model: ActorCritic, observations: Tensor, actions: Tensor) -> Tensor:
    """Return the log-probabilities of `actions` [n, 1] at `observations`, [n]."""
    parts = (torch.split(tensor, _FORWARD_ROWS) for tensor in (observations, actions))
    taken = (model.log_probs(rows)[0].gather(1, chosen) for rows, chosen in zip(*parts, strict=True))
    return torch.cat([log_probs[:, 0] for log_probs in taken])


@torch.no_grad()
def evaluate_critic(model: ActorCritic, observations: Tensor) -> Tensor:
    """Return the values of `observations`, [n]."""
    return torch.cat([model.values(rows) for rows in torch.split(observations, _FORWARD_ROWS)])


def _tensor(array: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
