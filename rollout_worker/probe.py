"""One hash of everything that could make two hosts disagree, and the name of the processor to blame."""

from __future__ import annotations

import os
import platform
import zlib
from pathlib import Path

import numpy as np

from protocol.errors import FleetError
from protocol.messages import Arrays, Failure, Version
from protocol.specs import EnvironmentSpec, PolicySpec
from protocol.tickets import Ticket, action_uniforms
from rollout_worker.environments.delayed_slots import DelayedSlots
from rollout_worker.environments.slots import SlotEnvironments
from rollout_worker.player import Player, Step
from rollout_worker.policy import Policy

_SEED = 20_000_101
_TICKETS = tuple(Ticket("train", number) for number in range(4))
_STEPS = 16
_ROWS = 19  # no multiple of the policy's blocks


def probe(environments: SlotEnvironments, spec: EnvironmentSpec, policy_spec: PolicySpec) -> str:
    """Return 8 hexadecimal digits that two workers share whose episodes are the same to the bit.

    Hashed are numpy's version, the policy's answers to made-up rows in a shuffled order, and the first steps
    of a few tickets under made-up weights: observations, actions, log-probabilities, rewards. The number of
    slots does not matter, and delays are left out. The environments are left to be reset. FleetError where
    no ticket can begin.
    """
    environments = environments.inner if isinstance(environments, DelayedSlots) else environments
    policy = Policy(policy_spec, _arrays(policy_spec))
    seen = [np.__version__.encode(), _shuffled_answers(policy, environments.observation_size)]
    played: dict[Ticket, list[bytes]] = {ticket: [] for ticket in _TICKETS}

    def record(step: Step) -> None:
        numbers = np.array([step.action, step.log_prob, step.reward, step.terminated, step.truncated])
        played[step.ticket] += [step.observation.tobytes(), numbers.tobytes()]

    player = Player(environments, spec, _SEED, on_step=record)
    failures: list[Failure] = []
    for start in range(0, len(_TICKETS), environments.slots):
        some = _TICKETS[start : start + environments.slots]
        for ticket in some:
            player.start(ticket, Version(0, 0), policy)
        for _ in range(_STEPS):
            failures += [ended for ended in player.advance() if isinstance(ended, Failure)]
        player.abandon(some)
    if not player.begun:
        raise FleetError(f"environment {spec.name} cannot begin an episode: {failures[0].reason}")
    for ticket in _TICKETS:
        seen += played[ticket]
    for failure in sorted(failures, key=lambda failure: failure.ticket):
        seen.append(f"{failure.ticket} {failure.reason}".encode())
    return f"{zlib.crc32(b''.join(seen)):08x}"  # any change must show, none is made by an adversary


def processor() -> str:
    """Return the processor's name, and the kernel forced on OpenBLAS where one is."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    forced = os.environ.get("OPENBLAS_CORETYPE")
    return (name or platform.processor() or platform.machine()) + (f" as {forced}" if forced else "")


def _arrays(spec: PolicySpec) -> Arrays:
    """Return made-up weights that spread activations and probabilities well."""
    arrays = {}
    for index, (name, shape) in enumerate(spec.shapes().items()):
        count = int(np.prod(shape))
        keys = np.full(count, _SEED + index, np.uint64)
        uniforms = action_uniforms(keys, np.arange(count))
        scale = 4.0 / np.sqrt(shape[0]) if len(shape) == 2 else 1.0
        arrays[name] = ((uniforms - 0.5) * scale).astype(np.float32).reshape(shape)
    return arrays


def _shuffled_answers(policy: Policy, observation_size: int) -> bytes:
    """Return the policy's answers to made-up rows, computed in another order: it must not matter."""
    count = _ROWS * observation_size
    uniforms = action_uniforms(np.full(count, _SEED, np.uint64), np.arange(count))
    rows = (uniforms * 4 - 2).astype(np.float32).reshape(_ROWS, observation_size)
    order = np.argsort(uniforms[:_ROWS], kind="stable")
    actions, log_probs = policy.act(rows[order], uniforms[order])
    back = np.argsort(order, kind="stable")
    return actions[back].tobytes() + log_probs[back].tobytes()
