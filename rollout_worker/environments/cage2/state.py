"""The state of one environment as one record, so that a batch is one array and a row one stretch of memory.

Signed integers only, but for the key: numba turns a signed and an unsigned 64-bit integer into a float.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rollout_worker.environments.cage2 import tables

# What chance, or whoever forces a step, decides in it. -1: nothing was decided.
OUTCOME: Final = np.dtype(
    [
        ("green_kind", "i2"),
        ("green_target", "i2"),
        ("red_kind", "i2"),
        ("red_target", "i2"),
        ("exploit", "i2"),
        ("detected", "i2"),
        ("escalate_pick", "i2"),
        ("escalate_pick_removable", "i2"),
    ],
    align=True,
)
GREEN_KIND, GREEN_TARGET, RED_KIND, RED_TARGET, EXPLOIT, DETECTED, PICK, PICK_REMOVABLE = range(8)

ROW: Final = np.dtype(
    [
        ("key", "u8"),  # of the row's random numbers
        ("step", "i8"),
        ("length", "i8"),
        ("red_agent", "i1"),
        ("green", "i1"),
        ("leaderboard", "i1"),
        ("forced", "i1"),  # outcomes come from the script instead of the random numbers
        # sets of hosts
        ("access", "i2"),  # with a session
        ("privileged", "i2"),  # with a privileged session
        ("malware", "i2"),
        ("ports_known", "i2"),
        ("mail_safe", "i2"),
        ("compromised", "i4"),  # Blue's belief, two bits a host: No 0, Unknown 1, User 2, Privileged 3
        ("decoys", "i2", 13),
        ("ot_running", "i1"),
        ("ot_pid_known", "i1"),
        ("ot_known", "i1"),
        ("ports", "i2", 13),
        # sessions by class: privileged; user level, which Remove deletes; user level, which it does not
        ("privileged_sessions", "i2", 13),
        ("removable_sessions", "i2", 13),
        ("fixed_sessions", "i2", 13),
        ("removable_order", "i8", 13),  # bit p: session p is removable; kept while none is privileged
        # the red agents' memory
        ("b_line_counter", "i1"),
        ("b_line_foothold", "i1"),  # 0: not drawn yet
        ("b_line_attacked_server", "i1"),
        ("red_saw_data", "i1"),  # the last service scan returned data
        ("scanned_subnets", "i1"),
        ("known_subnets", "i1"),
        ("known_addresses", "i2"),
        ("known_names", "i2"),
        ("meander_scanned", "i2"),
        ("meander_exploited", "i2"),
        ("meander_escalated", "i2"),
        ("meander_mapped", "i2"),
        ("last_exploit", "i1"),
        ("last_host", "i1"),
        # what happened in the last step
        ("blue_action", "i2"),
        ("cost_tenths", "i2"),  # minus ten times the reward
        ("blue_success", "i1"),
        ("red_success", "i1"),
        ("outcome", OUTCOME),
        ("fault", "i1"),  # first forced value that the rules do not allow (index in OUTCOME), else -1
        ("fault_allowed", "i8"),  # the values allowed there, as a mask; 0: only -1
    ],
    align=True,
)


def initial_row() -> NDArray[Any]:
    """Return one row as a reset leaves it, but for key, length, agents and rules."""
    row = np.zeros(1, ROW)
    user0 = 1 << tables.USER0
    row["access"] = row["privileged"] = row["known_addresses"] = row["known_names"] = user0
    row["privileged_sessions"][0, tables.USER0] = 1
    row["known_subnets"] = 1 << tables.SUBNETS.index("User")
    row["ot_running"] = row["ot_pid_known"] = 1
    row["last_exploit"] = row["last_host"] = row["fault"] = -1
    row["red_success"] = row["blue_success"] = tables.UNKNOWN
    for name in OUTCOME.names or ():
        row["outcome"][name] = -1
    return row


def host_bits(masks: NDArray[Any]) -> NDArray[np.uint8]:
    """Return masks of hosts [n] as zeros and ones [n, 13]."""
    return (masks[:, None] >> np.arange(13) & 1).astype(np.uint8)


def full_state(rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the state of n rows under the names and codes of the recorded traces, each [n] or [n, 13]."""
    privileged = rows["privileged_sessions"]
    user_level = rows["removable_sessions"] + rows["fixed_sessions"]
    names = ("red_kind", "red_target", "exploit", "detected", "escalate_pick", "escalate_pick_removable")
    plain = ("red_success", "blue_success", "decoys", "ot_running", "meander_exploited", "meander_escalated")
    return {
        **{name: rows["outcome"][name] for name in names},
        **{name: rows[name] for name in (*plain, "meander_scanned", "meander_mapped", "b_line_counter")},
        "red_sessions": privileged + user_level,
        "red_privileged_sessions": privileged,
        "red_removable_sessions": rows["removable_sessions"],
        "red_access": np.where(privileged > 0, 2, user_level > 0).astype(np.uint8),
        "malware_files": host_bits(rows["malware"]),
        "scanned": host_bits(rows["ports_known"]),
        "red_port_memory": rows["ports"],
    }
