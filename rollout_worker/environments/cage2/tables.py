"""Scenario2 of CAGE Challenge 2 as tables: hosts, services, decoys, exploits, actions.

The facts stand in tuples as a reader would write them down; everything the compiled kernel looks up is
derived from them. Sets of hosts, ports, decoys and exploits are bit masks (bit = index in its tuple).
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

HOSTS: Final = (
    "Defender", "Enterprise0", "Enterprise1", "Enterprise2", "Op_Host0", "Op_Host1", "Op_Host2",
    "Op_Server0", "User0", "User1", "User2", "User3", "User4",
)  # fmt: skip
SUBNETS: Final = ("Enterprise", "Operational", "User")
N_HOSTS, N_SUBNETS = len(HOSTS), len(SUBNETS)
PORTS: Final = (21, 22, 25, 53, 68, 80, 135, 139, 443, 445, 3389, 3390)
DECOYS: Final = ("Apache", "Femitter", "HarakaSMPT", "Smss", "SSHD", "Svchost", "Tomcat", "Vsftpd")
EXPLOITS: Final = (
    "EternalBlue", "BlueKeep", "HTTPRFI", "HTTPSRFI", "SSHBruteForce", "SQLInjection", "HarakaRCE",
    "FTPDirectoryTraversal",
)  # fmt: skip
RED_KINDS: Final = (
    "Sleep", "DiscoverRemoteSystems", "DiscoverNetworkServices", "ExploitRemoteService",
    "PrivilegeEscalate", "Impact",
)  # fmt: skip
BLUE_KINDS: Final = ("Sleep", "Monitor", "Analyse", "Remove", *(f"Decoy{name}" for name in DECOYS), "Restore")
RED_AGENTS: Final = ("sleep", "b_line", "meander", "scripted")
RULES: Final = ("current", "leaderboard")

SLEEP, SWEEP, SCAN, EXPLOIT, ESCALATE, IMPACT = range(len(RED_KINDS))
AGENT_SLEEP, AGENT_B_LINE, AGENT_MEANDER, AGENT_SCRIPTED = range(len(RED_AGENTS))
BLUE_SLEEP, BLUE_MONITOR, ANALYSE, REMOVE, FIRST_DECOY = range(5)
RESTORE: Final = FIRST_DECOY + len(DECOYS)
APACHE, FEMITTER, HARAKA_DECOY, SMSS, SSHD, SVCHOST, TOMCAT, VSFTPD = range(len(DECOYS))
SSH_BRUTE_FORCE: Final = EXPLOITS.index("SSHBruteForce")
HARAKA_RCE: Final = EXPLOITS.index("HarakaRCE")
ENTERPRISE0, ENTERPRISE1, ENTERPRISE2 = 1, 2, 3
OP_SERVER0, USER0 = 7, 8

FALSE, TRUE, UNKNOWN = 0, 1, 2  # success of an action

WINDOWS: Final = {"Enterprise1", "Enterprise2", "User0", "User1", "User2"}
# (port, type that exploits look for, whether a session through it is privileged)
_SSH = (22, "ssh", False)
_WEB = ((80, "web", False), (443, "web", False))
_SERVER = (_SSH, (135, "", False), (3389, "rdp", True), (445, "", False), (139, "", False), *_WEB)
_FEMITTER_USER = (_SSH, (21, "femitter", True))
SERVICES: Final = {
    "Defender": (_SSH, (53, "", False), (68, "", False)),
    **dict.fromkeys(("Enterprise0", "Op_Host0", "Op_Host1", "Op_Host2", "Op_Server0"), (_SSH,)),
    **dict.fromkeys(("Enterprise1", "Enterprise2"), _SERVER),
    **dict.fromkeys(("User0", "User1"), _FEMITTER_USER),
    "User2": ((445, "smb", True), (139, "smb", True), (135, "", False), (3389, "rdp", False)),
    "User3": (*_WEB, (3389, "mysql", True), (25, "smtp", True)),
    "User4": (_SSH, *_WEB, (3390, "mysql", True), (25, "smtp", True)),
}
# per decoy: operating system, port that must be free, port that it opens
_DECOY_RULES = (
    ("any", 80, 80), ("Windows", 21, 21), ("Linux", 25, 25), ("Windows", 139, 139),
    ("any", 22, 22), ("Windows", 3389, 3389), ("any", 443, 443), ("Linux", 21, 80),
)  # fmt: skip
# per exploit: service type, port, weight
_EXPLOIT_RULES = (
    ("smb", 139, 2.0), ("rdp", 3389, 1.0), ("web", 80, 3.0), ("web", 443, 4.0),
    ("ssh", 22, 0.1), ("mysql", 3390, 5.0), ("smtp", 25, 6.0), ("femitter", 21, 7.0),
)  # fmt: skip


def mask_of(indices: Iterable[int]) -> int:
    """Return the bit mask of a set of indices."""
    return sum(1 << index for index in set(indices))


def port_mask(*ports: int) -> int:
    """Return the bit mask of a set of port numbers."""
    return mask_of(PORTS.index(port) for port in ports)


EPHEMERAL: Final = 1 << len(PORTS)  # a port number different from every service port
ENTERPRISE_HOSTS: Final = mask_of((ENTERPRISE0, ENTERPRISE1, ENTERPRISE2))
OPERATIONAL_HOSTS: Final = mask_of(range(4, 8))
USER_HOSTS: Final = mask_of(range(8, 13))
GREEN_HOSTS: Final = USER_HOSTS | ENTERPRISE_HOSTS
MAIL_HOSTS: Final = mask_of((11, 12))

SUBNET_OF: NDArray[np.int64] = np.array([0] * 4 + [1] * 4 + [2] * 5)
HOSTS_OF: NDArray[np.int64] = np.array([ENTERPRISE_HOSTS | 1, OPERATIONAL_HOSTS, USER_HOSTS])
# What PrivilegeEscalate reveals beside the host itself (mask of hosts).
LINKED: NDArray[np.int64] = np.zeros(13, np.int64)
LINKED[[9, 10]] = 1 << ENTERPRISE1
LINKED[[11, 12]] = 1 << ENTERPRISE0
LINKED[ENTERPRISE2] = 1 << OP_SERVER0

ORIGINAL_PORTS: NDArray[np.int16] = np.array(
    [port_mask(*(port for port, _, _ in SERVICES[host])) for host in HOSTS], np.int16
)
PORTS_OF_DECOYS: NDArray[np.int16] = np.array(
    [
        port_mask(*(opened for d, (_, _, opened) in enumerate(_DECOY_RULES) if decoys >> d & 1))
        for decoys in range(256)
    ],
    np.int16,
)


def _decoy_fits(host: str, system: str, checked: int) -> bool:
    own = "Windows" if host in WINDOWS else "Linux"
    return system in ("any", own) and checked not in {port for port, _, _ in SERVICES[host]}


# Decoys that the host's system and original services allow, and decoys that keep each decoy away.
FITTING_DECOYS: NDArray[np.int16] = np.array(
    [mask_of(d for d, rule in enumerate(_DECOY_RULES) if _decoy_fits(host, *rule[:2])) for host in HOSTS],
    np.int16,
)
BLOCKING_DECOYS: NDArray[np.int16] = np.array(
    [
        mask_of(other for other, rule in enumerate(_DECOY_RULES) if rule[2] == checked)
        for _, checked, _ in _DECOY_RULES
    ],
    np.int16,
)
BLOCKING_DECOYS[VSFTPD] = 0  # it checks 21 and opens 80; the other decoy on 21 never shares its system

EXPLOIT_PORT: NDArray[np.int16] = np.array([port_mask(port) for _, port, _ in _EXPLOIT_RULES], np.int16)
# Decoys that open the port of each exploit with the type that it looks for.
STOPPING_DECOYS: NDArray[np.int16] = np.array(
    [
        1 << SMSS, 1 << SVCHOST, 1 << APACHE | 1 << VSFTPD, 1 << TOMCAT,
        1 << SSHD, 0, 1 << HARAKA_DECOY, 1 << FEMITTER,
    ],
    np.int16,
)  # fmt: skip
NO_SERVICE, GIVES_USER, GIVES_PRIVILEGED, REFUSES = range(4)


def _answer(host: str, exploit: int) -> int:
    """Tell what an original service does to an exploit."""
    wanted, wanted_port, _ = _EXPLOIT_RULES[exploit]
    for port, kind, privileged in SERVICES[host]:
        if (port, kind) == (wanted_port, wanted):
            if exploit == SSH_BRUTE_FORCE and host == "Defender":
                return REFUSES
            return GIVES_PRIVILEGED if privileged else GIVES_USER
    return NO_SERVICE


ANSWER: NDArray[np.int16] = np.array([[_answer(host, e) for e in range(8)] for host in HOSTS], np.int16)


def _candidates(ports: int) -> int:
    found = mask_of(e for e in range(8) if ports & int(EXPLOIT_PORT[e]))
    sql = 1 << EXPLOITS.index("SQLInjection")
    return found if ports & port_mask(80, 443) else found & ~sql


CANDIDATES: NDArray[np.int16] = np.array([_candidates(ports) for ports in range(1 << 12)], np.int16)
_BY_WEIGHT: Final = sorted(range(8), key=lambda e: -_EXPLOIT_RULES[e][2])
FAVOURITE: NDArray[np.int16] = np.array(
    [next((e for e in _BY_WEIGHT if candidates >> e & 1), 0) for candidates in range(256)], np.int16
)

VALUE_TENTHS: NDArray[np.int64] = np.array([1, 10, 10, 10, 1, 1, 1, 10, 0, 1, 1, 1, 1])
ONE_TENTH_HOSTS: Final = mask_of(int(h) for h in np.flatnonzero(VALUE_TENTHS == 1))
ONE_POINT_HOSTS: Final = mask_of(int(h) for h in np.flatnonzero(VALUE_TENTHS == 10))
OT_DOWN_TENTHS: Final = 100
RESTORE_TENTHS: Final = 10

BLUE_ACTIONS: Final = 2 + 11 * len(HOSTS)
BLUE_KIND: NDArray[np.int16] = np.array([0, 1, *(2 + k // 13 for k in range(143))], np.int16)
BLUE_HOST: NDArray[np.int16] = np.array([0, 0, *(k % 13 for k in range(143))], np.int16)
OBSERVATION_SIZE: Final = 4 * len(HOSTS)

# B_lineAgent: where a failure sends the counter, and the action of each counter value.
B_LINE_JUMP: NDArray[np.int16] = np.array([0, 1, 2, 2, 2, 2, 5, 5, 5, 5, 9, 9, 9, 12, 13], np.int16)
B_LINE_KIND: NDArray[np.int16] = np.array([1, 2, 3, 4, 2, 3, 4, 1, 2, 3, 4, 2, 3, 4, 5], np.int16)
_FOOTHOLD, _LINKED = -1, -2  # the user host drawn at counter 1, the enterprise host linked to it
_B_LINE_TARGET = (2, _FOOTHOLD, _FOOTHOLD, _FOOTHOLD, _LINKED, _LINKED, _LINKED, 0, 3, 3, 3, 7, 7, 7, 7)


def _b_line_target(entry: int, foothold: int) -> int:
    if entry == _FOOTHOLD:
        return foothold
    return (ENTERPRISE1 if foothold in (9, 10) else ENTERPRISE0) if entry == _LINKED else entry


B_LINE_TARGET: NDArray[np.int16] = np.array(
    [[_b_line_target(entry, foothold) for foothold in range(13)] for entry in _B_LINE_TARGET], np.int16
)
B_LINE_FOOTHOLDS: Final = mask_of(range(9, 13))
