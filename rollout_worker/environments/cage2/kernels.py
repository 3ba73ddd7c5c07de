"""The compiled entry points: reset and step any subset of a batch in one call."""

from typing import Any, Final

import numpy as np

from rollout_worker.environments.cage2.compilation import compilation_lock, compiled, kernel
from rollout_worker.environments.cage2.defender_view import (
    VIEW_SIZE,
    VIEW_WIDTH,
    reset_view,
    translate_action,
    update_view,
    write_view,
)
from rollout_worker.environments.cage2.dynamics import step_row
from rollout_worker.environments.cage2.full_view import STATE_SIZE, write_state
from rollout_worker.environments.cage2.randomness import mix
from rollout_worker.environments.cage2.state import OUTCOME, ROW, initial_row
from rollout_worker.environments.cage2.tables import BLUE_ACTIONS, OBSERVATION_SIZE

VALID: Final = -1
_TENTHS = (np.arange(1024) / -10).astype(np.float32) + np.float32(0)  # adding 0 makes the first one +0


@kernel
def reset_rows(rows: Any, blank: Any, slots: Any, seeds: Any, settings: Any) -> None:
    """Reset `slots` int64 [k] of `rows` from `seeds` uint64 [k].

    `settings` int64 [k, 5]: red agent, green, leaderboard rules, forced, length in steps; `blank` is
    `state.initial_row()`.
    """
    for k in range(slots.shape[0]):
        rows[slots[k]] = blank[0]
        row = rows[slots[k]]
        row.key = mix(seeds[k])
        row.red_agent = settings[k, 0]
        row.green = settings[k, 1]
        row.leaderboard = settings[k, 2]
        row.forced = settings[k, 3]
        row.length = settings[k, 4]


@compiled
def _first_invalid(rows: Any, slots: Any, actions: Any, limit: int) -> int:
    for k in range(slots.shape[0]):
        if not (0 <= slots[k] < rows.shape[0] and 0 <= actions[k] < limit and rows[slots[k]].length > 0):
            return k
    return VALID


@kernel
def step_rows(
    rows: Any, scripts: Any, slots: Any, actions: Any, observations: Any, rewards: Any, truncated: Any
) -> int:
    """Advance `slots` int64 [k] by `actions` int64 [k].

    Fills `observations` uint8 [k, 52], `rewards` float32 [k] and `truncated` bool [k]. `scripts` [slots] of
    OUTCOME is read for forced rows. Returns VALID, or the first k whose slot or action is out of range or
    whose slot was never reset, and then nothing has changed.
    """
    invalid = _first_invalid(rows, slots, actions, BLUE_ACTIONS)
    if invalid != VALID:
        return invalid
    words = observations.view(np.uint32)
    for k in range(slots.shape[0]):
        row = rows[slots[k]]
        step_row(row, scripts[slots[k]], actions[k], words[k])
        rewards[k] = _TENTHS[row.cost_tenths]
        truncated[k] = row.step >= row.length
    return VALID


@kernel
def reset_views(views: Any, slots: Any, bits: Any, features: Any) -> None:
    """Reset `slots` [k] of `views` uint8 [slots, VIEW_SIZE]; `bits` is the observation of a reset, 52 zeros.

    Fills `features` uint8 [k, VIEW_WIDTH or WIDE_VIEW_WIDTH].
    """
    for k in range(slots.shape[0]):
        reset_view(views[slots[k]])
        write_view(views[slots[k]], bits, features[k])


@kernel
def step_viewed_rows(
    rows: Any, scripts: Any, views: Any, slots: Any, actions: Any, offered: Any, compact: bool, bits: Any,
    features: Any, rewards: Any, truncated: Any
) -> int:  # fmt: skip
    """Do what `step_rows` does, with the defender's view.

    The actions are places in `offered` int64 [n], which holds compact actions if `compact`, else full ones.
    Fills `features` uint8 [k, VIEW_WIDTH or WIDE_VIEW_WIDTH] with history and legality, and `bits` [k, 52].
    """
    invalid = _first_invalid(rows, slots, actions, offered.shape[0])
    if invalid != VALID:
        return invalid
    words = bits.view(np.uint32)
    for k in range(slots.shape[0]):
        row, view = rows[slots[k]], views[slots[k]]
        action = offered[actions[k]]
        if compact:
            action = translate_action(view, action)
        step_row(row, scripts[slots[k]], action, words[k])
        update_view(view, bits[k], action)
        write_view(view, bits[k], features[k])
        rewards[k] = _TENTHS[row.cost_tenths]
        truncated[k] = row.step >= row.length
    return VALID


@kernel
def write_states(rows: Any, slots: Any, mind: Any, script: Any, features: Any) -> None:
    """Fill `features` uint8 [k, STATE_SIZE] with the true state of `slots` int64 [k].

    `mind` [1] of ROW is room to work in, `script` [1] of OUTCOME what scripted red agents would do.
    """
    for k in range(slots.shape[0]):
        mind[0] = rows[slots[k]]
        write_state(mind[0], script[0], features[k])


def compile_kernels() -> None:
    """Compile every kernel, or load it from the cache. One process compiles while the others wait for it."""
    rows, scripts, slots = np.zeros(1, ROW), np.zeros(1, OUTCOME), np.zeros(1, np.int64)
    bits, features = np.zeros((1, OBSERVATION_SIZE), np.uint8), np.zeros((1, VIEW_WIDTH), np.uint8)
    rewards, truncated = np.zeros(1, np.float32), np.zeros(1, np.bool_)
    views, seeds = np.zeros((1, VIEW_SIZE), np.uint8), np.zeros(1, np.uint64)
    with compilation_lock():
        reset_rows(rows, initial_row(), slots, seeds, np.ones((1, 5), np.int64))
        step_rows(rows, scripts, slots, slots, bits, rewards, truncated)
        reset_views(views, slots, bits[0], features)
        step_viewed_rows(rows, scripts, views, slots, slots, slots, True, bits, features, rewards, truncated)
        write_states(rows, slots, rows.copy(), scripts, np.zeros((1, STATE_SIZE), np.uint8))
