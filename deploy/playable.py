"""A checkpoint as a worker would play it, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from learner.checkpoints import Checkpoint
from protocol.errors import UserError
from protocol.messages import Arrays
from protocol.specs import EnvironmentSpec, PolicySpec, Spaces


@dataclass(frozen=True, slots=True)
class Playable:
    """An environment, a policy and its arrays, and the seed and version that they are of."""

    environment: EnvironmentSpec
    policy: PolicySpec
    arrays: Arrays
    seed: int
    version: int

    @classmethod
    def of(cls, checkpoint: Checkpoint, version: int | None = None) -> Playable:
        """Return what a checkpoint keeps of a version, None for its own. Raises UserError if it does not."""
        number = checkpoint.update if version is None else version
        try:
            return cls.from_plain({**checkpoint.state, "version": number}, checkpoint.versions[number])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"the checkpoint of update {checkpoint.update} lacks or misstates {error}"
            ) from error

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], arrays: Arrays) -> Playable:
        """Return it from JSON values `environment`, `policy`, `seed` and `version`.

        Raises KeyError, TypeError or ValueError where they are not such.
        """
        return cls(
            environment=_environment(plain["environment"]),
            policy=_policy(plain["policy"]),
            arrays=arrays,
            seed=int(plain["seed"]),
            version=int(plain["version"]),
        )


def _policy(plain: Mapping[str, Any]) -> PolicySpec:
    return PolicySpec(**{**plain, "hidden": tuple(plain["hidden"])})


def _environment(plain: Mapping[str, Any]) -> EnvironmentSpec:
    train, evaluate = (tuple(plain[name]) for name in ("train_scenarios", "evaluate_scenarios"))
    return EnvironmentSpec(plain["name"], plain["options"], Spaces(**plain["spaces"]), train, evaluate)
