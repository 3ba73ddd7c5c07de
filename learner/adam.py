"""Adam (Kingma, Ba, arXiv 1412.6980, algorithm 1) for one flat vector of parameters each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from learner.models import ActorCritic


class Adam:
    """Its state for the `size` parameters of one network."""

    beta1, beta2, epsilon = 0.9, 0.999, 1e-5

    def __init__(self, size: int) -> None:
        self.first_moment, self.second_moment, self.steps = torch.zeros(size), torch.zeros(size), 0

    def step(self, parameters: Tensor, gradients: Tensor, learning_rate: float) -> None:
        """Move `parameters` [size] against `gradients` [size]."""
        self.steps += 1
        self.first_moment.lerp_(gradients, 1 - self.beta1)
        self.second_moment.mul_(self.beta2).addcmul_(gradients, gradients, value=1 - self.beta2)
        unbiased1, unbiased2 = 1 - self.beta1**self.steps, 1 - self.beta2**self.steps
        denominator = self.second_moment.sqrt().div_(unbiased2**0.5).add_(self.epsilon)
        parameters.addcdiv_(self.first_moment, denominator, value=-learning_rate / unbiased1)


class Optimisers(NamedTuple):
    """Adam's states for the two networks."""

    actor: Adam
    critic: Adam

    @classmethod
    def of(cls, model: ActorCritic) -> Optimisers:
        """Return fresh ones."""
        return cls(Adam(len(model.actor.parameters)), Adam(len(model.critic.parameters)))
