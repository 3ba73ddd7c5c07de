"""Acting for all slots of synchronous mode at once: torch, on the GPU where there is one."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learner.models import named_views, perceptron
from protocol.messages import Arrays
from protocol.specs import ILLEGAL_LOGIT, INPUT_LIMIT, PolicySpec


def fastest_device() -> str:
    """Return "cuda" where torch can use it, else "cpu"; products on either give the same bits again."""
    if not torch.cuda.is_available():
        return "cpu"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch's deterministic mode asks for it
    return "cuda"


class Actor:
    """The policy of a `PolicySpec` under the weights last given to `load`.

    The bits of a row depend on its place and on the number of rows: act on as many as ever, in fixed places.
    """

    def __init__(self, spec: PolicySpec, device: str = "cpu") -> None:
        self.spec, self._device = spec, device
        self._network = perceptron(spec, spec.actions).to(device)
        self._mean = torch.zeros(spec.inputs, device=device)
        self._inverse_std = torch.ones(spec.inputs, device=device)

    def load(self, arrays: Arrays) -> None:
        """Play with these weights, named as in `PolicySpec.shapes()`, from now on."""
        views = named_views(self._network, self.spec)
        if self.spec.normalised:
            views |= {"normalisation/mean": self._mean, "normalisation/inverse_std": self._inverse_std}
        for name, view in views.items():
            view.copy_(torch.from_numpy(np.array(arrays[name])))

    def act(
        self, observations: NDArray[Any], uniforms: NDArray[np.float64], greedy: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return one action for each row of `observations` [n, size] and its log-probability, both [n].

        The action is the inverse of the cumulative distribution, in float64, at the row's uniform [n] in
        [0, 1); where `greedy` [n], the most probable one (the first of equals).
        """
        logits = self._logits(observations).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        cumulative = np.exp(logits).cumsum(axis=1)
        total = cumulative[:, -1]
        actions = (cumulative > (uniforms * total)[:, np.newaxis]).argmax(axis=1)
        actions = np.where(greedy, logits.argmax(axis=1), actions)
        return actions, (logits[np.arange(len(logits)), actions] - np.log(total)).astype(np.float32)

    def _logits(self, observations: NDArray[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            rows = torch.from_numpy(observations[:, : self.spec.inputs].astype(np.float32))
            inputs = rows.to(self._device, copy=True)  # foreign memory may be aligned otherwise: other bits
            if self.spec.normalised:
                inputs.sub_(self._mean).mul_(self._inverse_std).clamp_(-INPUT_LIMIT, INPUT_LIMIT)
            logits: NDArray[np.float32] = self._network(inputs).cpu().numpy()
        if self.spec.masked:
            np.copyto(logits, ILLEGAL_LOGIT, where=observations[:, self.spec.inputs :] == 0)
        return logits
