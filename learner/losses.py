"""What an update minimises: plain functions from tensors to a loss."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.config import PPOConfig


def clipped_policy_loss(log_ratios: Tensor, weights: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Return -mean(w min(r A, clip(r, 1 - clip, 1 + clip) A)).

    All arguments are [n]: log(pi / pi_proximal), pi_proximal / pi_behaviour, advantages. It is equation 7 of
    arXiv 1707.06347, weighted as in 2110.00641.
    """
    ratios = log_ratios.exp()
    clipped = ratios.clamp(1 - clip, 1 + clip)
    return -(weights * torch.minimum(ratios * advantages, clipped * advantages)).mean()


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Return half the mean squared error of values [n].

    With `clip` > 0 the larger of this error and that of the value moved by at most `clip` from its old one
    counts (as in OpenAI's baselines; Engstrom et al., arXiv 2005.12729, section 3).
    """
    squares = (values - returns).square()
    if clip:
        near = old_values + (values - old_values).clamp(-clip, clip)
        squares = torch.maximum(squares, (near - returns).square())
    return 0.5 * squares.mean()


def mean_entropy(log_distribution: Tensor) -> Tensor:
    """Return the mean entropy of log-probabilities [n, actions]."""
    return -(log_distribution.exp() * log_distribution).sum(dim=1).mean()


def exploration_weights(
    lengths: NDArray[np.int64], config: PPOConfig, progress: float
) -> NDArray[np.float64]:
    """Return the weight of the exploration loss at each step of episodes of these lengths, [sum of lengths].

    It falls by `exploration_decay` with each step of an episode, and with `progress` (0 .. 1) through the
    updates linearly to nothing at `exploration_share` of them.
    """
    faded = config.exploration * max(0.0, 1 - progress / config.exploration_share)
    return np.concatenate([faded * config.exploration_decay ** np.arange(length) for length in lengths])


def exploration_loss(log_distribution: Tensor, legality: Tensor | None, weights: Tensor) -> Tensor:
    """Return mean(w KL(uniform over legal actions, pi)) less a constant, of log-probabilities [n, actions].

    `weights` are [n]; `legality` [n, actions] is 0 for a legal action, and None means that all are. The slope
    of the entropy bonus vanishes with a probability; this one lifts an action the more the rarer it became.
    """
    legal = torch.ones_like(log_distribution) if legality is None else (legality == 0).float()
    uniform = legal / legal.sum(dim=1, keepdim=True)
    return -(weights * (uniform * log_distribution).sum(dim=1)).mean()
