"""What CAGE-2 shows and accepts, known without importing numba."""

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
from rollout_worker.environments.cage2.scenario import Cage2Options


def spaces(options: Cage2Options) -> Spaces:
    """Return the spaces of environments that are built with these options."""
    chosen = actions_named(options.actions)
    choices, width = len(chosen.offered), observation_named(options.observation).width
    return Spaces(width + chosen.masked * choices, "uint8", choices, chosen.masked, options.max_steps)


def shown_columns(observation: str, actions: str) -> NDArray[np.int64]:
    """Return the columns of the defender's view that are shown: parts of the history, then legality."""
    starts = dict(zip(HISTORY_PARTS, np.cumsum([0, *HISTORY_PARTS.values()]).tolist(), strict=False))
    shown = [starts[part] + np.arange(HISTORY_PARTS[part]) for part in observation_named(observation).parts]
    chosen = actions_named(actions)
    if chosen.masked:
        legality = HISTORY_SIZE if chosen.compact else HISTORY_SIZE + COMPACT_ACTIONS
        shown.append(legality + np.array(chosen.offered))
    return np.concatenate(shown)
