"""The actor and the critic: two multilayer perceptrons over one flat vector of parameters.

Their backward pass is written out (benchmarks/update.py compares it with torch's own differentiation). With
one vector of parameters and one of gradients, an optimiser step, a copy or a norm is one operation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.config import PPOConfig
from learner.normalisation import Moments
from protocol.specs import EnvironmentSpec, PolicySpec

_INPUT_LIMIT = 10.0
_ILLEGAL_LOGIT = -1e30
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


class Perceptron:
    """A multilayer perceptron whose weights [inputs, outputs] and biases are views of one flat vector."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], parameters: Tensor, gradients: Tensor, activation: str
    ) -> None:
        sizes = [math.prod(shape) for shape in shapes.values()]
        self.parameters, self.gradients, self.activation = parameters, gradients, activation
        self.views = _views(shapes, sizes, parameters)
        self._layers = _pairs(list(self.views.values()))
        self._gradient_layers = _pairs(list(_views(shapes, sizes, gradients).values()))

    def initialise(self, output_gain: float, generator: torch.Generator) -> None:
        """Draw orthogonal weights (Saxe et al., arXiv 1312.6120), with gain sqrt(2) in hidden layers."""
        for index, (weight, bias) in enumerate(self._layers):
            gain = output_gain if index == len(self._layers) - 1 else math.sqrt(2)
            torch.nn.init.orthogonal_(weight, gain, generator=generator)
            bias.zero_()

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Return the inputs [n, inputs], each hidden layer's activations, and the outputs [n, outputs]."""
        layers = [inputs]
        for weight, bias in self._layers[:-1]:
            hidden = torch.addmm(bias, layers[-1], weight)
            layers.append(hidden.relu_() if self.activation == "relu" else hidden.tanh_())
        weight, bias = self._layers[-1]
        layers.append(torch.addmm(bias, layers[-1], weight))
        return layers

    def backward(self, layers: list[Tensor], output_gradient: Tensor) -> None:
        """Write the gradients of a loss, given `forward`'s result and the loss's gradient by the outputs."""
        gradient = output_gradient
        for index in reversed(range(len(self._layers))):
            weight_gradient, bias_gradient = self._gradient_layers[index]
            torch.mm(layers[index].t(), gradient, out=weight_gradient)
            torch.sum(gradient, 0, out=bias_gradient)
            if index:
                gradient = torch.mm(gradient, self._layers[index][0].t())
                hidden = layers[index]  # its derivative by its input: 0 or 1, and 1 - tanh^2
                gradient *= hidden.sign() if self.activation == "relu" else 1 - hidden * hidden


class ActorCritic:
    """A policy as `PolicySpec` describes it, and a critic with hidden layers of the same widths.

    `parameters` and `gradients` are float32 [P], the actor's first. `moments` are those of the observations
    and matter where the spec is normalised. Use it under `torch.inference_mode()`.
    """

    def __init__(self, spec: PolicySpec, generator: torch.Generator) -> None:
        self.spec = spec
        plain = replace(spec, normalised=False)
        actor_shapes = plain.shapes()
        value_head = replace(plain, actions=1)
        critic_shapes = {name.replace("logits", "value"): s for name, s in value_head.shapes().items()}
        sizes = [sum(map(math.prod, shapes.values())) for shapes in (actor_shapes, critic_shapes)]
        self.parameters, self.gradients = torch.zeros(sum(sizes)), torch.zeros(sum(sizes))
        parameters, gradients = torch.split(self.parameters, sizes), torch.split(self.gradients, sizes)
        self.actor = Perceptron(actor_shapes, parameters[0], gradients[0], spec.activation)
        self.critic = Perceptron(critic_shapes, parameters[1], gradients[1], spec.activation)
        self.actor.initialise(0.01, generator)
        self.critic.initialise(1.0, generator)
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
            inputs.sub_(self._mean).mul_(self._inverse_std).clamp_(-_INPUT_LIMIT, _INPUT_LIMIT)
        if not self.spec.masked:
            return inputs, None
        mask = observations[:, self.spec.inputs :].to(torch.float32, copy=True)
        return inputs, mask.sub_(1).mul_(-_ILLEGAL_LOGIT)

    def values(self, observations: Tensor) -> Tensor:
        """Return the critic's value of each row, [n]."""
        return self.critic.forward(self.inputs(observations)[0])[-1][:, 0]

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return views of all weights by name, `actor/...` and `critic/...`."""
        return {
            f"{part}/{name}": view.numpy()
            for part, network in (("actor", self.actor), ("critic", self.critic))
            for name, view in network.views.items()
        }


def log_softmax(logits: Tensor, legality: Tensor | None) -> Tensor:
    """Return the log-probabilities [n, actions]; none is below `_LEAST_LOG_PROB`, which illegal ones have."""
    return torch.log_softmax(logits if legality is None else logits + legality, dim=1).clamp_(_LEAST_LOG_PROB)


def policy_arrays(model: ActorCritic) -> dict[str, NDArray[np.float32]]:
    """Return copies of what a worker needs to play: exactly the arrays of `PolicySpec.shapes()`."""
    arrays: dict[str, NDArray[Any]] = {
        "normalisation/mean": model.moments.mean,
        "normalisation/inverse_std": model.moments.inverse_std(),
        **{name: view.numpy() for name, view in model.actor.views.items()},
    }
    return {name: np.array(arrays[name], dtype=np.float32) for name in model.spec.shapes()}


def _views(shapes: Mapping[str, tuple[int, ...]], sizes: list[int], flat: Tensor) -> dict[str, Tensor]:
    parts = torch.split(flat, sizes)
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _pairs(tensors: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))
