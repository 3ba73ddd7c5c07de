import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from learner.models import ActorCritic, log_softmax, policy_arrays
from learner.normalisation import Moments
from protocol.specs import PolicySpec

SPECS = [
    PolicySpec(5, 3),
    PolicySpec(7, 4, masked=True, hidden=(16,), activation="tanh"),
    PolicySpec(6, 2, hidden=(8, 16, 4), normalised=True),
]


def make_model(spec: PolicySpec, seed: int = 0) -> ActorCritic:
    return ActorCritic(spec, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spec", SPECS)
def test_policy_arrays_are_those_of_the_spec(spec: PolicySpec) -> None:
    arrays = policy_arrays(make_model(spec))
    assert {name: array.shape for name, array in arrays.items()} == spec.shapes()
    assert list(arrays) == list(spec.shapes())
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}


def test_policy_arrays_are_copies() -> None:
    model = make_model(SPECS[0])
    arrays = policy_arrays(model)
    before = arrays["logits/weight"].copy()
    for parameter in model.parameters():
        parameter.data.fill_(7)
    np.testing.assert_array_equal(arrays["logits/weight"], before)


def test_weights_begin_orthogonal_with_their_gains_and_biases_zero() -> None:
    arrays = make_model(PolicySpec(32, 4, hidden=(16, 16))).arrays()
    for name, gain in {
        "actor/hidden/0/weight": 2**0.5,
        "critic/hidden/1/weight": 2**0.5,
        "actor/logits/weight": 0.01,
        "critic/value/weight": 1.0,
    }.items():
        columns = arrays[name]
        identity = gain**2 * np.eye(columns.shape[1])
        np.testing.assert_allclose(columns.T @ columns, identity, atol=1e-5)
    assert all(not array.any() for name, array in arrays.items() if name.endswith("bias"))


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    first = parameters_to_vector(make_model(SPECS[0], seed=5).parameters())
    torch.manual_seed(2)
    assert torch.equal(first, parameters_to_vector(make_model(SPECS[0], seed=5).parameters()))
    assert not torch.equal(first, parameters_to_vector(make_model(SPECS[0], seed=6).parameters()))


@pytest.mark.parametrize("spec", SPECS)
def test_its_arrays_are_the_weights_of_a_perceptron(spec: PolicySpec) -> None:
    model, random = make_model(spec), np.random.default_rng(1)
    for array in model.arrays().values():
        array += random.normal(scale=0.1, size=array.shape).astype(np.float32)
    inputs = random.normal(size=(50, spec.inputs)).astype(np.float32)
    for part, network in (("actor", model.actor), ("critic", model.critic)):
        *hidden, weight, bias = (a for name, a in model.arrays().items() if name.startswith(part))
        values = inputs
        for hidden_weight, hidden_bias in zip(hidden[::2], hidden[1::2], strict=True):
            values = values @ hidden_weight + hidden_bias
            values = np.maximum(values, 0) if spec.activation == "relu" else np.tanh(values)
        outputs = network(torch.from_numpy(inputs)).detach().numpy()
        np.testing.assert_allclose(outputs, values @ weight + bias, rtol=1e-4, atol=1e-5)


def test_illegal_actions_have_no_probability_whatever_their_logits() -> None:
    spec = PolicySpec(2, 3, masked=True)
    _, legality = make_model(spec).inputs(torch.tensor([[0, 0, 1, 0, 1]], dtype=torch.uint8))
    for garbage in (0.0, 1e6, 1e20, -1e20):
        distribution = log_softmax(torch.tensor([[1.0, garbage, 1.0]]), legality).exp()
        torch.testing.assert_close(distribution, torch.tensor([[0.5, 0.0, 0.5]]))


def test_observations_are_normalised_and_clipped() -> None:
    model = make_model(PolicySpec(2, 2, normalised=True))
    model.set_moments(Moments(4, np.array([1.0, 0.0]), np.array([16.0, 4.0])))
    inputs, legality = model.inputs(torch.tensor([[3.0, -100.0]]))
    torch.testing.assert_close(inputs, torch.tensor([[1.0, -10.0]]))
    assert legality is None
    np.testing.assert_array_equal(policy_arrays(model)["normalisation/inverse_std"], [0.5, 1.0])
