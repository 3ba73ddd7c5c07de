"""The true state of CAGE-2 as features, for a bound on what a defender could reach who knew everything.

A row of features (0 or 1, STATE_SIZE) is a function of the simulator's row alone. It holds what Red's future
and the rewards depend on. Red makes up its mind before Blue's action takes effect, so its next action is
shown, with the targets that it draws from, and its memory as it is then: that of its last exploit is used up
by it. Blue's beliefs are among the 52 bits of the history, which is shown beside.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rollout_worker.environments.cage2 import tables
from rollout_worker.environments.cage2.compilation import compiled
from rollout_worker.environments.cage2.red_agents import choose
from rollout_worker.environments.cage2.tables import N_HOSTS, N_SUBNETS

STEPS_LEFT = np.array([1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 35, 40, 50, 60, 70, 80, 90], np.int64)
"""At least so many steps are left of the episode."""
MOST_SESSIONS = 3
"""Of the user-level sessions of a host, removable or not, that are told apart from more."""
N_COUNTERS, FIRST_FOOTHOLD, N_FOOTHOLDS = 15, 9, 4
N_MEMORIES = 6

# Decoys that fit a host, and exploits whose port may be open there: (host, decoy) and (host, exploit).
DECOY_PAIRS = np.array(
    [(host, d) for host in range(N_HOSTS) for d in range(8) if tables.FITTING_DECOYS[host] >> d & 1], np.int64
)
EXPLOIT_PAIRS = np.array(
    [
        (host, e)
        for host in range(N_HOSTS)
        for e in range(8)
        if (tables.ORIGINAL_PORTS[host] | tables.PORTS_OF_DECOYS[tables.FITTING_DECOYS[host]])
        & tables.EXPLOIT_PORT[e]
    ],
    np.int64,
)

_AGENT = 0  # sleep, B_line, Meander
_RULES = _AGENT + 3  # green awake, leaderboard rules
_LEFT = _RULES + 2
_NEXT = _LEFT + len(STEPS_LEFT)  # Red's next action: its kind, the hosts and the subnets it draws from
_NEXT_HOSTS = _NEXT + len(tables.RED_KINDS)
_NEXT_SUBNETS = _NEXT_HOSTS + N_HOSTS
_SERVICE = _NEXT_SUBNETS + N_SUBNETS  # OTService runs, its process can be found, Red knows it
_MAIL_SAFE = _SERVICE + 3  # of User3 and User4, under leaderboard rules
_COUNTER = _MAIL_SAFE + 2
_FOOTHOLD = _COUNTER + N_COUNTERS
_ATTACKED = _FOOTHOLD + N_FOOTHOLDS
_SUBNETS = _ATTACKED + 1  # known, then swept
_MEMORIES = _SUBNETS + 2 * N_SUBNETS
_HOSTS = _MEMORIES + N_MEMORIES * N_HOSTS
# Of each host: malware, a privileged session, removable and fixed sessions, what an exploit would now do.
_MALWARE, _PRIVILEGED, _REMOVABLE = 0, 1, 2
_FIXED = _REMOVABLE + MOST_SESSIONS
_STOPPED = _FIXED + MOST_SESSIONS
_GIVES = _STOPPED + 1
_HOST_WIDTH = _GIVES + 2
_DECOYS = _HOSTS + N_HOSTS * _HOST_WIDTH
_EXPLOITS = _DECOYS + len(DECOY_PAIRS)
STATE_SIZE = _EXPLOITS + len(EXPLOIT_PAIRS)

Features = NDArray[np.uint8]


@compiled
def write_state(row: Any, script: Any, out: Features) -> None:
    """Write the state of `row` to `out` uint8 [STATE_SIZE]; `row` is changed, so it must be a copy.

    `script` of OUTCOME is read for scripted red agents, which have no future of their own.
    """
    out[:] = 0
    if row.red_agent <= tables.AGENT_MEANDER:
        out[_AGENT + row.red_agent] = 1
    out[_RULES] = row.green
    out[_RULES + 1] = row.leaderboard
    for i in range(len(STEPS_LEFT)):
        out[_LEFT + i] = row.length - row.step >= STEPS_LEFT[i]
    kind, targets = choose(row, script)
    out[_NEXT + kind] = 1
    if kind == tables.SWEEP:
        _write_set(out, _NEXT_SUBNETS, targets, N_SUBNETS)
    else:
        _write_set(out, _NEXT_HOSTS, targets, N_HOSTS)
    out[_SERVICE] = row.ot_running
    out[_SERVICE + 1] = row.ot_pid_known
    out[_SERVICE + 2] = row.ot_known
    out[_MAIL_SAFE] = row.mail_safe >> 11 & 1
    out[_MAIL_SAFE + 1] = row.mail_safe >> 12 & 1
    if row.red_agent == tables.AGENT_B_LINE:
        out[_COUNTER + row.b_line_counter] = 1
        if row.b_line_foothold:
            out[_FOOTHOLD + row.b_line_foothold - FIRST_FOOTHOLD] = 1
        out[_ATTACKED] = row.b_line_attacked_server
    elif row.red_agent == tables.AGENT_MEANDER:
        _write_meander(row, out)
    for host in range(N_HOSTS):
        _write_host(row, host, out[_HOSTS + host * _HOST_WIDTH : _HOSTS + (host + 1) * _HOST_WIDTH])
    for i in range(len(DECOY_PAIRS)):
        out[_DECOYS + i] = row.decoys[DECOY_PAIRS[i, 0]] >> DECOY_PAIRS[i, 1] & 1
    for i in range(len(EXPLOIT_PAIRS)):
        candidates = tables.CANDIDATES[row.ports[EXPLOIT_PAIRS[i, 0]]]
        out[_EXPLOITS + i] = candidates >> EXPLOIT_PAIRS[i, 1] & 1


@compiled
def _write_set(out: Features, at: int, members: int, size: int) -> None:
    for i in range(size):
        out[at + i] = members >> i & 1


@compiled
def _write_meander(row: Any, out: Features) -> None:
    _write_set(out, _SUBNETS, row.known_subnets, N_SUBNETS)
    _write_set(out, _SUBNETS + N_SUBNETS, row.scanned_subnets, N_SUBNETS)
    _write_set(out, _MEMORIES, row.known_addresses, N_HOSTS)
    _write_set(out, _MEMORIES + N_HOSTS, row.known_names, N_HOSTS)
    _write_set(out, _MEMORIES + 2 * N_HOSTS, row.meander_scanned, N_HOSTS)
    _write_set(out, _MEMORIES + 3 * N_HOSTS, row.meander_exploited, N_HOSTS)
    _write_set(out, _MEMORIES + 4 * N_HOSTS, row.meander_escalated, N_HOSTS)
    _write_set(out, _MEMORIES + 5 * N_HOSTS, row.meander_mapped, N_HOSTS)


@compiled
def _write_host(row: Any, host: int, out: Features) -> None:
    out[_MALWARE] = row.malware >> host & 1
    out[_PRIVILEGED] = row.privileged_sessions[host] > 0
    for i in range(MOST_SESSIONS):
        out[_REMOVABLE + i] = row.removable_sessions[host] > i
        out[_FIXED + i] = row.fixed_sessions[host] > i
    candidates = tables.CANDIDATES[row.ports[host]]
    if candidates:
        exploit = tables.FAVOURITE[candidates]
        answer = tables.ANSWER[host, exploit]
        if answer == tables.NO_SERVICE:
            out[_STOPPED] = row.decoys[host] & tables.STOPPING_DECOYS[exploit] != 0
        elif answer != tables.REFUSES and not (
            exploit == tables.HARAKA_RCE and row.leaderboard and row.mail_safe >> host & 1
        ):
            out[_GIVES + (answer == tables.GIVES_PRIVILEGED)] = 1
