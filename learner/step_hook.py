"""A function of the user's that is shown each round of synchronous mode, in the learner's process."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.mailbox import RunStopped
from protocol.errors import UserError
from protocol.tickets import Ticket

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Round:
    """One step of each of k slots that took one in this round, in the order of the slots.

    A slot that was reset only, at the start of its episode, is not among them.
    """

    number: int
    """Counts the rounds since the learner was started, from 1."""
    version: int
    """Of the policy: the number of updates behind it."""
    slots: NDArray[np.int64]
    """[k]"""
    tickets: tuple[Ticket, ...]
    """[k]: the episodes."""
    steps: NDArray[np.int64]
    """[k]: this step's number in its episode, from 0."""
    observations: NDArray[Any]
    """[k, observation_size]: what the actions were chosen from."""
    actions: NDArray[np.int64]
    """[k]"""
    rewards: NDArray[np.float32]
    """[k]"""
    terminated: NDArray[np.bool_]
    """[k]"""
    truncated: NDArray[np.bool_]
    """[k]"""
    next_observations: NDArray[Any]
    """[k, observation_size]: what stands after the actions."""


Hook = Callable[[Round], None]


def load_hook(text: str) -> Hook:
    """Return the function MODULE:FUNCTION, guarded: what it raises ends the run in one line.

    Modules of the working directory are found, too. Raises UserError where there is no such function.
    """
    module_name, _, name = text.partition(":")
    if not module_name or not name:
        raise UserError(f"--step-hook {text} is not understood: give MODULE:FUNCTION, such as debug:look")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), name)
    except Exception as error:
        raise UserError(f"--step-hook {text} cannot be imported: {error}") from error
    if not callable(function):
        raise UserError(f"--step-hook {text} is a {type(function).__name__}, not a function")

    def guarded(seen: Round) -> None:
        try:
            function(seen)
        except Exception as error:
            logger.exception("--step-hook %s", text)
            raise RunStopped(
                f"--step-hook {text} raised {type(error).__name__} in round {seen.number}: {error};"
                " its traceback is in the log"
            ) from error

    return guarded
