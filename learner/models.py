"""The actor and the critic: two multilayer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from learner.config import PPOConfig
from learner.normalisation import Moments
from protocol.specs import ILLEGAL_LOGIT, INPUT_LIMIT, EnvironmentSpec, PolicySpec

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": partial(nn.ReLU, inplace=True), "tanh": nn.Tanh}
_LEAST_LOG_PROB = -80.0
"""Lower ones are raised to this, about 1e-35: finite, and `exp` of anything less takes 20 times as long."""


def policy_spec(environment: EnvironmentSpec, ppo: PPOConfig) -> PolicySpec:
    """Return the policy that plays an environment."""
    spaces = environment.spaces
    return PolicySpec(
        inputs=spaces.inputs,
        actions=spaces.actions,
        masked=spaces.masked,
        hidden=ppo.hidden,
        activation=ppo.activation,
        normalised=ppo.normalise_observations,
    )


def perceptron(spec: PolicySpec, outputs: int) -> nn.Sequential:
    """Return a multilayer perceptron with the inputs and hidden layers of a policy."""
    widths = [spec.inputs, *spec.hidden, outputs]
    layers: list[nn.Module] = []
    for taken, given in pairwise(widths):
        layers += [nn.Linear(taken, given), _ACTIVATIONS[spec.activation]()]
    return nn.Sequential(*layers[:-1])


def named_views(network: nn.Sequential, spec: PolicySpec) -> dict[str, Tensor]:
    """Return views of an actor's weights [inputs, outputs] and biases, named as in `spec.shapes()`."""
    names = [name for name in spec.shapes() if not name.startswith("normalisation/")]
    views = (parameter.detach().t() for parameter in network.parameters())
    return dict(zip(names, views, strict=True))


class ActorCritic(nn.Module):
    """A policy as `PolicySpec` describes it, and a critic with hidden layers of the same widths.

    `moments` are those of the observations and matter where the spec is normalised.
    """

    def __init__(self, spec: PolicySpec, generator: torch.Generator) -> None:
        super().__init__()
        self.spec = spec
        self.actor, self.critic = perceptron(spec, spec.actions), perceptron(spec, 1)
        _initialise(self.actor, 0.01, generator)
        _initialise(self.critic, 1.0, generator)
        self.set_moments(Moments.none(spec.inputs))

    def set_moments(self, moments: Moments) -> None:
        """Normalise observations by these statistics from now on, in float32 as the workers do."""
        self.moments = moments
        self._mean = torch.from_numpy(moments.mean.astype(np.float32))
        self._inverse_std = torch.from_numpy(moments.inverse_std().astype(np.float32))

    def inputs(self, observations: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split `observations` [n, size] into inputs [n, inputs] and legality [n, actions], both float32.

        Legality is added to the logits: 0 where an action is legal; None where all always are.
        """
        # Always copies: the bits of a product may depend on the alignment of memory that is not torch's own.
        inputs = observations[:, : self.spec.inputs].to(torch.float32, copy=True)
        if self.spec.normalised:
            inputs.sub_(self._mean).mul_(self._inverse_std).clamp_(-INPUT_LIMIT, INPUT_LIMIT)
        if not self.spec.masked:
            return inputs, None
        mask = observations[:, self.spec.inputs :].to(torch.float32, copy=True)
        return inputs, mask.sub_(1).mul_(-ILLEGAL_LOGIT)

    def log_probs(self, observations: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the log-probabilities of all actions at each row, [n, actions], and the legality.

        None is below `_LEAST_LOG_PROB`, which illegal ones have.
        """
        inputs, legality = self.inputs(observations)
        logits: Tensor = self.actor(inputs)
        return log_softmax(logits, legality), legality

    def values(self, observations: Tensor) -> Tensor:
        """Return the critic's value of each row, [n]."""
        values: Tensor = self.critic(self.inputs(observations)[0])
        return values[:, 0]

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return views of all weights by name, `actor/...` and `critic/...`."""
        actor, critic = named_views(self.actor, self.spec), named_views(self.critic, self.spec)
        views = {f"actor/{name}": view for name, view in actor.items()}
        views |= {f"critic/{name.replace('logits', 'value')}": view for name, view in critic.items()}
        return {name: view.numpy() for name, view in views.items()}


def log_softmax(logits: Tensor, legality: Tensor | None) -> Tensor:
    """Return the log-probabilities [n, actions]; none is below `_LEAST_LOG_PROB`, which illegal ones have."""
    return torch.log_softmax(logits if legality is None else logits + legality, dim=1).clamp(_LEAST_LOG_PROB)


def policy_arrays(model: ActorCritic) -> dict[str, NDArray[np.float32]]:
    """Return copies of what a worker needs to play: exactly the arrays of `PolicySpec.shapes()`."""
    arrays: dict[str, NDArray[Any]] = {
        "normalisation/mean": model.moments.mean,
        "normalisation/inverse_std": model.moments.inverse_std(),
        **{name: view.numpy() for name, view in named_views(model.actor, model.spec).items()},
    }
    return {name: np.array(arrays[name], dtype=np.float32, order="C") for name in model.spec.shapes()}


def _initialise(network: nn.Sequential, output_gain: float, generator: torch.Generator) -> None:
    """Draw orthogonal weights (Saxe et al., arXiv 1312.6120), with gain sqrt(2) in hidden layers."""
    *hidden, output = (layer for layer in network if isinstance(layer, nn.Linear))
    for layer in (*hidden, output):
        gain = output_gain if layer is output else math.sqrt(2)
        nn.init.orthogonal_(layer.weight, gain, generator=generator)
        nn.init.zeros_(layer.bias)
