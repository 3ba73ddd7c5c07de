"""What an update minimises: plain functions that return a loss and its gradient, or the gradient alone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.config import PPOConfig


def clipped_policy_loss(
    log_ratios: Tensor, weights: Tensor, advantages: Tensor, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, its gradient by the log-probabilities [n], and the fraction of ratios out of range.

    All arguments are [n]: log(pi / pi_proximal), pi_proximal / pi_behaviour, advantages. The loss is
    -mean(w min(r A, clip(r, 1 - clip, 1 + clip) A)): arXiv 1707.06347 equation 7, weighted as in 2110.00641.
    """
    ratios = log_ratios.exp()
    plain = ratios * advantages
    clipped = ratios.clamp(1 - clip, 1 + clip) * advantages
    loss = -(weights * torch.minimum(plain, clipped)).mean()
    gradient = weights * plain * (plain <= clipped) / -len(ratios)
    return loss, gradient, ((ratios - 1).abs() > clip).float().mean()


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Return half the mean squared error and its gradient by `values`; all are [n].

    With `clip` > 0 the larger of this error and that of the value moved by at most `clip` from its old one
    counts (as in OpenAI's baselines; Engstrom et al., arXiv 2005.12729, section 3).
    """
    errors = values - returns
    squares = errors.square()
    if clip:
        clipped = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
        errors = errors * (squares >= clipped)
        squares = torch.maximum(squares, clipped)
    return 0.5 * squares.mean(), errors / len(values)


def entropy_and_gradient(distribution: Tensor, log_distribution: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean entropy of probabilities and their logarithms [n, actions]; its gradient by logits."""
    entropies = -(distribution * log_distribution).sum(dim=1, keepdim=True)
    gradient = (log_distribution + entropies).mul_(distribution).div_(-len(entropies))
    return entropies.mean(), gradient


def exploration_weights(
    lengths: NDArray[np.int64], config: PPOConfig, progress: float
) -> NDArray[np.float64]:
    """Return the weight of the exploration loss at each step of episodes of these lengths, [sum of lengths].

    It falls by `exploration_decay` with each step of an episode, and with `progress` (0 .. 1) through the
    updates linearly to nothing at `exploration_share` of them.
    """
    faded = config.exploration * max(0.0, 1 - progress / config.exploration_share)
    return np.concatenate([faded * config.exploration_decay ** np.arange(length) for length in lengths])


def exploration_gradient(distribution: Tensor, legality: Tensor | None, weights: Tensor) -> Tensor:
    """Return the gradient by the logits [n, actions] of mean(w KL(uniform over legal actions, pi)).

    `weights` are [n]; `legality` [n, actions] is 0 for a legal action, and None means that all are. The slope
    of the entropy bonus vanishes with a probability; this one lifts an action the more the rarer it became.
    """
    legal = torch.ones_like(distribution) if legality is None else (legality == 0).to(distribution.dtype)
    uniform = legal / legal.sum(dim=1, keepdim=True)
    return (distribution - uniform) * (weights / len(weights))[:, None]


def log_prob_gradient(distribution: Tensor, actions: Tensor, gradient: Tensor) -> Tensor:
    """Turn the gradient [n] by the log-probabilities of `actions` [n, 1] into that by logits [n, actions]."""
    by_logits = distribution * -gradient[:, None]
    return by_logits.scatter_add_(1, actions, gradient[:, None])


def clip_norm(gradients: Tensor, max_norm: float) -> Tensor:
    """Scale `gradients` down to `max_norm` where they are longer, in place; return their norm before."""
    norm: Tensor = torch.linalg.vector_norm(gradients)
    gradients *= (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return norm
