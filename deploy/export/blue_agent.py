"""A Blue agent for CAGE Challenge 2 by Rollout Fleet; needs numpy, and `policy.npz` beside this file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

HOSTS = (
    "Defender", "Enterprise0", "Enterprise1", "Enterprise2", "Op_Host0", "Op_Host1", "Op_Host2",
    "Op_Server0", "User0", "User1", "User2", "User3", "User4",
)  # fmt: skip
DECOYS = ("Apache", "Femitter", "HarakaSMPT", "Smss", "SSHD", "Svchost", "Tomcat", "Vsftpd")
KINDS = ("Analyse", "Remove", *DECOYS, "Restore")
"""Of the challenge's actions 2 to 144: 2 + 13 * kind + host; 0 is Sleep, 1 Monitor."""
ACTIONS = 2 + len(KINDS) * len(HOSTS)

# Decoys that a host's system and services leave room for, and those that help there, most useful first.
SERVER, WORKSTATION = ("Apache", "HarakaSMPT", "Tomcat", "Vsftpd"), ("Apache", "Smss", "Svchost", "Tomcat")
ROOM = {
    **dict.fromkeys(("Defender", "Enterprise0", "Op_Host0", "Op_Host1", "Op_Host2", "Op_Server0"), SERVER),
    **dict.fromkeys(("Enterprise1", "Enterprise2"), ("Femitter",)),
    **dict.fromkeys(("User0", "User1"), WORKSTATION),
    "User2": ("Apache", "Femitter", "SSHD", "Tomcat"),
    "User3": ("SSHD", "Vsftpd"),
    "User4": ("Vsftpd",),
}
LADDERS = {
    "Enterprise0": ("HarakaSMPT", "Tomcat", "Apache"),
    "Enterprise1": ("Femitter",),
    "Enterprise2": ("Femitter",),
    "Op_Server0": ("HarakaSMPT", "Tomcat", "Apache"),
    "Op_Host0": ("HarakaSMPT", "Tomcat", "Apache"),
    "User1": ("Tomcat", "Apache", "Smss", "Svchost"),
    "User2": ("Femitter", "Tomcat", "Apache", "SSHD"),
    "User3": ("SSHD",),
    "User4": ("Vsftpd",),
}
DEFENDED = tuple(LADDERS)
COMPACT_KINDS = ("Analyse", "Remove", "Restore", "Decoy")
COMPACT_ACTIONS = 1 + len(COMPACT_KINDS) * len(DEFENDED)
"""0 is Sleep, then 1 + 9 * kind + place among the defended hosts; Decoy is the next useful one there."""
RECENT, AGES, OWN, OLDEST, SCAN_AGES, REPEATS = 3, 4, 2, 254, 6, 2
NO_ACTION = -1


class BlueAgent:
    """Plays through ChallengeWrapper: `get_action` for each observation, `end_episode` after the last.

    It plays the most probable action, or with `sampled` one drawn as in training, from `seed` on.
    """

    def __init__(self, sampled: bool = False, seed: int = 0) -> None:
        with np.load(Path(__file__).with_name("policy.npz"), allow_pickle=False) as arrays:
            self._arrays = {name: arrays[name] for name in arrays.files}
        self._settings = json.loads(str(self._arrays.pop("settings")))
        self._random = np.random.default_rng(seed) if sampled else None
        self._history, self._last_action = History(), NO_ACTION

    def get_action(self, observation: Any, action_space: Any = ACTIONS) -> int:
        """Return the number of an action, 0 to 144, in answer to ChallengeWrapper's 52 numbers."""
        bits = np.asarray(observation).astype(int).ravel().tolist()
        if len(bits) != 4 * len(HOSTS) or (isinstance(action_space, int) and action_space != ACTIONS):
            raise ValueError(
                "this agent plays CAGE Challenge 2 through ChallengeWrapper(env, agent_name='Blue')"
            )
        if self._last_action != NO_ACTION:
            self._history.update(self._last_action, bits)
        self._last_action = self._chosen(bits)
        return self._last_action

    def end_episode(self) -> None:
        """Forget the episode."""
        self._history, self._last_action = History(), NO_ACTION

    def train(self, results: Any) -> None:
        """Learn nothing."""

    def set_initial_values(self, action_space: Any, observation: Any) -> None:
        """Need nothing."""

    def _chosen(self, bits: list[int]) -> int:
        parts, offered = self._history.parts(bits), self._settings["offered"]
        shown = [value for part in self._settings["parts"] for value in parts[part]]
        logits = self._logits(np.array(shown, np.float32))
        if self._settings["masked"]:
            legal = self._history.legal(self._settings["compact"])
            logits[[not legal[action] for action in offered]] = -np.inf
        if self._random is None:
            action = offered[int(logits.argmax())]
        else:
            chances = np.exp(logits - logits.max(), dtype=float)
            action = offered[int(self._random.choice(len(offered), p=chances / chances.sum()))]
        return self._history.translated(action) if self._settings["compact"] else int(action)

    def _logits(self, values: Any) -> Any:
        arrays, layers = self._arrays, self._settings["hidden_layers"]
        if "normalisation/mean" in arrays:
            values = (values - arrays["normalisation/mean"]) * arrays["normalisation/inverse_std"]
            values = values.clip(-10, 10)
        for layer in range(layers):
            values = values @ arrays[f"hidden/{layer}/weight"] + arrays[f"hidden/{layer}/bias"]
            values = values.clip(0) if self._settings["activation"] == "relu" else np.tanh(values)
        return values @ arrays["logits/weight"] + arrays["logits/bias"]


class History:
    """What Blue has seen and done in an episode, as the policy is shown it."""

    def __init__(self) -> None:
        self._placed: dict[str, set[str]] = {host: set() for host in HOSTS}
        self._known: dict[str, set[str]] = {
            host: set() for host in HOSTS
        }  # those that stood there when Red last scanned
        self._scanned: dict[str, int] = {}  # hosts, each with the steps since its last scan
        self._repeats: dict[str, int] = {}  # scans of a host scanned before, since Blue last treated it
        self._scan_order: list[str] = []  # the last two different ones, latest first
        self._recent: list[tuple[str, int, int]] = []  # host, whether an exploit, steps ago; latest first
        self._own: list[int] = []  # Blue's last actions, compact, latest first
        self._ot_restored = 0

    def update(self, action: int, bits: list[int]) -> None:
        """Take in one step: the action and what it was answered with."""
        self._own = [_compact(action), *self._own][:OWN]
        self._track_decoys(action)
        self._track_treatment(action)
        self._recent = [(host, exploit, min(age + 1, OLDEST)) for host, exploit, age in self._recent]
        self._scanned = {host: age + 1 for host, age in self._scanned.items()}
        for place, host in enumerate(HOSTS):
            active, exploit = bits[4 * place : 4 * place + 2]
            if active:
                self._recent = [(host, exploit, 0), *self._recent][:RECENT]
            if active and not exploit:
                self._repeats[host] = self._repeats.get(host, 0) + (host in self._scanned)
                self._scanned[host] = 0
                self._known[host] = set(self._placed[host])
                if self._scan_order[:1] != [host]:
                    self._scan_order = [host, *self._scan_order][:2]

    def parts(self, bits: list[int]) -> dict[str, list[int]]:
        """Return the parts of the history, all 0 or 1, by name."""
        scans = [int(host in self._scanned) for host in HOSTS]
        for i in range(2):
            scans += [int(self._scan_order[i : i + 1] == [host]) for host in HOSTS]
        decoys = [
            int(decoy in there[host])
            for host, ladder in LADDERS.items()
            for decoy in ladder
            for there in (self._placed, self._known)
        ]
        activities, actions = [], []
        for i in range(RECENT):
            host, exploit, age = self._recent[i] if i < len(self._recent) else ("", 0, -1)
            activities += [int(host == name) for name in HOSTS] + [exploit]
            activities += [int(min(age, AGES - 1) == n) for n in range(AGES)] + [int(age < 0)]
        for i in range(OWN):
            own = self._own[i] if i < len(self._own) else COMPACT_ACTIONS
            actions += [int(own == n) for n in range(COMPACT_ACTIONS + 1)]
        actions.append(self._ot_restored)
        groups = [_scan_age_group(self._scanned.get(host)) for host in HOSTS]
        ages = [int(group == n) for group in groups for n in range(SCAN_AGES)]
        repeats = [int(self._repeats.get(host, 0) > n) for host in DEFENDED for n in range(REPEATS)]
        parts = {"bits": bits, "scans": scans, "decoys": decoys, "activities": activities}
        return {**parts, "actions": actions, "ages": ages, "repeats": repeats}

    def legal(self, compact: bool) -> list[bool]:
        """Return whether each action could change anything, of the compact ones or of all 145."""
        if compact:
            return [True] * (COMPACT_ACTIONS - len(DEFENDED)) + [bool(self._next_decoy(h)) for h in DEFENDED]
        decoys = [self._has_room(host, decoy) for decoy in DECOYS for host in HOSTS]
        return [True] * (2 + 2 * len(HOSTS)) + decoys + [True] * len(HOSTS)

    def translated(self, compact: int) -> int:
        """Return the challenge's number of a compact action; a decoy that is used up becomes Sleep."""
        if not compact:
            return 0
        number, place = divmod(compact - 1, len(DEFENDED))
        host, kind = DEFENDED[place], COMPACT_KINDS[number]
        name = self._next_decoy(host) if kind == "Decoy" else kind
        return 2 + len(HOSTS) * KINDS.index(name) + HOSTS.index(host) if name else 0

    def _track_decoys(self, action: int) -> None:
        if action < 2:
            return
        number, place = divmod(action - 2, len(HOSTS))
        host, kind = HOSTS[place], KINDS[number]
        if kind == "Restore":
            self._placed[host].clear()
            self._ot_restored |= host == "Op_Server0"
        elif kind in DECOYS and self._has_room(host, kind):
            self._placed[host].add(kind)

    def _track_treatment(self, action: int) -> None:
        number, place = divmod(action - 2, len(HOSTS))
        if action >= 2 and KINDS[number] in ("Analyse", "Remove", "Restore"):
            self._repeats.pop(HOSTS[place], None)

    def _has_room(self, host: str, decoy: str) -> bool:
        placed = self._placed[host]
        taken = decoy in placed or (decoy == "Apache" and "Vsftpd" in placed)  # which opens Apache's port
        return decoy in ROOM[host] and not taken

    def _next_decoy(self, host: str) -> str:
        return next((decoy for decoy in LADDERS[host] if self._has_room(host, decoy)), "")


def _scan_age_group(age: int | None) -> int | None:
    """Return the group of the steps since a scan: 0, 1, 2 to 3, 4 to 7, 8 to 15, 16 and more."""
    return None if age is None else min(age.bit_length(), SCAN_AGES - 1)


def _compact(action: int) -> int:
    """Return the nearest compact action: any decoy is the host's next, an undefended host Sleep."""
    if action < 2:
        return 0
    number, place = divmod(action - 2, len(HOSTS))
    host, kind = HOSTS[place], KINDS[number]
    if host not in DEFENDED:
        return 0
    column = COMPACT_KINDS.index("Decoy" if kind in DECOYS else kind)
    return 1 + len(DEFENDED) * column + DEFENDED.index(host)
