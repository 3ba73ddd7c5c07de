"""A checkpoint as a run leaves it, with made-up weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from deploy.environment import environment_spec
from deploy.settings import resolve
from learner.checkpoints import Checkpoint, save
from protocol.specs import PolicySpec


def made_checkpoint(folder: Path, *, normalised: bool = False, activation: str = "relu", **told: Any) -> Path:
    """Write one of a run with these settings, of version 3 and seed 5; returns `folder`."""
    environment = environment_spec(resolve(told).run)
    spaces, rng = environment.spaces, np.random.default_rng(0)
    policy = PolicySpec(
        spaces.inputs, spaces.actions, spaces.masked, (16, 8), "relu" if activation == "relu" else "tanh",
        normalised,
    )  # fmt: skip
    arrays = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in policy.shapes().items()}
    state = {"environment": asdict(environment), "policy": asdict(policy), "seed": 5}
    save(folder, Checkpoint(3, {"weights": np.zeros(1)}, {}, state, {3: arrays}))
    return folder
