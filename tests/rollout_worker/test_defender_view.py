"""The compiled view against a slow one that looks through the whole history of the episode at every step."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_worker.environments.cage2 import defender_view as view
from rollout_worker.environments.cage2.tables import DECOYS, HOSTS

PORT_CHECKED = {
    "Apache": 80, "Femitter": 21, "HarakaSMPT": 25, "Smss": 139, "SSHD": 22, "Svchost": 3389, "Tomcat": 443,
    "Vsftpd": 21,
}  # fmt: skip
PORT_OPENED = PORT_CHECKED | {"Vsftpd": 80}
SERVICES = {
    "Defender": {22, 53, 68}, "Enterprise0": {22}, "Enterprise1": {22, 135, 3389, 445, 139, 80, 443},
    "Enterprise2": {22, 135, 3389, 445, 139, 80, 443}, "Op_Host0": {22}, "Op_Host1": {22}, "Op_Host2": {22},
    "Op_Server0": {22}, "User0": {22, 21}, "User1": {22, 21}, "User2": {445, 139, 135, 3389},
    "User3": {80, 3389, 443, 25}, "User4": {22, 80, 3390, 443, 25},
}  # fmt: skip
WINDOWS = {"Enterprise1", "Enterprise2", "User0", "User1", "User2"}
LINUX_SERVER_LADDER = ("HarakaSMPT", "Tomcat", "Apache")
LADDERS: dict[str, tuple[str, ...]] = {
    "Enterprise0": LINUX_SERVER_LADDER,
    "Enterprise1": ("Femitter",),
    "Enterprise2": ("Femitter",),
    "Op_Server0": LINUX_SERVER_LADDER,
    "Op_Host0": LINUX_SERVER_LADDER,
    "User1": ("Tomcat", "Apache", "Smss", "Svchost"),
    "User2": ("Femitter", "Tomcat", "Apache", "SSHD"),
    "User3": ("SSHD",),
    "User4": ("Vsftpd",),
}
DEFENDED = list(LADDERS)
KINDS = ["Analyse", "Remove", *DECOYS, "Restore"]

History = list[tuple[int, list[int]]]


def parse(action: int) -> tuple[str, str]:
    return ("Sleep", "") if action < 2 else (KINDS[(action - 2) // 13], HOSTS[(action - 2) % 13])


def placed_decoys(history: History, host: str) -> set[str]:
    placed: set[str] = set()
    for action, _ in history:
        kind, target = parse(action)
        if target == host and kind == "Restore":
            placed = set()
        elif target == host and kind in PORT_CHECKED and has_room(host, kind, placed):
            placed.add(kind)
    return placed


def has_room(host: str, decoy: str, placed: set[str]) -> bool:
    system_fits = {"Femitter": True, "Smss": True, "Svchost": True, "HarakaSMPT": False, "Vsftpd": False}
    open_ports = SERVICES[host] | {PORT_OPENED[other] for other in placed}
    fits = system_fits.get(decoy, host in WINDOWS) == (host in WINDOWS)
    return fits and PORT_CHECKED[decoy] not in open_ports


def next_decoy(history: History, host: str) -> str | None:
    placed = placed_decoys(history, host)
    free = (decoy for decoy in LADDERS[host] if decoy not in placed and has_room(host, decoy, placed))
    return next(free, None)


def one_hot(size: int, index: int | None) -> list[int]:
    return [int(i == index) for i in range(size)]


def compact(action: int) -> int:
    kind, host = parse(action)
    if host not in DEFENDED:
        return 0
    block = {"Analyse": 0, "Remove": 1, "Restore": 2}.get(kind, 3)
    return 1 + 9 * block + DEFENDED.index(host)


AGE_GROUPS = (range(1), range(1, 2), range(2, 4), range(4, 8), range(8, 16), range(16, 1000))


def reference_view(history: History) -> list[int]:
    activities = [
        (step, host, bits[4 * host + 1])
        for step, (_, bits) in enumerate(history)
        for host in range(13)
        if bits[4 * host]
    ]
    scans = [(step, host) for step, host, exploit in activities if not exploit]
    last_scan = {host: step for step, host in scans}
    features = list(history[-1][1]) if history else [0] * 52
    features += [int(host in last_scan) for host in range(13)]
    order = [host for _, host in scans]
    changes = [b for a, b in pairwise([None, *order]) if a != b]
    for back in (1, 2):
        features += one_hot(13, changes[-back] if len(changes) >= back else None)
    for host in DEFENDED:
        index = HOSTS.index(host)
        now = placed_decoys(history, host)
        known = placed_decoys(history[: last_scan[index] + 1], host) if index in last_scan else set()
        for decoy in LADDERS[host]:
            features += [int(decoy in now), int(decoy in known)]
    for back in (1, 2, 3):
        if len(activities) >= back:
            step, index, exploit = activities[-back]
            age = min(len(history) - 1 - step, 3)
            features += [*one_hot(13, index), exploit, *one_hot(4, age), 0]
        else:
            features += [0] * 18 + [1]
    for back in (1, 2):
        features += one_hot(38, compact(history[-back][0]) if len(history) >= back else 37)
    features.append(int(any(parse(action) == ("Restore", "Op_Server0") for action, _ in history)))
    for index in range(13):
        since = len(history) - 1 - last_scan.get(index, len(history))  # -1 without a scan
        features += [int(since in group) for group in AGE_GROUPS]
    for host in DEFENDED:
        steps = [step for step, index in scans if HOSTS[index] == host]
        treatments = [(kind, host) for kind in ("Analyse", "Remove", "Restore")]
        treated = [step for step, (action, _) in enumerate(history) if parse(action) in treatments]
        repeats = sum(step >= max(treated, default=0) for step in steps[1:])
        features += [int(repeats >= 1), int(repeats >= 2)]
    return features + [1] * 28 + [int(next_decoy(history, host) is not None) for host in DEFENDED]


def observation_bits() -> st.SearchStrategy[list[int]]:
    """Mostly quiet, as in an episode: each of a few hosts has an activity and a mark."""
    marks = st.tuples(st.integers(0, 12), st.sampled_from([(1, 0), (1, 1), (0, 0)]), st.integers(0, 3))

    def expand(entries: list[tuple[int, tuple[int, int], int]]) -> list[int]:
        bits = [0] * 52
        for host, activity, mark in entries:
            bits[4 * host : 4 * host + 4] = [*activity, mark & 1, mark >> 1]
        return bits

    return st.lists(marks, max_size=3).map(expand)


actions = st.one_of(
    st.integers(0, 144),
    # Dwell on few hosts, so that decoys meet each other and Restore.
    st.builds(
        lambda kind, host: 2 + 13 * kind + host,
        st.sampled_from([*range(2, 10), 10]),
        st.sampled_from([1, 7, 10, 12]),
    ),
)


@settings(max_examples=200)
@given(st.lists(st.tuples(actions, observation_bits()), max_size=30))
def test_view_matches_whole_history(history: History) -> None:
    row = np.full(view.VIEW_SIZE, 77, np.uint8)
    out = np.empty(view.HISTORY_SIZE + view.COMPACT_ACTIONS, np.uint8)
    view.reset_view(row)
    for seen in range(len(history) + 1):
        bits = np.array(history[seen - 1][1] if seen else [0] * 52, np.uint8)
        if seen:
            view.update_view(row, bits, history[seen - 1][0])
        out[:] = 99
        view.write_view(row, bits, out)
        np.testing.assert_array_equal(out, reference_view(history[:seen]))


@settings(max_examples=100)
@given(st.lists(actions, max_size=30))
def test_actions_are_translated_by_name(taken: list[int]) -> None:
    row = np.empty(view.VIEW_SIZE, np.uint8)
    view.reset_view(row)
    for action in taken:
        view.update_view(row, np.zeros(52, np.uint8), action)
    history = [(action, [0] * 52) for action in taken]
    for index in range(view.COMPACT_ACTIONS):
        kind, _, host = view.compact_action_name(index).partition(" ")
        expected = next_decoy(history, host) if kind == "NextDecoy" else kind
        full = view.translate_action(row, index)
        assert parse(full) == (("Sleep", "") if expected in (None, "Sleep") else (expected, host))


def test_decoys_run_out_until_restored() -> None:
    row = np.empty(view.VIEW_SIZE, np.uint8)
    out = np.empty(view.HISTORY_SIZE + view.COMPACT_ACTIONS, np.uint8)
    quiet = np.zeros(52, np.uint8)
    view.reset_view(row)
    decoy = next(i for i in range(37) if view.compact_action_name(i) == "NextDecoy Op_Server0")
    restore = next(i for i in range(37) if view.compact_action_name(i) == "Restore Op_Server0")
    for legal, name in ((1, "HarakaSMPT"), (1, "Tomcat"), (1, "Apache"), (0, "Sleep")):
        view.write_view(row, quiet, out)
        assert out[view.HISTORY_SIZE + decoy] == legal
        action = view.translate_action(row, decoy)
        assert parse(action)[0] == name
        view.update_view(row, quiet, action)
    view.update_view(row, quiet, view.translate_action(row, restore))
    view.write_view(row, quiet, out)
    assert out[view.HISTORY_SIZE + decoy] == 1


def test_names_are_distinct_and_bounded() -> None:
    assert len({view.compact_action_name(i) for i in range(view.COMPACT_ACTIONS)}) == view.COMPACT_ACTIONS
    with pytest.raises(IndexError, match="37"):
        view.compact_action_name(view.COMPACT_ACTIONS)
