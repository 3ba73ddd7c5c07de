"""Actions and steps in words."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rollout_worker.environments.cage2 import tables

_SUCCESS: Final = ("fails", "succeeds", "is done")
_BELIEFS: Final = ("", "Unknown", "User", "Privileged")


def blue_action_name(action: int) -> str:
    """Return such as `Sleep`, `Restore Op_Server0` or `DecoyFemitter User2`, for a full action 0..144."""
    if not 0 <= action < tables.BLUE_ACTIONS:
        raise ValueError(f"action {action} is outside 0..{tables.BLUE_ACTIONS - 1}")
    kind = tables.BLUE_KINDS[tables.BLUE_KIND[action]]
    return kind if action < 2 else f"{kind} {tables.HOSTS[tables.BLUE_HOST[action]]}"


def red_action_name(kind: int, target: int) -> str:
    """Return such as `Sleep`, `DiscoverRemoteSystems User` or `ExploitRemoteService Enterprise0`."""
    if kind == tables.SLEEP:
        return tables.RED_KINDS[kind]
    places = tables.SUBNETS if kind == tables.SWEEP else tables.HOSTS
    return f"{tables.RED_KINDS[kind]} {places[target]}"


def describe_step(row: Any, observation: NDArray[np.uint8]) -> str:
    """Return the last step of a row (an element of `Cage2Slots.rows`) in one line.

    `observation` [52] is what the challenge would show.
    """
    outcome = row["outcome"]
    red = red_action_name(int(outcome["red_kind"]), int(outcome["red_target"]))
    if outcome["exploit"] >= 0:
        red += f" by {tables.EXPLOITS[outcome['exploit']]}"
    parts = [
        f"Blue {blue_action_name(int(row['blue_action']))} {_SUCCESS[row['blue_success']]}",
        f"Red {red} {_SUCCESS[row['red_success']]}",
        f"reward {0 - int(row['cost_tenths']) / 10:.1f}",
    ]
    if outcome["green_target"] >= 0:
        parts.insert(1, f"Green scans {tables.HOSTS[outcome['green_target']]}")
    sessions = row["privileged_sessions"] + row["removable_sessions"] + row["fixed_sessions"]
    held = [
        f"{name} {sessions[h]}{' privileged' if row['privileged_sessions'][h] else ''}"
        for h, name in enumerate(tables.HOSTS)
        if sessions[h]
    ]
    return "; ".join([*parts, describe_observation(observation), f"sessions {', '.join(held) or 'nothing'}"])


def describe_observation(observation: NDArray[np.uint8]) -> str:
    """Return what Blue is shown, the 52 numbers of the challenge, in words."""
    numbers = observation.reshape(len(tables.HOSTS), 4)
    hosts = list(zip(tables.HOSTS, numbers, strict=True))
    seen = [f"{'Exploit' if h[1] else 'Scan'} on {name}" for name, h in hosts if h[0]]
    marks = [f"{name} {_BELIEFS[h[2] + 2 * h[3]]}" for name, h in hosts if h[2] or h[3]]
    return f"seen {', '.join(seen) or 'nothing'}; marked {', '.join(marks) or 'nothing'}"
