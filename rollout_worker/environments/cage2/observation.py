"""What Blue sees: activity of this step and the remembered belief about each host, as 52 zeros and ones."""

from typing import Any

import numpy as np

from rollout_worker.environments.cage2 import tables
from rollout_worker.environments.cage2.compilation import compiled
from rollout_worker.environments.cage2.randomness import count

ACTIVITY_NONE, ACTIVITY_SCAN, ACTIVITY_EXPLOIT = 0, 1, 3  # bit 0: first number, bit 1: second number
BELIEF_NO, BELIEF_UNKNOWN, BELIEF_USER, BELIEF_PRIVILEGED = 0, 1, 2, 3

_ACTIVITY_WORD = np.array([0, 1, 0, 1 << 8 | 1], np.uint32)  # as the little-endian word of a host


@compiled
def activity(ports: int, events: int, shell: bool, decoy_placed: bool) -> int:
    """Tell the activity of a host with events: mask of their local ports, their number, any with a shell."""
    distinct = count(ports)
    if distinct >= 3:
        return ACTIVITY_SCAN
    if shell or (distinct == 1 and events + decoy_placed >= 3):
        return ACTIVITY_EXPLOIT
    return ACTIVITY_NONE if decoy_placed else ACTIVITY_SCAN


@compiled
def revise_belief(row: Any, blue_kind: int, host: int) -> None:
    """Change the belief by Blue's own action, before Blue looks at the events."""
    if blue_kind == tables.RESTORE:
        row.compromised &= ~(3 << 2 * host)
    elif blue_kind == tables.REMOVE and row.compromised >> 2 * host & 3:
        row.compromised = (row.compromised & ~(3 << 2 * host)) | BELIEF_UNKNOWN << 2 * host


@compiled
def believe(row: Any, host: int, belief: int) -> None:
    """Replace the belief about a host."""
    row.compromised = (row.compromised & ~(3 << 2 * host)) | belief << 2 * host


@compiled
def write_observation(row: Any, words: Any) -> None:
    """Write the beliefs into the 13 words of four bytes; activities are added by `show`."""
    compromised = row.compromised
    for host in range(13):
        belief = compromised >> 2 * host
        words[host] = (belief & 1) << 16 | (belief & 2) << 23


@compiled
def show(words: Any, host: int, seen: int) -> None:
    """Add the activity of a host to its word."""
    words[host] |= _ACTIVITY_WORD[seen]
