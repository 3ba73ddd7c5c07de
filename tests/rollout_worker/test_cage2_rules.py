"""Rules that the recorded traces never exercise, and those of the observation, by hand-written steps."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from rollout_worker.environments.cage2 import kernels, tables
from rollout_worker.environments.cage2.conformance import check_trace
from rollout_worker.environments.cage2.state import OUTCOME, ROW, full_state, initial_row

SLEEP, SWEEP, SCAN, EXPLOIT, ESCALATE, IMPACT = range(6)
ENTERPRISE, OPERATIONAL, USER = range(3)
ETERNAL, BLUEKEEP, HTTP, HTTPS, SSH, SQL, HARAKA, FTP = range(8)
HOST = {name: index for index, name in enumerate(tables.HOSTS)}


def blue(kind: str, host: str) -> int:
    return 2 + 13 * (tables.BLUE_KINDS.index(kind) - 2) + HOST[host]


class Step(NamedTuple):
    """One step of a script: Blue's action and what Red does, with the outcomes of its draws."""

    blue: int = 0
    kind: int = SLEEP
    target: int = -1
    exploit: int = -1
    detected: int = -1
    pick: int = -1
    pick_removable: int = -1
    green: int = -1


def scan(host: str, action: int = 0, green: int = -1) -> Step:
    return Step(action, SCAN, HOST[host], green=green)


def exploit(host: str, which: int, detected: int = -1, action: int = 0, green: int = -1) -> Step:
    return Step(action, EXPLOIT, HOST[host], which, detected, green=green)


def escalate(host: str, pick: int = -1, removable: int = -1, action: int = 0) -> Step:
    return Step(action, ESCALATE, HOST[host], pick=pick, pick_removable=removable)


class Played:
    """A scripted episode; `record` holds what a trace file of it would hold."""

    def __init__(self, steps: list[Step], rules: str = "current") -> None:
        self.rows = np.zeros(1, ROW)
        settings = np.array([[tables.AGENT_SCRIPTED, 1, rules == "leaderboard", 1, 1000]])
        slots = np.zeros(1, np.int64)
        kernels.reset_rows(self.rows, initial_row(), slots, np.zeros(1, np.uint64), settings)
        states: list[dict[str, NDArray[Any]]] = []
        for step in steps:
            script = np.zeros(1, OUTCOME)
            fields = (int(step.green >= 0), step.green, *step[1:7])
            for name, value in zip(OUTCOME.names or (), fields, strict=True):
                script[name] = value
            obs, reward = np.zeros((1, 52), np.uint8), np.zeros(1, np.float32)
            over, actions = np.zeros(1, np.bool_), np.array([step.blue])
            assert kernels.step_rows(self.rows, script, slots, actions, obs, reward, over) == kernels.VALID
            assert self.rows["fault"][0] == -1, f"{step} is not possible: {self.rows['fault_allowed'][0]:b}"
            drawn = {"green_kind": script["green_kind"], "green_target": script["green_target"]}
            state = full_state(self.rows) | drawn | {"obs": obs, "reward": reward, "blue_action": actions}
            states.append({name: array.copy() for name, array in state.items()})
        self.record = {name: np.stack([s[name] for s in states], 1) for name in states[0]}
        self.record |= {
            "done": np.zeros((1, len(steps)), np.uint8),
            "initial_obs": np.zeros((1, 52), np.uint8),
        }
        self.record["rules"] = np.array(rules == "leaderboard", np.uint8)

    def at(self, field: str, host: str | None = None, step: int = -1) -> float:
        values = self.record[field][0, step]
        return float(values if host is None else values[HOST[host]])

    def shown(self, host: str, step: int = -1) -> tuple[str, str]:
        """Activity and belief about a host after a step."""
        a, b, c, d = self.record["obs"][0, step, 4 * HOST[host] : 4 * HOST[host] + 4]
        return {0: "None", 1: "Scan", 3: "Exploit"}[a + 2 * b], ("No", "Unknown", "User", "Privileged")[
            c + 2 * d
        ]


TWO_SESSIONS = [scan("User4"), exploit("User4", HTTP, 1), exploit("User4", SSH)]


@pytest.mark.parametrize(("pick", "removable", "left"), [(0, 1, 0), (1, 0, 1)])
def test_escalation_picks_among_user_sessions_in_their_order(pick: int, removable: int, left: int) -> None:
    played = Played([*TWO_SESSIONS, escalate("User4", pick, removable)])
    assert played.at("red_sessions", "User4") == 2
    assert played.at("red_privileged_sessions", "User4") == 1
    assert played.at("red_removable_sessions", "User4") == left
    again = Played([*TWO_SESSIONS, escalate("User4", pick, removable), escalate("User4")])
    assert again.at("red_privileged_sessions", "User4") == 1  # the second escalation changes nothing


def test_remove_shifts_the_positions_of_the_sessions_that_stay() -> None:
    remove = blue("Remove", "User4")
    steps = [*TWO_SESSIONS, exploit("User4", HTTPS, 1), Step(remove), exploit("User4", HTTP, 1)]
    played = Played([*steps, escalate("User4", 1, 1)])  # position 0 is the SSH session, 1 the new one
    assert (played.at("red_sessions", "User4"), played.at("red_removable_sessions", "User4")) == (2, 0)


def test_a_script_of_several_user_sessions_passes_the_check_and_a_wrong_class_is_found(
    tmp_path: Path,
) -> None:
    record: dict[str, Any] = Played([*TWO_SESSIONS, escalate("User4", 1, 0), escalate("User4")]).record
    path = tmp_path / "script.npz"
    np.savez(path, **record)
    report = check_trace(path)
    assert (report.red_agents, report.mismatch) == (("scripted",), None)
    for field, wrong in (("escalate_pick_removable", 1), ("escalate_pick", 2)):
        damaged: dict[str, Any] = {name: array.copy() for name, array in record.items()}
        damaged[field][0, 3] = wrong
        np.savez(path, **damaged)
        mismatch = check_trace(path, red_agent="scripted").mismatch
        assert mismatch is not None
        assert (mismatch.step, mismatch.field) == (3, field)


OPERATIONAL_FOOTHOLD = [
    scan("Enterprise1"), exploit("Enterprise1", SSH), scan("Op_Server0"), exploit("Op_Server0", SSH),
]  # fmt: skip
STOP = Step(0, IMPACT, HOST["Op_Server0"])


def test_user_level_sessions_open_the_operational_subnet_and_impact_needs_knowledge_not_privilege() -> None:
    played = Played([*OPERATIONAL_FOOTHOLD, STOP])
    assert played.at("red_access", "Op_Server0") == 1
    assert (played.at("red_success"), played.at("ot_running")) == (0, 1)  # ot_known is false
    lost = blue("Restore", "Enterprise1")
    played = Played([*OPERATIONAL_FOOTHOLD, escalate("Op_Server0", 0, 0, lost), STOP])
    assert (played.at("red_success"), played.at("ot_running"), played.at("reward")) == (1, 0, -11)
    served = Step(
        blue("Restore", "Op_Server0"), SCAN, HOST["Op_Server0"]
    )  # loses the process and the session
    later = [served, exploit("Enterprise1", SSH), exploit("Op_Server0", SSH), STOP]
    played = Played([*OPERATIONAL_FOOTHOLD, escalate("Op_Server0", 0, 0), STOP, *later])
    assert played.at("red_access", "Op_Server0") == 1
    assert (played.at("red_success"), played.at("ot_running"), played.at("reward")) == (1, 1, 0)


def test_an_unreachable_scan_is_a_success_without_data_and_sweep_and_exploit_fail() -> None:
    assert Played([scan("Op_Server0")]).at("red_success") == 1
    assert Played([scan("Op_Server0")]).at("scanned", "Op_Server0") == 0
    assert Played([Step(0, SWEEP, OPERATIONAL)]).at("red_success") == 0
    restore = blue("Restore", "Enterprise1")
    played = Played([*OPERATIONAL_FOOTHOLD, exploit("Op_Server0", SSH, action=restore)])
    assert (played.at("red_success"), played.at("red_sessions", "Op_Server0")) == (0, 1)
    assert played.shown("Op_Server0") == ("None", "User")


def test_remembered_ports_are_replaced_now_and_added_up_on_the_leaderboard() -> None:
    femitter, restore = blue("DecoyFemitter", "Enterprise1"), blue("Restore", "Enterprise1")
    steps = [scan("Enterprise1", femitter), scan("Enterprise1", restore)]
    ftp = tables.port_mask(21)
    assert int(Played(steps).at("red_port_memory", "Enterprise1")) & ftp == 0
    played = Played([*steps, exploit("Enterprise1", FTP)], "leaderboard")
    assert int(played.at("red_port_memory", "Enterprise1")) & ftp
    assert (played.at("red_success"), played.shown("Enterprise1")) == (0, ("None", "No"))


def test_restore_makes_mail_safe_on_the_leaderboard_only() -> None:
    steps = [scan("User3", blue("Restore", "User3")), exploit("User3", HARAKA, -1)]
    played = Played(steps, "leaderboard")
    assert (played.at("red_success"), played.shown("User3")) == (0, ("Scan", "No"))
    assert played.at("malware_files", "User3") == 0
    hidden = Played([steps[0], exploit("User3", HARAKA, -1, blue("DecoySSHD", "User3"))], "leaderboard")
    assert hidden.shown("User3") == ("None", "No")
    assert Played([steps[0], exploit("User3", HARAKA, 1)]).at("red_success") == 1


DECOY_OUTCOMES = {
    "DecoyApache": "Defender Enterprise0 Op_Host0 Op_Host1 Op_Host2 Op_Server0 User0 User1 User2",
    "DecoyFemitter": "Enterprise1 Enterprise2 User2",
    "DecoyHarakaSMPT": "Defender Enterprise0 Op_Host0 Op_Host1 Op_Host2 Op_Server0",
    "DecoySmss": "User0 User1",
    "DecoySSHD": "User2 User3",
    "DecoySvchost": "User0 User1",
    "DecoyTomcat": "Defender Enterprise0 Op_Host0 Op_Host1 Op_Host2 Op_Server0 User0 User1 User2",
    "DecoyVsftpd": "Defender Enterprise0 Op_Host0 Op_Host1 Op_Host2 Op_Server0 User3 User4",
}


@pytest.mark.parametrize("decoy", DECOY_OUTCOMES)
def test_decoys_succeed_where_section_5_5_says(decoy: str) -> None:
    for host in tables.HOSTS:
        twice = Played([Step(blue(decoy, host)), Step(blue(decoy, host))])
        fits = host in DECOY_OUTCOMES[decoy].split()
        assert twice.at("blue_success", step=0) == fits
        assert twice.at("blue_success") == (fits and decoy == "DecoyVsftpd")


def test_vsftpd_keeps_apache_away_and_stops_web_exploits() -> None:
    steps = [
        Step(blue("DecoyVsftpd", "Enterprise0")),
        scan("Enterprise0", blue("DecoyApache", "Enterprise0")),
    ]
    played = Played([*steps, exploit("Enterprise0", HTTP)])
    assert played.at("blue_success", step=1) == 0
    assert (played.at("red_success"), played.shown("Enterprise0")) == (0, ("Scan", "No"))
    original = Played([scan("User4", blue("DecoyVsftpd", "User4")), exploit("User4", HTTP, 1)])
    assert original.at("red_success") == 1


ANSWERS = {  # section 6.4, per exploit: p privileged, u user, s silent, n noisy
    "Defender": ("", "", "", "", "n", "", "", ""),
    "Enterprise0": ("", "", "", "", "u", "", "", ""),
    "Enterprise1": ("s", "p", "u", "u", "u", "", "", ""),
    "User0": ("", "", "", "", "u", "", "", "p"),
    "User2": ("p", "u", "", "", "", "", "", ""),
    "User3": ("", "s", "u", "u", "", "", "p", ""),
    "User4": ("", "", "u", "u", "u", "p", "p", ""),
}


@pytest.mark.parametrize("host", ANSWERS)
def test_exploits_do_what_the_table_of_section_6_4_says(host: str) -> None:
    own = int(host == "User0")
    ports = tables.ORIGINAL_PORTS[HOST[host]]
    candidates = [e for e in range(8) if tables.CANDIDATES[ports] >> e & 1]
    assert candidates == [e for e, answer in enumerate(ANSWERS[host]) if answer]
    for which in candidates:
        answer = ANSWERS[host][which]
        detected = 1 if which != SSH and answer in "pu" else -1
        played = Played([scan(host), exploit(host, which, detected)])
        assert played.at("red_success") == (answer in "pu")
        assert played.at("red_sessions", host) == own + (answer in "pu")
        assert played.at("red_privileged_sessions", host) == own + (answer == "p")
        assert played.at("malware_files", host) == (detected == 1)
        assert played.shown(host)[0] == ("None" if answer == "s" else "Exploit")


def test_blue_sees_the_activities_of_section_10() -> None:
    apache = blue("DecoyApache", "User1")
    assert Played([scan("User1")]).shown("User1") == ("Scan", "No")
    assert Played([scan("Enterprise0")]).shown("Enterprise0") == ("Scan", "No")
    placed = blue("DecoyVsftpd", "Enterprise0")
    assert Played([scan("Enterprise0", placed)]).shown("Enterprise0") == ("None", "No")  # two ports, hidden
    assert Played([scan("User1", apache)]).shown("User1") == ("Scan", "No")  # three ports
    assert Played([scan("User1"), exploit("User1", FTP, 0)]).shown("User1") == ("Scan", "No")
    assert Played([scan("User1"), exploit("User1", FTP, 0, apache)]).shown("User1") == ("None", "No")
    assert Played([scan("User1"), exploit("User1", FTP, 1, apache)]).shown("User1") == ("Exploit", "User")
    femitter = blue("DecoyFemitter", "Enterprise1")
    lured = [scan("Enterprise1", femitter)]
    assert Played([*lured, exploit("Enterprise1", FTP)]).shown("Enterprise1") == ("Scan", "No")
    deceived = exploit("Enterprise1", FTP, action=femitter)  # it is there already: not placed
    assert Played([*lured, deceived]).shown("Enterprise1") == ("Scan", "No")
    web = [scan("Enterprise0", blue("DecoyTomcat", "Enterprise0"))]
    both = exploit("Enterprise0", HTTPS, action=blue("DecoyHarakaSMPT", "Enterprise0"))
    assert Played([*web, both]).shown("Enterprise0") == ("Exploit", "User")  # three entries on one port


def test_green_and_red_on_one_host_are_seen_together() -> None:
    user1, enterprise0 = HOST["User1"], HOST["Enterprise0"]
    steps = [scan("User1"), exploit("User1", SSH, green=user1)]
    assert Played(steps).shown("User1") == ("Scan", "No")  # two ports, no shell
    steps = [scan("User1"), exploit("User1", FTP, 1, green=user1)]
    assert Played(steps).shown("User1") == ("Scan", "No")  # 21, 22 and the shell's port: three
    steps = [scan("Enterprise0"), exploit("Enterprise0", SSH, green=enterprise0)]
    assert Played(steps).shown("Enterprise0") == ("Exploit", "User")
    elsewhere = Played([scan("User1", green=enterprise0)])
    assert (elsewhere.shown("User1")[0], elsewhere.shown("Enterprise0")[0]) == ("Scan", "Scan")


def test_belief_follows_blues_own_actions() -> None:
    start = [scan("User1"), exploit("User1", FTP, 1)]
    assert Played([*start, Step(blue("Analyse", "User1"))]).shown("User1") == ("None", "Privileged")
    removed = Played([*start, Step(blue("Remove", "User1"))])
    assert removed.shown("User1") == ("None", "Unknown")
    assert removed.at("red_sessions", "User1") == 1  # privileged sessions stay
    assert Played([Step(blue("Remove", "User1"))]).shown("User1") == ("None", "No")
    seen_again = exploit("User1", FTP, 1, blue("Restore", "User1"))
    assert Played([*start, seen_again]).shown("User1") == ("Exploit", "User")
    first = Played([scan("User1"), exploit("User1", FTP, 1, blue("Analyse", "User1"))])
    assert first.shown("User1") == ("Exploit", "User")  # the file came after Blue looked


def test_rewards_add_up() -> None:
    everything = [scan("User1"), exploit("User1", FTP, 1), *OPERATIONAL_FOOTHOLD]
    everything += [escalate("Op_Server0", 0, 0), STOP, Step(blue("Restore", "User0"))]
    rewards = Played(everything).record["reward"][0]
    expected = np.array([0, -0.1, -0.1, -0.1, -0.1, -0.1, -1.1, -11.1, -12.1], np.float32)
    np.testing.assert_array_equal(rewards, expected)
