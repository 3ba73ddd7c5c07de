"""Inference of a PolicySpec in numpy, the same to the bit for a row whatever rows stand beside it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocol.errors import ProtocolError
from protocol.messages import Arrays
from protocol.specs import ILLEGAL_LOGIT, INPUT_LIMIT, PolicySpec

_BLOCK_ROWS = 8
"""A product of exactly 8 rows gives a row the same bits at any place, among any neighbours, on every OpenBLAS
kernel tried; products of 10 to 128 rows do not."""


class Policy:
    """A multilayer perceptron with a categorical head, from the float32 arrays that `spec.shapes()` names.

    ProtocolError where the arrays are not those of the spec or not finite.
    """

    def __init__(self, spec: PolicySpec, arrays: Arrays) -> None:
        _check(spec, arrays)
        self.spec = spec
        names = [*(f"hidden/{index}" for index in range(len(spec.hidden))), "logits"]
        self._layers = [(_own(arrays[f"{name}/weight"]), _own(arrays[f"{name}/bias"])) for name in names]
        if spec.normalised:
            self._mean = _own(arrays["normalisation/mean"])
            self._inverse_std = _own(arrays["normalisation/inverse_std"])

    def act(
        self,
        observations: NDArray[np.generic],
        uniforms: NDArray[np.float64],
        greedy: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return one action for each row and its log-probability, both [n].

        `observations` [n, observation_size] have any real dtype; where the spec is masked, their last entries
        are the legal actions. An action is the inverse of the cumulative distribution at the row's uniform
        [n] in [0, 1), or where `greedy` [n] the most probable one (the first of equals).
        """
        logits = self.logits(observations)
        logits -= logits.max(axis=1, keepdims=True)
        cumulative = np.exp(logits).cumsum(axis=1)
        total = cumulative[:, -1]
        # In float64 uniform * total < total, so a positive weight is always reached.
        actions = (cumulative > (uniforms * total)[:, np.newaxis]).argmax(axis=1)
        if greedy is not None:
            actions = np.where(greedy, logits.argmax(axis=1), actions)
        return actions, logits[np.arange(len(logits)), actions] - np.log(total)

    def logits(self, observations: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return the logits [n, actions]; illegal actions have -1e30."""
        rows, inputs = len(observations), self.spec.inputs
        blocks = -(-rows // _BLOCK_ROWS)
        values = np.zeros((blocks, _BLOCK_ROWS, inputs), dtype=np.float32)
        values.reshape(-1, inputs)[:rows] = observations[:, :inputs]
        if self.spec.normalised:
            values -= self._mean
            values *= self._inverse_std
            np.clip(values, -INPUT_LIMIT, INPUT_LIMIT, out=values)
        for weight, bias in self._layers[:-1]:
            values = values @ weight
            values += bias
            if self.spec.activation == "relu":
                np.maximum(values, 0, out=values)
            else:
                np.tanh(values, out=values)
        weight, bias = self._layers[-1]
        logits: NDArray[np.float32] = (values @ weight).reshape(-1, self.spec.actions)[:rows]
        logits += bias
        if self.spec.masked:
            np.copyto(logits, ILLEGAL_LOGIT, where=observations[:, inputs:] == 0)
        return logits


def _own(array: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return an aligned copy: views into a frame may lie anywhere, and the alignment can change bits."""
    return np.array(array, dtype=np.float32, order="C")


def _check(spec: PolicySpec, arrays: Arrays) -> None:
    shapes = spec.shapes()
    if arrays.keys() != shapes.keys():
        missing, extra = sorted(shapes.keys() - arrays.keys()), sorted(arrays.keys() - shapes.keys())
        raise ProtocolError(f"the weights are not those of the policy: missing {missing}, unknown {extra}")
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != np.float32:
            raise ProtocolError(
                f"weights {name} are {array.dtype}{list(array.shape)}, the policy has float32{list(shape)}"
            )
        if not np.isfinite(array).all():
            raise ProtocolError(f"weights {name} hold values that are not finite")
