from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protocol.codec import decode, encode
from protocol.messages import Welcome
from protocol.specs import EnvironmentSpec, PolicySpec, Spaces

SPACES = Spaces(52, "uint8", 145, masked=False, max_episode_steps=100)
SPEC = EnvironmentSpec(
    "cage2",
    {"rules": "current"},
    SPACES,
    train_scenarios=({"red": "b_line"}, {"red": "meander"}),
    evaluate_scenarios=({"red": "b_line", "steps": 30}, {"red": "b_line", "steps": 50}, {"red": "meander"}),
)
POLICY = PolicySpec(52, 145)


def test_tickets_walk_through_the_scenarios_of_their_sequence() -> None:
    assert [SPEC.scenario("train", number)["red"] for number in range(4)] == ["b_line", "meander"] * 2
    assert [SPEC.scenario("evaluate", number).get("steps") for number in range(4)] == [30, 50, None, 30]


def test_without_scenarios_each_ticket_has_the_empty_one() -> None:
    assert EnvironmentSpec("CartPole-v1", {}, SPACES).scenario("train", 9) == {}


def test_shapes_name_every_layer_in_order() -> None:
    assert list(replace(POLICY, hidden=(64, 32), normalised=True).shapes().items()) == [
        ("normalisation/mean", (52,)),
        ("normalisation/inverse_std", (52,)),
        ("hidden/0/weight", (52, 64)),
        ("hidden/0/bias", (64,)),
        ("hidden/1/weight", (64, 32)),
        ("hidden/1/bias", (32,)),
        ("logits/weight", (32, 145)),
        ("logits/bias", (145,)),
    ]
    assert replace(POLICY, hidden=()).shapes() == {"logits/weight": (52, 145), "logits/bias": (145,)}


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": 53},
        {"actions": 144},
        {"masked": True},
        {"hidden": (64,)},
        {"activation": "tanh"},
        {"normalised": True},
    ],
)
def test_any_difference_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert replace(POLICY, **change).fingerprint() != POLICY.fingerprint()


def test_the_fingerprint_survives_the_wire() -> None:
    received = decode(encode(Welcome("run", 1, 1, "async", SPEC, POLICY, 1.0, 5.0)))
    assert isinstance(received, Welcome)
    assert received.policy.fingerprint() == POLICY.fingerprint()
    assert received.environment == SPEC
