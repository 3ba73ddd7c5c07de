"""Proximal policy optimisation, from a batch of episodes to new weights, top to bottom.

PPO with clipping (Schulman et al., arXiv 1707.06347) in its decoupled form (Hilton et al., arXiv 2110.00641):
the ratio is clipped against the *proximal* policy, the learner's own at the start of the update, and a sample
is weighted by its probability under that policy over the one under the *behaviour* policy that played it,
truncated. Where the newest weights played the whole batch the two are the same, and this is plain PPO.

Losses are plain functions that return a loss and its gradient. All of it runs under `torch.inference_mode()`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.advantages import generalised_advantages
from learner.batches import Batch
from learner.config import PPOConfig
from learner.diagnostics import explained_variance, staleness
from learner.models import ActorCritic, log_softmax

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


class Adam:
    """The state of Adam (Kingma, Ba, arXiv 1412.6980, algorithm 1) for one flat vector of parameters."""

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


@torch.inference_mode()
def run_update(
    model: ActorCritic,
    adam: Adam,
    batch: Batch,
    config: PPOConfig,
    *,
    seed: int,
    update: int,
    updates: int,
    should_stop: Callable[[], bool],
) -> dict[str, float]:
    """Change `model` and `adam` by update number `update` of 0 .. `updates` - 1, and return its figures.

    The result depends on the other arguments alone. `should_stop` is asked before every gradient step; when
    it says so, UpdateAbandoned is raised.
    """
    torch.set_flush_denormal(True)  # of this thread: products of tiny numbers take 10 times as long otherwise
    began = time.perf_counter()
    progress = min(1.0, update / max(1, updates - 1))
    learning_rate = config.learning_rate + progress * (config.final_learning_rate - config.learning_rate)
    entropy_weight = config.entropy + progress * (config.final_entropy - config.entropy)

    # 1. What the weights at the start of the update make of the batch.
    observations, actions = torch.from_numpy(batch.observations), torch.from_numpy(batch.actions)[:, None]
    proximal, values = evaluate(model, observations, actions)
    final_values = model.values(torch.from_numpy(batch.final_observations))
    log_weights = proximal.numpy().astype(np.float64) - batch.log_probs

    # 2. Advantages.
    rewards = batch.rewards.astype(np.float64) * config.reward_scale
    advantages = generalised_advantages(
        rewards,
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

    # 3. Gradient steps.
    evaluated = time.perf_counter()
    steps: list[Tensor] = []
    for index in minibatches(len(actions), config, np.random.default_rng([seed % 2**64, update])):
        if should_stop():
            raise UpdateAbandoned
        losses = losses_and_gradients(model, samples.take(index), config, entropy_weight)
        if config.target_kl and losses[_KL] > config.target_kl:
            break
        norms = [clip_norm(part.gradients, config.max_grad_norm) for part in (model.actor, model.critic)]
        adam.step(model.parameters, model.gradients, learning_rate)
        steps.append(torch.stack([*losses, *norms]))

    # 4. What came of it.
    ended = time.perf_counter()
    return {
        **_means(steps),
        **staleness(log_weights, update - batch.versions),
        "explained_variance": explained_variance(values.numpy(), returns),
        "gradient_steps": len(steps),
        "learning_rate": learning_rate,
        "entropy_weight": entropy_weight,
        "evaluate_seconds": evaluated - began,
        "optimise_seconds": ended - evaluated,
    }


def minibatches(n: int, config: PPOConfig, generator: np.random.Generator) -> Iterator[Tensor]:
    """Yield the sample numbers of each gradient step: all once an epoch, in parts of nearly one size."""
    parts = max(1, round(n / config.minibatch_steps))
    for _ in range(config.epochs):
        yield from torch.from_numpy(generator.permutation(n)).tensor_split(parts)


_LOSSES = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")
_KL = _LOSSES.index("approx_kl")


def losses_and_gradients(
    model: ActorCritic, samples: Samples, config: PPOConfig, entropy_weight: float
) -> tuple[Tensor, ...]:
    """Return the scalars `_LOSSES`, and leave in `model.gradients` those of the whole loss.

    It is policy loss + value_coefficient * value loss - entropy_weight * mean entropy + exploration loss.
    """
    inputs, legality = model.inputs(samples.observations)
    actor_layers, critic_layers = model.actor.forward(inputs), model.critic.forward(inputs)

    log_distribution = log_softmax(actor_layers[-1], legality)
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
    model.actor.backward(actor_layers, logit_gradient)

    value_loss, value_gradient = clipped_value_loss(
        critic_layers[-1][:, 0], samples.values, samples.returns, config.clip_value
    )
    model.critic.backward(critic_layers, (value_gradient * config.value_coefficient)[:, None])

    approximate_kl = (log_ratios.expm1() - log_ratios).mean()
    return policy_loss, value_loss, entropy, approximate_kl, clip_fraction


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


def evaluate(model: ActorCritic, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of `actions` [n, 1] and the values, [n] each, at `observations`."""
    log_probs, values = [], []
    parts = (torch.split(tensor, _FORWARD_ROWS) for tensor in (observations, actions))
    for rows, chosen in zip(*parts, strict=True):
        inputs, legality = model.inputs(rows)
        distribution = log_softmax(model.actor.forward(inputs)[-1], legality)
        log_probs.append(distribution.gather(1, chosen)[:, 0])
        values.append(model.critic.forward(inputs)[-1][:, 0])
    return torch.cat(log_probs), torch.cat(values)


def _means(steps: list[Tensor]) -> dict[str, float]:
    names = (*_LOSSES, "actor_grad_norm", "critic_grad_norm")
    means = torch.stack(steps).mean(dim=0).tolist() if steps else [0.0] * len(names)
    return dict(zip(names, means, strict=True))


def _tensor(array: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
