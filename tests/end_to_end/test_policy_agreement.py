"""The worker's numpy policy and the learner's torch policy are one policy."""

import numpy as np
import pytest
import torch

from learner.models import ActorCritic, policy_arrays
from learner.normalisation import Moments
from protocol.specs import PolicySpec
from rollout_worker.environments import registry
from rollout_worker.policy import Policy

CAGE2 = registry.describe("cage2", {})


@pytest.mark.parametrize(
    "spec",
    [
        PolicySpec(CAGE2.inputs, CAGE2.actions, CAGE2.masked),
        PolicySpec(4, 2, activation="tanh", hidden=(32,)),
        PolicySpec(9, 5, masked=True, normalised=True, hidden=(16, 16, 16)),
    ],
)
def test_worker_and_learner_give_the_same_log_probs(spec: PolicySpec) -> None:
    random = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    model = ActorCritic(spec, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    observations = (
        random.standard_normal((333, spec.inputs + spec.actions * spec.masked)).astype(np.float32) * 3
    )
    if spec.masked:
        observations[:, spec.inputs :] = random.random((333, spec.actions)) < 0.5
        observations[:, -1] = 1
    model.set_moments(Moments.of(observations[:, : spec.inputs] * 2 + 1))

    actions, log_probs = Policy(spec, policy_arrays(model)).act(observations, random.random(333))

    theirs = model.log_probs(torch.from_numpy(observations))[0].detach().numpy()
    np.testing.assert_allclose(log_probs, theirs[np.arange(333), actions], atol=1e-5)
    if spec.masked:
        assert observations[np.arange(333), spec.inputs + actions].all()
