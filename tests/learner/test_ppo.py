from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from learner import losses, ppo
from learner.adam import Adam, Optimisers
from learner.batches import Batch, make_batch
from learner.config import PPOConfig
from learner.models import ActorCritic
from learner.normalisation import Moments
from learner.ppo import Samples, UpdateAbandoned, run_update
from protocol.messages import Episode, Version
from protocol.specs import PolicySpec
from protocol.tickets import Ticket
from tests.learner.conftest import EpisodeMaker

PLAIN = PolicySpec(5, 3, hidden=(8, 8))
MASKED = PolicySpec(6, 4, masked=True, hidden=(8,), activation="tanh")
NORMALISED = PolicySpec(5, 3, hidden=(8,), normalised=True)
SMALL = PPOConfig(minibatch_steps=16, epochs=3)
LENGTHS = [20, 1, 7, 30]


def make_model(spec: PolicySpec, seed: int = 0, noise: float = 0.3) -> ActorCritic:
    generator = torch.Generator().manual_seed(seed)
    model = ActorCritic(spec, generator)
    model.parameters.add_(torch.randn(len(model.parameters), generator=generator) * noise)
    return model


def update(
    model: ActorCritic,
    batch: Batch,
    config: PPOConfig = SMALL,
    number: int = 0,
    updates: int = 10,
    seed: int = 1,
    should_stop: Callable[[], bool] = bool,
    optimisers: Optimisers | None = None,
) -> dict[str, float]:
    optimisers = optimisers or Optimisers.of(model)
    return run_update(
        model, optimisers, batch, config, seed=seed, update=number, updates=updates, should_stop=should_stop
    )


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# The losses, against hand-computed cases and finite differences.


def test_policy_loss_by_hand() -> None:
    # Ratios 1.5 and 0.5 with both signs of the advantage, clip 0.2; the second pair counts half.
    loss, gradient, outside = losses.clipped_policy_loss(
        doubles(1.5, 0.5, 1.5, 0.5).log(), doubles(1, 1, 0.5, 0.5), doubles(1, 1, -1, -1), 0.2
    )
    assert loss.item() == pytest.approx(-(1.2 + 0.5 - 0.5 * 1.5 - 0.5 * 0.8) / 4)
    torch.testing.assert_close(gradient, doubles(0, -0.5, 0.5 * 1.5, 0) / 4)
    assert outside.item() == 1.0


def test_value_loss_by_hand() -> None:
    values, old, returns = doubles(1, 3, 1), doubles(0, 0, 0.9), doubles(2, 2, 2)
    loss, gradient = losses.clipped_value_loss(values, old, returns, 0.0)
    assert loss.item() == pytest.approx(0.5)
    torch.testing.assert_close(gradient, doubles(-1, 1, -1) / 3)
    # Clipped to 0.5 around the old values, the first two are 0.5 and thus worse: they no longer pull.
    loss, gradient = losses.clipped_value_loss(values, old, returns, 0.5)
    assert loss.item() == pytest.approx(0.5 * (1.5**2 + 1.5**2 + 1) / 3)
    torch.testing.assert_close(gradient, doubles(0, 0, -1) / 3)


def numeric_gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    gradient = torch.zeros_like(at)
    for i in range(at.numel()):
        step = torch.zeros(at.numel(), dtype=at.dtype)
        step[i] = 1e-6
        step = step.view_as(at)
        gradient.view(-1)[i] = (function(at + step) - function(at - step)) / 2e-6
    return gradient


@pytest.mark.parametrize("clip", [0.0, 0.3])
def test_value_gradient_is_the_slope(clip: float) -> None:
    values, old, returns = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).double()
    slope = numeric_gradient(lambda v: losses.clipped_value_loss(v, old, returns, clip)[0], values)
    torch.testing.assert_close(losses.clipped_value_loss(values, old, returns, clip)[1], slope)


def test_policy_gradient_is_the_slope() -> None:
    log_ratios, advantages, weights = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).double()
    weights = weights.exp().clamp(max=2)
    slope = numeric_gradient(lambda r: losses.clipped_policy_loss(r, weights, advantages, 0.2)[0], log_ratios)
    torch.testing.assert_close(losses.clipped_policy_loss(log_ratios, weights, advantages, 0.2)[1], slope)


def test_entropy_and_its_gradient() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()

    def entropy(at: Tensor) -> tuple[Tensor, Tensor]:
        distribution = torch.log_softmax(at, 1)
        return losses.entropy_and_gradient(distribution.exp(), distribution)

    expected: Any = Categorical(logits=logits)
    torch.testing.assert_close(entropy(logits)[0], expected.entropy().mean())
    torch.testing.assert_close(entropy(logits)[1], numeric_gradient(lambda at: entropy(at)[0], logits))
    assert entropy(torch.zeros(1, 4))[0].item() == pytest.approx(np.log(4))


def test_exploration_falls_within_an_episode_and_over_the_updates() -> None:
    config = PPOConfig(exploration=2.0, exploration_decay=0.5, exploration_share=0.8)
    weights = partial(losses.exploration_weights, np.array([3, 1, 2]), config)
    np.testing.assert_allclose(weights(0.0), [2, 1, 0.5, 2, 2, 1])
    np.testing.assert_allclose(weights(0.4), [1, 0.5, 0.25, 1, 1, 0.5])
    assert not weights(0.8).any() and not weights(1.0).any()


def test_exploration_lifts_an_action_that_entropy_gave_up() -> None:
    logits = doubles(0, 0, -30)[None]
    distribution, log_distribution = torch.softmax(logits, 1), torch.log_softmax(logits, 1)
    assert losses.entropy_and_gradient(distribution, log_distribution)[1][0, 2] < 1e-10
    pulled = losses.exploration_gradient(distribution, None, doubles(1))
    assert pulled[0, 2] == pytest.approx(-1 / 3)
    illegal = doubles(0, 0, -1e9)[None]
    assert (
        losses.exploration_gradient(torch.softmax(logits + illegal, 1), illegal, doubles(1)).abs().max()
        < 1e-9
    )


def test_log_prob_gradient_is_the_slope() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    actions, weights = torch.tensor([0, 1, 2, 3, 0, 0])[:, None], doubles(1, -2, 3, 0.5, 0, 1)
    slope = numeric_gradient(
        lambda at: (torch.log_softmax(at, 1).gather(1, actions)[:, 0] * weights).sum(), logits
    )
    gradient = losses.log_prob_gradient(torch.softmax(logits, 1), actions, weights)
    torch.testing.assert_close(gradient, slope)


# The whole gradient, against torch's own differentiation and distributions.


def make_samples(spec: PolicySpec, batch: Batch, stale: bool) -> Samples:
    n, generator = len(batch.actions), torch.Generator().manual_seed(4)
    spread = 0.5 if stale else 0.0
    model = make_model(spec)
    observations, actions = torch.from_numpy(batch.observations), torch.from_numpy(batch.actions)[:, None]
    log_probs = ppo.evaluate_actor(model, observations, actions)
    values = ppo.evaluate_critic(model, observations)
    return Samples(
        observations,
        actions,
        log_probs + spread * torch.randn(n, generator=generator),
        (spread * torch.randn(n, generator=generator)).exp().clamp(max=2),
        torch.randn(n, generator=generator),
        values + spread * torch.randn(n, generator=generator),
        torch.randn(n, generator=generator),
        torch.rand(n, generator=generator),
    )


def reference_loss(
    model: ActorCritic, views: list[list[Tensor]], samples: Samples, config: PPOConfig, entropy_weight: float
) -> tuple[Tensor, ...]:
    """Return the whole loss and its three parts, written with torch's distributions."""
    spec, inputs = model.spec, samples.observations[:, : model.spec.inputs].float()
    if spec.normalised:
        mean, deviation = model.moments.mean, np.sqrt(model.moments.squares / model.moments.count)
        inputs = (
            ((inputs.double() - torch.from_numpy(mean)) / torch.from_numpy(deviation)).clamp(-10, 10).float()
        )

    def forward(layers: list[Tensor]) -> Tensor:
        values = inputs
        for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
            values = getattr(torch, spec.activation)(values @ weight + bias)
        return values @ layers[-2] + layers[-1]

    logits, values = forward(views[0]), forward(views[1])[:, 0]
    if spec.masked:
        logits = logits.masked_fill(samples.observations[:, spec.inputs :] == 0, -1e9)
    policy: Any = Categorical(logits=logits)
    uniform: Any = Categorical(logits=torch.zeros_like(logits).masked_fill(logits == -1e9, -1e9))
    pull = (samples.exploration * kl_divergence(uniform, policy)).mean() if config.exploration else 0.0
    ratio = (policy.log_prob(samples.actions[:, 0]) - samples.proximal_log_probs).exp()
    gains = ratio * samples.advantages, ratio.clamp(1 - config.clip, 1 + config.clip) * samples.advantages
    policy_loss = -(samples.weights * torch.min(*gains)).mean()
    errors = (values - samples.returns) ** 2
    if config.clip_value:
        near = samples.values + (values - samples.values).clamp(-config.clip_value, config.clip_value)
        errors = torch.max(errors, (near - samples.returns) ** 2)
    value_loss, entropy = errors.mean() / 2, policy.entropy().mean()
    whole = policy_loss + config.value_coefficient * value_loss - entropy_weight * entropy + pull
    return whole, policy_loss, value_loss, entropy


@pytest.mark.parametrize("spec", [PLAIN, MASKED, NORMALISED])
@pytest.mark.parametrize(
    "config", [PPOConfig(), PPOConfig(clip=0.1, clip_value=0.2, value_coefficient=0.7, exploration=0)]
)
@pytest.mark.parametrize("stale", [False, True])
def test_gradients_equal_autograd(
    make_episodes: EpisodeMaker, spec: PolicySpec, config: PPOConfig, stale: bool
) -> None:
    batch = make_batch(make_episodes(spec, LENGTHS))
    model = make_model(spec)
    samples = make_samples(spec, batch, stale)
    if spec.normalised:
        model.set_moments(Moments.of(batch.observations))
    policy_loss, entropy, *_ = ppo.actor_losses_and_gradient(model, samples, config, entropy_weight=0.05)
    value_loss = ppo.critic_loss_and_gradient(model, samples, config)
    found = torch.stack([policy_loss, value_loss, entropy])

    views = [
        [view.clone().requires_grad_() for view in network.views.values()]
        for network in (model.actor, model.critic)
    ]
    whole, *parts = reference_loss(model, views, samples, config, 0.05)
    gradients = torch.autograd.grad(whole, views[0] + views[1])
    torch.testing.assert_close(found, torch.stack(parts).detach(), rtol=1e-4, atol=1e-5)
    expected = torch.cat([gradient.flatten() for gradient in gradients])
    torch.testing.assert_close(model.gradients, expected, rtol=1e-3, atol=1e-5)


def test_clip_norm() -> None:
    gradients = torch.tensor([3.0, 4.0])
    assert losses.clip_norm(gradients, 10.0).item() == 5
    torch.testing.assert_close(gradients, torch.tensor([3.0, 4.0]))
    assert losses.clip_norm(gradients, 1.0).item() == 5
    torch.testing.assert_close(gradients, torch.tensor([0.6, 0.8]))


def test_adam_is_torchs() -> None:
    ours, theirs = torch.ones(6), torch.ones(6, requires_grad=True)
    adam, reference = Adam(6), torch.optim.Adam([theirs], eps=Adam.epsilon)
    for step in range(20):
        gradients = torch.randn(6, generator=torch.Generator().manual_seed(step))
        reference.param_groups[0]["lr"] = learning_rate = 0.01 / (1 + step)
        theirs.grad = gradients.clone()
        reference.step()
        adam.step(ours, gradients, learning_rate)
    torch.testing.assert_close(ours, theirs.detach())


# The update as a whole.


def test_each_epoch_sees_each_sample_once_in_parts_of_one_size() -> None:
    config = PPOConfig(minibatch_steps=30, epochs=3)
    parts = list(ppo.minibatches(100, config, np.random.default_rng(0)))
    assert [len(part) for part in parts] == [34, 33, 33] * 3
    epochs = [torch.cat(parts[i : i + 3]).tolist() for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [len(part) for part in ppo.minibatches(7, config, np.random.default_rng(0))] == [7] * 3


def test_same_arguments_give_the_same_bits(make_episodes: EpisodeMaker) -> None:
    batch = make_batch(make_episodes(MASKED, LENGTHS))
    results = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        model = make_model(MASKED)
        update(model, batch)
        results.append(model.parameters)
    assert torch.equal(*results)


@pytest.mark.parametrize(("seed", "number"), [(2, 0), (1, 1)])
def test_seed_and_update_number_decide_the_order(make_episodes: EpisodeMaker, seed: int, number: int) -> None:
    batch = make_batch(make_episodes(PLAIN, LENGTHS))
    config = replace(SMALL, final_learning_rate=SMALL.learning_rate, final_entropy=SMALL.entropy)
    one, two = make_model(PLAIN), make_model(PLAIN)
    update(one, batch, config)
    update(two, batch, config, number, seed=seed)
    assert not torch.equal(one.parameters, two.parameters)


@pytest.mark.parametrize("garbage", [1e6, 1e30])
def test_garbage_in_what_nobody_saw_changes_nothing(make_episodes: EpisodeMaker, garbage: float) -> None:
    """Final observations of terminated episodes, and the logits of illegal actions."""
    batch = make_batch(make_episodes(MASKED, LENGTHS))
    mask = batch.observations[:, MASKED.inputs :].copy()
    mask[:, 2] = 0
    mask[np.arange(len(mask)), batch.actions] = 1
    never_two = batch.actions != 2
    observations = batch.observations[never_two].astype(np.float32)
    observations[:, MASKED.inputs :] = mask[never_two]
    step_fields = ("actions", "rewards", "log_probs")
    kept = {name: getattr(batch, name)[never_two] for name in step_fields}
    lengths = np.array([part.sum() for part in np.split(never_two, np.cumsum(batch.lengths)[:-1])])
    final = batch.final_observations.astype(np.float32)
    clean = replace(batch, observations=observations, final_observations=final, lengths=lengths, **kept)
    dirty = replace(clean, final_observations=np.where(batch.terminated[:, None], np.float32(garbage), final))
    assert lengths.min() > 0 and batch.terminated.any()

    clean_model, dirty_model = make_model(MASKED), make_model(MASKED)
    dirty_model.actor.views["logits/bias"][2] = min(garbage, 1e20)
    figures = [update(model, rows) for model, rows in ((clean_model, clean), (dirty_model, dirty))]
    for name in ("policy_loss", "value_loss", "entropy", "approx_kl", "actor_grad_norm", "critic_grad_norm"):
        assert figures[1][name] == pytest.approx(figures[0][name], rel=1e-5, abs=1e-7), name


def test_schedules_go_from_first_to_last_by_update(make_episodes: EpisodeMaker) -> None:
    batch = make_batch(make_episodes(PLAIN, [5]))
    config = PPOConfig(learning_rate=2e-3, final_learning_rate=1e-4, entropy=0.01, final_entropy=0.001)
    for number, rate, entropy in ((0, 2e-3, 0.01), (2, 1.05e-3, 0.0055), (4, 1e-4, 0.001), (9, 1e-4, 0.001)):
        figures = update(make_model(PLAIN), batch, config, number=number, updates=5)
        assert figures["learning_rate"] == pytest.approx(rate)
        assert figures["entropy_weight"] == pytest.approx(entropy)


def test_target_kl_ends_an_update_early(make_episodes: EpisodeMaker) -> None:
    batch = make_batch(make_episodes(PLAIN, [40]))
    config = PPOConfig(learning_rate=0.05, minibatch_steps=8, epochs=10)
    assert update(make_model(PLAIN), batch, config)["gradient_steps"] == 50
    stopped = update(make_model(PLAIN), batch, replace(config, target_kl=0.01))
    assert 0 < stopped["gradient_steps"] < 50
    assert stopped["approx_kl"] <= 0.01


@pytest.mark.parametrize("patience", [0, 1, 5])
def test_a_stop_is_heard_before_any_gradient_step(make_episodes: EpisodeMaker, patience: int) -> None:
    batch = make_batch(make_episodes(PLAIN, [48]))
    model, asked = make_model(PLAIN), 0
    optimisers = Optimisers.of(model)

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > patience

    with pytest.raises(UpdateAbandoned):
        update(model, batch, should_stop=should_stop, optimisers=optimisers)
    assert optimisers.actor.steps == patience


def bandit_batch(model: ActorCritic, random: np.random.Generator, version: int) -> Batch:
    """Play 200 one-step episodes whose action 2 is worth 1 in state 0, and action 0 in state 1."""
    states = random.integers(0, 2, 200)
    observations = np.eye(2, dtype=np.float32)[states]
    distribution = torch.softmax(model.actor.forward(torch.from_numpy(observations))[-1], 1).numpy()
    actions = (random.random((200, 1)) > distribution.cumsum(1)).sum(1).clip(max=2)
    rewards = (actions == np.where(states == 0, 2, 0)).astype(np.float32)
    log_probs = np.log(distribution[np.arange(200), actions])

    def episode(i: int) -> Episode:
        arrays: Any = (observations[[i, i]], actions[[i]], rewards[[i]], log_probs[[i]])
        return Episode("run", "session", Ticket("train", i), Version(1, version), True, 0.0, *arrays)

    return make_batch([episode(i) for i in range(200)])


@pytest.mark.parametrize("lag", [0, 3])
def test_it_learns_even_from_stale_samples(lag: int) -> None:
    spec, random = PolicySpec(2, 3, hidden=(16,)), np.random.default_rng(0)
    model, config = make_model(spec, noise=0.0), PPOConfig(learning_rate=0.01, minibatch_steps=100)
    optimisers, batches = Optimisers.of(model), []
    for number in range(25):
        batches.append(bandit_batch(model, random, number))
        figures = update(
            model, batches[max(0, number - lag)], config, number, updates=25, optimisers=optimisers
        )
    probabilities = torch.softmax(model.actor.forward(torch.eye(2))[-1], 1)
    assert probabilities[0, 2] > 0.9 and probabilities[1, 0] > 0.9
    assert figures["lag_max"] == lag
    assert figures["explained_variance"] <= 1


def test_samples_are_taken_field_by_field(make_episodes: EpisodeMaker) -> None:
    samples = make_samples(PLAIN, make_batch(make_episodes(PLAIN, LENGTHS)), stale=True)
    taken = samples.take(torch.tensor([5, 2]))
    for field in fields(Samples):
        assert torch.equal(getattr(taken, field.name), getattr(samples, field.name)[[5, 2]])
