"""The view of CAGE-2 that Blue is trained with: a history observation and 37 compact actions.

A view row (uint8, ``VIEW_SIZE``) is a summary of everything Blue has seen and done in an episode. Only the
52 observation bits of each step and Blue's own actions enter it. Whether a decoy succeeded is known from them
too: Blue knows which ports its decoys and the original services occupy and that Restore clears the decoys.
The step number is left out, so that episodes of all lengths look alike.

All kernels are compiled, allocate nothing and are called once a step from the simulator's own loop.
"""

import numpy as np
from numpy.typing import NDArray

from rollout_worker.environments.cage2.compilation import kernel
from rollout_worker.environments.cage2.tables import (
    APACHE,
    BLUE_ACTIONS,
    FEMITTER,
    FITTING_DECOYS,
    HARAKA_DECOY,
    HOSTS,
    N_HOSTS,
    OBSERVATION_SIZE,
    OP_SERVER0,
    SMSS,
    SSHD,
    SVCHOST,
    TOMCAT,
    VSFTPD,
)

Row = NDArray[np.uint8]

# The full action index is 2 + 13 * kind + host; kinds 2 to 9 are the decoys in the order of DECOYS.
SLEEP = 0
ANALYSE, REMOVE, FIRST_DECOY, RESTORE = 0, 1, 2, 10

# Hosts worth defending, and the decoys worth placing there, most useful first: the decoy whose port gives Red
# its favourite exploit, which then fails. User1 and User3 keep a favourite that works, so a decoy only
# dilutes the other exploits; on User4 no decoy has an effect and Vsftpd stands in.
DEFENDED_HOSTS = np.array([1, 2, 3, 7, 4, 9, 10, 11, 12], dtype=np.uint8)
N_DEFENDED = 9
NO_DECOY = 255
DECOY_LADDERS = np.array(
    [
        [HARAKA_DECOY, TOMCAT, APACHE, NO_DECOY],
        [FEMITTER, NO_DECOY, NO_DECOY, NO_DECOY],
        [FEMITTER, NO_DECOY, NO_DECOY, NO_DECOY],
        [HARAKA_DECOY, TOMCAT, APACHE, NO_DECOY],
        [HARAKA_DECOY, TOMCAT, APACHE, NO_DECOY],
        [TOMCAT, APACHE, SMSS, SVCHOST],
        [FEMITTER, TOMCAT, APACHE, SSHD],
        [SSHD, NO_DECOY, NO_DECOY, NO_DECOY],
        [VSFTPD, NO_DECOY, NO_DECOY, NO_DECOY],
    ],
    dtype=np.uint8,
)
N_LADDER_DECOYS = int((DECOY_LADDERS != NO_DECOY).sum())

# Compact actions: Sleep, then Analyse, Remove, Restore and "next useful decoy" on the nine defended hosts.
COMPACT_ACTIONS = 1 + 4 * N_DEFENDED
_ANALYSE, _REMOVE, _RESTORE, _DECOY = 1, 1 + N_DEFENDED, 1 + 2 * N_DEFENDED, 1 + 3 * N_DEFENDED

# The view row: columns 0 to 12 of each per-host block belong to the hosts.
N_RECENT, N_OWN, N_AGES = 3, 2, 4
NONE = 255
_PLACED = 0  # decoys on the host now, a bit set
_KNOWN = _PLACED + N_HOSTS  # decoys that stood there when Red last scanned the host, a bit set
_SCANNED = _KNOWN + N_HOSTS  # 1 once Red scanned the host
_SCAN_ORDER = _SCANNED + N_HOSTS  # the last two different hosts scanned, latest first
_RECENT_HOST = _SCAN_ORDER + 2  # the last three activities, latest first: host,
_RECENT_EXPLOIT = _RECENT_HOST + N_RECENT  # whether it was an exploit,
_RECENT_AGE = _RECENT_EXPLOIT + N_RECENT  # and how many steps ago (saturating)
_OWN = _RECENT_AGE + N_RECENT  # Blue's last two actions, compact, latest first
_OT_RESTORED = _OWN + N_OWN  # 1 after a Restore of Op_Server0: Impact can do no more harm
_SCAN_AGE = _OT_RESTORED + 1  # steps since Red last scanned the host (saturating)
_REPEATS = _SCAN_AGE + N_HOSTS  # scans of a host that Red had scanned before, since Blue last treated it
VIEW_SIZE = _REPEATS + N_HOSTS

# Steps since a scan: 0, 1, 2 to 3, 4 to 7, 8 to 15, 16 and more.
N_SCAN_AGES = 6
# At least one repeated scan, at least two. Meander scans a host once: what looks like another scan of it was
# an exploit, on a decoy or undetected.
N_REPEATS = 2

# An absent activity or action has a feature of its own: else the first step would be all zeros, and the
# policy could learn nothing about it that it does not learn about every step.
_RECENT_WIDTH = N_HOSTS + 1 + N_AGES + 1
_OWN_WIDTH = COMPACT_ACTIONS + 1
HISTORY_SIZE = (
    OBSERVATION_SIZE + 3 * N_HOSTS + 2 * N_LADDER_DECOYS
    + N_RECENT * _RECENT_WIDTH + N_OWN * _OWN_WIDTH + 1 + N_SCAN_AGES * N_HOSTS
    + N_REPEATS * N_DEFENDED
)  # fmt: skip
# Of what `write_view` writes: the history and the legality of compact actions, or also of all actions.
VIEW_WIDTH = HISTORY_SIZE + COMPACT_ACTIONS
WIDE_VIEW_WIDTH = VIEW_WIDTH + BLUE_ACTIONS


def compact_action_name(compact: int) -> str:
    """Name of compact action 0..36, such as ``Restore Op_Server0`` or ``NextDecoy User2``."""
    if not 0 <= compact < COMPACT_ACTIONS:
        raise IndexError(f"compact action {compact} is not in 0..{COMPACT_ACTIONS - 1}")
    if compact == 0:
        return "Sleep"
    kind, place = divmod(compact - 1, N_DEFENDED)
    return f"{('Analyse', 'Remove', 'Restore', 'NextDecoy')[kind]} {HOSTS[DEFENDED_HOSTS[place]]}"


@kernel
def reset_view(view_row: Row) -> None:
    """Make ``view_row`` (VIEW_SIZE) that of an episode's first step."""
    view_row[:] = 0
    view_row[_SCAN_ORDER:_RECENT_EXPLOIT] = NONE
    view_row[_OWN:_OT_RESTORED] = NONE


@kernel
def update_view(view_row: Row, bits_row: Row, blue_action: int) -> None:
    """Take in one step: Blue's full action 0..144 and the 52 bits that it was answered with."""
    view_row[_OWN + 1] = view_row[_OWN]
    view_row[_OWN] = _compact_action(blue_action)
    if blue_action >= 2:
        kind, host = (blue_action - 2) // N_HOSTS, (blue_action - 2) % N_HOSTS
        _track_decoys(view_row, kind, host)
        if kind in (ANALYSE, REMOVE, RESTORE):
            view_row[_REPEATS + host] = 0
    for i in range(N_RECENT):
        view_row[_RECENT_AGE + i] = min(view_row[_RECENT_AGE + i] + 1, 254)
    for host in range(N_HOSTS):
        view_row[_SCAN_AGE + host] = min(view_row[_SCAN_AGE + host] + 1, 254)
        if bits_row[4 * host]:
            _record_activity(view_row, host, bits_row[4 * host + 1])


@kernel
def write_view(view_row: Row, bits_row: Row, out_row: Row) -> None:
    """Write HISTORY_SIZE features (0 or 1), then COMPACT_ACTIONS mask entries (1 = legal), to ``out_row``.

    Where it is WIDE_VIEW_WIDTH, the mask entries of the 145 full actions follow.
    """
    out_row[:] = 0
    out_row[:OBSERVATION_SIZE] = bits_row
    at = OBSERVATION_SIZE
    for host in range(N_HOSTS):
        out_row[at + host] = view_row[_SCANNED + host]
    at += N_HOSTS
    for i in range(2):
        _one_hot(out_row, at, view_row[_SCAN_ORDER + i])
        at += N_HOSTS
    for place in range(N_DEFENDED):
        host = DEFENDED_HOSTS[place]
        for rung in range(DECOY_LADDERS.shape[1]):
            decoy = DECOY_LADDERS[place, rung]
            if decoy != NO_DECOY:
                out_row[at] = view_row[_PLACED + host] >> decoy & 1
                out_row[at + 1] = view_row[_KNOWN + host] >> decoy & 1
                at += 2
    for i in range(N_RECENT):
        if view_row[_RECENT_HOST + i] != NONE:
            out_row[at + view_row[_RECENT_HOST + i]] = 1
            out_row[at + N_HOSTS] = view_row[_RECENT_EXPLOIT + i]
            out_row[at + N_HOSTS + 1 + min(view_row[_RECENT_AGE + i], N_AGES - 1)] = 1
        else:
            out_row[at + _RECENT_WIDTH - 1] = 1
        at += _RECENT_WIDTH
    for i in range(N_OWN):
        out_row[at + min(view_row[_OWN + i], COMPACT_ACTIONS)] = 1
        at += _OWN_WIDTH
    out_row[at] = view_row[_OT_RESTORED]
    at += 1
    for host in range(N_HOSTS):
        if view_row[_SCANNED + host]:
            out_row[at + _scan_age_group(view_row[_SCAN_AGE + host])] = 1
        at += N_SCAN_AGES
    for place in range(N_DEFENDED):
        for i in range(N_REPEATS):
            out_row[at + i] = view_row[_REPEATS + DEFENDED_HOSTS[place]] > i
        at += N_REPEATS
    out_row[at : at + _DECOY] = 1
    for place in range(N_DEFENDED):
        out_row[at + _DECOY + place] = _next_decoy(view_row, place) != NO_DECOY
    if out_row.shape[0] == WIDE_VIEW_WIDTH:
        out_row[VIEW_WIDTH:] = 1
        for decoy in range(RESTORE - FIRST_DECOY):
            at = VIEW_WIDTH + 2 + N_HOSTS * (FIRST_DECOY + decoy)
            for host in range(N_HOSTS):
                out_row[at + host] = _has_room(view_row[_PLACED + host], host, decoy)


@kernel
def translate_action(view_row: Row, compact: int) -> int:
    """Full action index of a compact action; a decoy that is used up becomes Sleep."""
    if compact == 0:
        return SLEEP
    kind, place = (compact - 1) // N_DEFENDED, (compact - 1) % N_DEFENDED
    host = int(DEFENDED_HOSTS[place])
    if kind == 0:
        return 2 + N_HOSTS * ANALYSE + host
    if kind == 1:
        return 2 + N_HOSTS * REMOVE + host
    if kind == 2:
        return 2 + N_HOSTS * RESTORE + host
    decoy = _next_decoy(view_row, place)
    return SLEEP if decoy == NO_DECOY else 2 + N_HOSTS * (FIRST_DECOY + decoy) + host


@kernel
def _compact_action(blue_action: int) -> int:
    """Nearest compact action: any decoy counts as the host's next, an undefended host as Sleep."""
    if blue_action < 2:
        return 0
    kind, host = (blue_action - 2) // N_HOSTS, (blue_action - 2) % N_HOSTS
    for place in range(N_DEFENDED):
        if DEFENDED_HOSTS[place] == host:
            if kind == ANALYSE:
                return _ANALYSE + place
            if kind == REMOVE:
                return _REMOVE + place
            return (_RESTORE if kind == RESTORE else _DECOY) + place
    return 0


@kernel
def _track_decoys(view_row: Row, kind: int, host: int) -> None:
    if kind == RESTORE:
        view_row[_PLACED + host] = 0
        if host == OP_SERVER0:
            view_row[_OT_RESTORED] = 1
    elif FIRST_DECOY <= kind < RESTORE and _has_room(view_row[_PLACED + host], host, kind - FIRST_DECOY):
        view_row[_PLACED + host] |= 1 << (kind - FIRST_DECOY)


@kernel
def _has_room(placed: int, host: int, decoy: int) -> bool:
    """Whether the decoy would change anything: its port is free of services and of decoys in ``placed``."""
    taken = placed >> decoy & 1 or (decoy == APACHE and placed >> VSFTPD & 1)  # Vsftpd opens Apache's port 80
    return FITTING_DECOYS[host] >> decoy & 1 == 1 and taken == 0


@kernel
def _next_decoy(view_row: Row, place: int) -> int:
    host = DEFENDED_HOSTS[place]
    for rung in range(DECOY_LADDERS.shape[1]):
        decoy = int(DECOY_LADDERS[place, rung])
        if decoy != NO_DECOY and _has_room(view_row[_PLACED + host], host, decoy):
            return decoy
    return NO_DECOY


@kernel
def _scan_age_group(age: int) -> int:
    group = 0
    while group < N_SCAN_AGES - 1 and age >= 1 << group:
        group += 1
    return group


@kernel
def _record_activity(view_row: Row, host: int, exploit: int) -> None:
    for i in range(N_RECENT - 1, 0, -1):
        view_row[_RECENT_HOST + i] = view_row[_RECENT_HOST + i - 1]
        view_row[_RECENT_EXPLOIT + i] = view_row[_RECENT_EXPLOIT + i - 1]
        view_row[_RECENT_AGE + i] = view_row[_RECENT_AGE + i - 1]
    view_row[_RECENT_HOST], view_row[_RECENT_EXPLOIT], view_row[_RECENT_AGE] = host, exploit, 0
    if not exploit:
        if view_row[_SCANNED + host]:
            view_row[_REPEATS + host] = min(view_row[_REPEATS + host] + 1, N_REPEATS)
        view_row[_SCANNED + host] = 1
        view_row[_SCAN_AGE + host] = 0
        view_row[_KNOWN + host] = view_row[_PLACED + host]
        if view_row[_SCAN_ORDER] != host:
            view_row[_SCAN_ORDER + 1] = view_row[_SCAN_ORDER]
            view_row[_SCAN_ORDER] = host


@kernel
def _one_hot(out_row: Row, at: int, index: int) -> None:
    if index != NONE:
        out_row[at + index] = 1
