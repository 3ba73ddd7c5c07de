"""How the processes of a run are started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from learner.config import SIZE, check_ranges

LEARNER_PORT = "5555"

CAGE2_ENVIRONMENTS = ("cage2", "cyborg")
"""The embedded simulator, and the real one."""

GYMNASIUM_DEFAULTS: Mapping[str, Any] = {
    "n_envs": 20,
    "episode_length": (0,),
    "selection_episodes": 20,
    "episodes_per_update": 20,
    "activation": "tanh",
    "learning_rate": 3e-3,
    "final_learning_rate": 3e-4,
    "epochs": 6,
    "minibatch_steps": 256,
    "entropy": 0.005,
    "final_entropy": 0.0,
    "exploration": 0.0,
    "reward_scale": 0.05,
}
"""In the place of the defaults, which are for CAGE-2, where another environment is played."""


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """Processes and sockets of one start; of these only `init_from` changes what is learned."""

    init_from: str = ""
    """Begin with the weights of this checkpoint, or of the best of this run."""
    workers: int = 0
    """Worker processes; 0 starts one for each usable core, and no more than --n-envs."""
    slots: int = 0
    """Environments of each worker; 0 shares --n-envs out."""
    allow_env: tuple[str, ...] = ()
    """Import these modules, which register environments with Gymnasium."""
    bind: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for workers on other hosts."""
    port: str = ""
    """Control port, the next three follow it; auto takes a free block.
    (default: auto for fleet train, 5555 for fleet learner)"""
    keys: str = ""
    """Encrypt everything and let in only whom this folder of keys allows; see fleet keys.
    (default: ~/.config/rollout-fleet where other hosts reach the address, else everyone of this host)"""
    insecure: bool = False
    """Listen on an address that others reach, though nothing is encrypted or authenticated."""
    record_steps: str = ""
    """In sync mode, record here when each slot's action went out and its answer came; see fleet steps."""
    step_hook: str = ""
    """In sync mode, call this function, as MODULE:FUNCTION, with what each round brought."""

    def __post_init__(self) -> None:
        """Refuse numbers that no machine has."""
        check_ranges(self, {"workers": SIZE, "slots": SIZE})
