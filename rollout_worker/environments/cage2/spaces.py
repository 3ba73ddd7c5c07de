"""What the embedded CAGE-2 shows and accepts, known without importing numba."""

import numpy as np
from numpy.typing import NDArray

from protocol.specs import Spaces
from rollout_worker.environments.cage2.options import (
    COMPACT_ACTIONS,
    HISTORY_PARTS,
    HISTORY_SIZE,
    actions_named,
    observation_named,
)
from rollout_worker.environments.cage2.scenario import check_options


def spaces(
    *,
    rules: str = "current",
    green: bool = False,
    observation: str = "bits",
    actions: str = "full",
    max_steps: int = 100,
    red_agent: str = "b_line",
) -> Spaces:
    """Return the spaces of `Cage2Slots` built with these options. Raises ValueError for an unknown one."""
    check_options(rules, green, observation, actions, max_steps, red_agent)
    chosen = actions_named(actions)
    choices, width = len(chosen.offered), observation_named(observation).width
    return Spaces(width + chosen.masked * choices, "uint8", choices, chosen.masked, max_steps)


def shown_columns(observation: str, actions: str) -> NDArray[np.int64]:
    """Return the columns of the defender's view that are shown: parts of the history, then legality."""
    starts = dict(zip(HISTORY_PARTS, np.cumsum([0, *HISTORY_PARTS.values()]).tolist(), strict=False))
    shown = [starts[part] + np.arange(HISTORY_PARTS[part]) for part in observation_named(observation).parts]
    chosen = actions_named(actions)
    if chosen.masked:
        legality = HISTORY_SIZE if chosen.compact else HISTORY_SIZE + COMPACT_ACTIONS
        shown.append(legality + np.array(chosen.offered))
    return np.concatenate(shown)
