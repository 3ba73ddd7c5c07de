"""A policy in one file: its float32 arrays, and as metadata what they play, with a hash that exposes damage.

Nothing in it can execute, and numpy alone reads it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from deploy.playable import Playable
from protocol.errors import FleetError, UserError
from protocol.messages import Arrays

_FORMAT, _FORMAT_VERSION = "rollout-fleet policy", 1
_KEY = "policy"


def write(path: Path, playable: Playable) -> None:
    """Write a policy, the same bytes each time."""
    about = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "environment": asdict(playable.environment),
        "policy": asdict(playable.policy),
        "seed": playable.seed,
        "version": playable.version,
    }
    arrays = {name: np.ascontiguousarray(playable.arrays[name]) for name in playable.policy.shapes()}
    about["sha256"] = _hash(about, arrays)
    path.write_bytes(safetensors.numpy.save(arrays, {_KEY: json.dumps(about, sort_keys=True)}))


def read(path: Path) -> Playable:
    """Return the policy of a file. Raises UserError where it is damaged, foreign or of another release."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {})[_KEY])
            arrays = {name: file.get_tensor(name) for name in list(file.keys())}
        told, version = about["format"], about["format_version"]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(_damaged(path)) from None
    if (told, version) != (_FORMAT, _FORMAT_VERSION):
        raise UserError(
            f"{path} is {told!r} version {version}, this program reads {_FORMAT!r} version "
            f"{_FORMAT_VERSION}: use the release that wrote it"
        )
    if about.pop("sha256", None) != _hash(about, arrays):
        raise UserError(_damaged(path))
    try:
        playable = Playable.from_plain(about, arrays)
        _check(playable)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} lacks or misstates {error}: install this release anew") from None
    except FleetError as error:
        raise UserError(f"{path} does not fit this release: {error}") from None
    return playable


def _check(playable: Playable) -> None:
    """Raise where the arrays are not the policy's, or the policy not the environment's of this release."""
    from rollout_worker.environments.registry import describe
    from rollout_worker.policy import Policy

    Policy(playable.policy, playable.arrays)
    spec, policy = playable.environment, playable.policy
    now = describe(spec.name, spec.options, spec.spaces.max_episode_steps)
    if (now.inputs, now.actions, now.masked) != (policy.inputs, policy.actions, policy.masked):
        raise UserError(
            f"{spec.name} now shows {now.inputs} numbers and takes {now.actions} actions, "
            f"the policy knows {policy.inputs} and {policy.actions}"
        )


def _hash(about: dict[str, Any], arrays: Arrays) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _damaged(path: Path) -> str:
    return f"{path} is damaged, or no policy of this program: restore it, or install this release anew"
