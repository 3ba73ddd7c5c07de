"""The state of training: everything that an update changes, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learner.batches import Batch, make_batch
from learner.config import PPOConfig
from learner.models import ActorCritic, policy_arrays
from learner.normalisation import Moments
from learner.ppo import Optimisers, run_update
from protocol.errors import UserError
from protocol.messages import Episode
from protocol.specs import PolicySpec

TrainerArrays = dict[str, NDArray[Any]]
"""`weights/...`, `optimiser/...` and, where the policy is normalised, `normalisation/...`, by name."""


class Trainer:
    """Turns batches of episodes into new weights; torch's own threads are the caller's affair.

    Two trainers given the same arguments and the same batches hold the same bits, on one machine and with one
    thread count. `update` counts the updates done.
    """

    def __init__(self, spec: PolicySpec, config: PPOConfig, seed: int, updates: int) -> None:
        torch.use_deterministic_algorithms(True)
        # Or every new tensor is filled first. Type: torch replaces this module by an object of its own.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self.spec, self.config, self.seed, self.updates = spec, config, seed, updates
        self.update = 0
        self.model = ActorCritic(spec, torch.Generator().manual_seed(seed % 2**63))
        self.optimisers = Optimisers.of(self.model)

    def train(self, episodes: Sequence[Episode], should_stop: Callable[[], bool] = bool) -> dict[str, float]:
        """Run one update on `episodes`, given in any order, and return its figures.

        If `should_stop` says so, or the weights diverge, all is put back to the end of the update before, and
        UpdateAbandoned or UserError is raised.
        """
        began = time.perf_counter()
        batch = make_batch(episodes)
        before = deepcopy([part.state_dict() for part in self._parts()])
        moments = self.model.moments
        if self.spec.normalised:
            self.model.set_moments(moments.merge(Moments.of(batch.observations[:, : self.spec.inputs])))
        batched = time.perf_counter()
        try:
            figures = run_update(
                self.model,
                self.optimisers,
                batch,
                self.config,
                seed=self.seed,
                update=self.update,
                updates=self.updates,
                should_stop=should_stop,
            )
            if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
                raise UserError(
                    f"training diverged in update {self.update}: its weights are no longer finite numbers; "
                    "lower --learning-rate or --reward-scale"
                )
        except BaseException:
            self._restore(before, moments)
            raise
        self.update += 1
        return {
            **figures,
            **_returns(batch),
            "batch_seconds": batched - began,
            "update_seconds": time.perf_counter() - began,
        }

    def policy_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return copies of the arrays that `PolicySpec.shapes` names: what workers play with."""
        return policy_arrays(self.model)

    def state(self) -> tuple[TrainerArrays, dict[str, Any]]:
        """Return copies of all arrays, and the plain JSON that goes with them."""
        weights = self.model.arrays()
        arrays: TrainerArrays = {f"weights/{name}": array.copy() for name, array in weights.items()}
        for network, optimiser in self.optimisers._asdict().items():
            for index, moments in optimiser.state_dict()["state"].items():
                for name, moment in moments.items():
                    arrays[f"optimiser/{network}/{index}/{name}"] = np.atleast_1d(moment.numpy()).copy()
        if self.spec.normalised:
            seen = self.model.moments
            arrays["normalisation/count"] = np.array([seen.count])
            arrays["normalisation/mean"], arrays["normalisation/squares"] = seen.mean, seen.squares
        return arrays, {"update": self.update}

    def load_state(self, arrays: Mapping[str, NDArray[Any]], plain: Mapping[str, Any]) -> None:
        """Take up training where `state` was taken. Raises UserError if it is of another policy."""
        self.load_weights(arrays)
        update = int(plain["update"])
        for network, optimiser in self.optimisers._asdict().items():
            plan = optimiser.state_dict()
            parameters = enumerate(optimiser.param_groups[0]["params"]) if update else ()
            for index, parameter in parameters:
                shapes = {"step": (1,), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
                found = {
                    name: torch.tensor(_fitting(arrays, f"optimiser/{network}/{index}/{name}", tuple(shape)))
                    for name, shape in shapes.items()
                }
                plan["state"][index] = found | {"step": found["step"][0]}
            optimiser.load_state_dict(plan)
        self.update = update

    def load_weights(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Begin from the weights and normalisation of another training's `state`, with a fresh optimiser.

        Raises UserError if they are of another policy.
        """
        targets = {f"weights/{name}": array for name, array in self.model.arrays().items()}
        found = {name: _fitting(arrays, name, target.shape) for name, target in targets.items()}
        if self.spec.normalised:
            size = (self.spec.inputs,)
            count = float(_fitting(arrays, "normalisation/count", (1,))[0])
            mean, squares = (_fitting(arrays, f"normalisation/{name}", size) for name in ("mean", "squares"))
            self.model.set_moments(Moments(count, mean.astype(np.float64), squares.astype(np.float64)))
        for name, target in targets.items():
            target[...] = found[name]

    def _parts(self) -> tuple[Any, ...]:
        """Return all that an update changes, each with `state_dict` and `load_state_dict`."""
        return self.model, *self.optimisers

    def _restore(self, before: Sequence[dict[str, Any]], moments: Moments) -> None:
        for part, state in zip(self._parts(), before, strict=True):
            part.load_state_dict(state)
        self.model.set_moments(moments)


def _fitting(arrays: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the named array, or say why it cannot be used."""
    if name not in arrays:
        raise UserError(
            f"the checkpoint has no array {name}: it was made with other --hidden or --normalise-observations"
        )
    if arrays[name].shape != shape:
        raise UserError(
            f"the checkpoint's {name} is {list(arrays[name].shape)}, this run's policy needs {list(shape)}: "
            "use the environment, --hidden and other policy options it was made with"
        )
    return arrays[name]


def _returns(batch: Batch) -> dict[str, float]:
    returns = batch.returns
    return {
        "return_mean": float(returns.mean()),
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        "episodes": len(returns),
        "steps": len(batch.rewards),
        "episode_steps_mean": float(batch.lengths.mean()),
    }
