from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.nn.utils import parameters_to_vector

from learner import losses, ppo
from learner.batches import Batch, make_batch
from learner.config import PPOConfig
from learner.models import ActorCritic, log_softmax
from learner.normalisation import Moments
from learner.ppo import Optimisers, UpdateAbandoned, run_update
from learner.samples import Samples, evaluate_actor, evaluate_critic
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
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * noise)
    return model


def weights_of(model: ActorCritic) -> Tensor:
    return parameters_to_vector(model.parameters()).detach()


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


def slope(loss: Tensor, by: Tensor) -> Tensor:
    return torch.autograd.grad(loss, by)[0]


# The losses, against cases computed by hand.


def test_policy_loss_by_hand() -> None:
    # Ratios 1.5 and 0.5 with both signs of the advantage, clip 0.2; the second pair counts half.
    log_ratios = doubles(1.5, 0.5, 1.5, 0.5).log().requires_grad_()
    loss = losses.clipped_policy_loss(log_ratios, doubles(1, 1, 0.5, 0.5), doubles(1, 1, -1, -1), 0.2)
    assert loss.item() == pytest.approx(-(1.2 + 0.5 - 0.5 * 1.5 - 0.5 * 0.8) / 4)
    torch.testing.assert_close(slope(loss, log_ratios), doubles(0, -0.5, 0.5 * 1.5, 0) / 4)


def test_value_loss_by_hand() -> None:
    values, old, returns = doubles(1, 3, 1).requires_grad_(), doubles(0, 0, 0.9), doubles(2, 2, 2)
    loss = losses.clipped_value_loss(values, old, returns, 0.0)
    assert loss.item() == pytest.approx(0.5)
    torch.testing.assert_close(slope(loss, values), doubles(-1, 1, -1) / 3)
    # Clipped to 0.5 around the old values, the first two are 0.5 and thus worse: they no longer pull.
    loss = losses.clipped_value_loss(values, old, returns, 0.5)
    assert loss.item() == pytest.approx(0.5 * (1.5**2 + 1.5**2 + 1) / 3)
    torch.testing.assert_close(slope(loss, values), doubles(0, 0, -1) / 3)


def test_mean_entropy() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    expected: Any = Categorical(logits=logits)
    torch.testing.assert_close(losses.mean_entropy(torch.log_softmax(logits, 1)), expected.entropy().mean())
    assert losses.mean_entropy(torch.log_softmax(torch.zeros(1, 4), 1)).item() == pytest.approx(np.log(4))


def test_exploration_falls_within_an_episode_and_over_the_updates() -> None:
    config = PPOConfig(exploration=2.0, exploration_decay=0.5, exploration_share=0.8)
    weights = partial(losses.exploration_weights, np.array([3, 1, 2]), config)
    np.testing.assert_allclose(weights(0.0), [2, 1, 0.5, 2, 2, 1])
    np.testing.assert_allclose(weights(0.4), [1, 0.5, 0.25, 1, 1, 0.5])
    assert not weights(0.8).any() and not weights(1.0).any()


def test_exploration_lifts_an_action_that_entropy_gave_up() -> None:
    logits = doubles(0, 0, -30)[None].requires_grad_()
    assert slope(losses.mean_entropy(torch.log_softmax(logits, 1)), logits)[0, 2] > -1e-10
    pull = losses.exploration_loss(torch.log_softmax(logits, 1), None, doubles(1))
    assert slope(pull, logits)[0, 2].item() == pytest.approx(-1 / 3)
    legality = doubles(0, 0, -1e30)[None]
    among_legal = losses.exploration_loss(log_softmax(logits, legality), legality, doubles(1))
    assert slope(among_legal, logits).abs().max() < 1e-9


# The whole losses and their gradients, against torch's distributions.


def make_samples(spec: PolicySpec, batch: Batch, stale: bool) -> Samples:
    n, generator = len(batch.actions), torch.Generator().manual_seed(4)
    spread = 0.5 if stale else 0.0
    model = make_model(spec)
    observations, actions = torch.from_numpy(batch.observations), torch.from_numpy(batch.actions)[:, None]
    log_probs = evaluate_actor(model, observations, actions)
    values = evaluate_critic(model, observations)
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
    model: ActorCritic, samples: Samples, config: PPOConfig, entropy_weight: float
) -> tuple[Tensor, ...]:
    """Return the whole loss and its three parts, written with torch's distributions."""
    spec, inputs = model.spec, samples.observations[:, : model.spec.inputs].float()
    if spec.normalised:
        mean, deviation = model.moments.mean, np.sqrt(model.moments.squares / model.moments.count)
        inputs = (
            ((inputs.double() - torch.from_numpy(mean)) / torch.from_numpy(deviation)).clamp(-10, 10).float()
        )
    logits, values = model.actor(inputs), model.critic(inputs)[:, 0]
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
def test_losses_are_those_of_torchs_distributions(
    make_episodes: EpisodeMaker, spec: PolicySpec, config: PPOConfig, stale: bool
) -> None:
    batch = make_batch(make_episodes(spec, LENGTHS))
    model = make_model(spec)
    samples = make_samples(spec, batch, stale)
    if spec.normalised:
        model.set_moments(Moments.of(batch.observations))
    actor_loss, policy_loss, entropy, *_ = ppo.actor_losses(model, samples, config, entropy_weight=0.05)
    critic_loss, value_loss = ppo.critic_losses(model, samples, config)

    whole, *parts = reference_loss(model, samples, config, 0.05)
    torch.testing.assert_close([policy_loss, value_loss, entropy], parts, rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(actor_loss + critic_loss, list(model.parameters()))
    expected = torch.autograd.grad(whole, list(model.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


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
        results.append(weights_of(model))
    assert torch.equal(*results)


@pytest.mark.parametrize(("seed", "number"), [(2, 0), (1, 1)])
def test_seed_and_update_number_decide_the_order(make_episodes: EpisodeMaker, seed: int, number: int) -> None:
    batch = make_batch(make_episodes(PLAIN, LENGTHS))
    config = replace(SMALL, final_learning_rate=SMALL.learning_rate, final_entropy=SMALL.entropy)
    one, two = make_model(PLAIN), make_model(PLAIN)
    update(one, batch, config)
    update(two, batch, config, number, seed=seed)
    assert not torch.equal(weights_of(one), weights_of(two))


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
    dirty_model.arrays()["actor/logits/bias"][2] = min(garbage, 1e20)
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
    taken = [state["step"].item() for state in optimisers.actor.state.values()]
    assert set(taken) == ({patience} if patience else set())


def bandit_batch(model: ActorCritic, random: np.random.Generator, version: int) -> Batch:
    """Play 200 one-step episodes whose action 2 is worth 1 in state 0, and action 0 in state 1."""
    states = random.integers(0, 2, 200)
    observations = np.eye(2, dtype=np.float32)[states]
    distribution = torch.softmax(model.actor(torch.from_numpy(observations)), 1).detach().numpy()
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
    probabilities = torch.softmax(model.actor(torch.eye(2)), 1)
    assert probabilities[0, 2] > 0.9 and probabilities[1, 0] > 0.9
    assert figures["lag_max"] == lag
    assert figures["explained_variance"] <= 1


def test_samples_are_taken_field_by_field(make_episodes: EpisodeMaker) -> None:
    samples = make_samples(PLAIN, make_batch(make_episodes(PLAIN, LENGTHS)), stale=True)
    taken = samples.take(torch.tensor([5, 2]))
    for field in fields(Samples):
        assert torch.equal(getattr(taken, field.name), getattr(samples, field.name)[[5, 2]])
