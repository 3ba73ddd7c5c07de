"""What `desired.json` may hold, and that a full disk lets a fleet be ended."""

from __future__ import annotations

import copy
import errno
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from deploy.app import run_command
from deploy.exits import Exit
from deploy.fleet import state
from deploy.fleet.learner_process import Place
from deploy.fleet.state import Desired, DesiredLearner, DesiredPool, FleetFolder
from learner.run_folder import replace_file
from protocol.errors import UserError

POOL = DesiredPool("local", {"pin": True}, "127.0.0.1:5555", 2, former_hosts=("a", "b"))
SOUND = Desired("abc", 3, "up", DesiredLearner("", Place(), "127.0.0.1:5555"), {"lab": POOL})
PLAIN: dict[str, Any] = json.loads(json.dumps(asdict(SOUND)))
PATHS = [
    *[(key,) for key in PLAIN],
    *[("learner", key) for key in PLAIN["learner"]],
    *[("pools", "lab", key) for key in PLAIN["pools"]["lab"]],
    ("pools", "lab", "options", "pin"),
    ("pools", "lab", "options", "pinned"),
]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FleetFolder:
    monkeypatch.chdir(tmp_path)
    folder = FleetFolder(Path("runs") / "mine")
    folder.path.mkdir(parents=True)
    return folder


def damaged(path: tuple[str, ...], value: Any) -> str:
    plain = copy.deepcopy(PLAIN)
    inner = plain
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(plain)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "{",
        "[" * 100_000,
        damaged(("pools", "lab", "engine"), "k8s"),
        damaged(("pools", "lab", "options"), {"pinned": 1}),
        damaged(("pools", "lab", "options"), {"pin": 3}),
        damaged(("pools", "lab", "target"), "busy"),
        damaged(("pools", "lab", "count"), -1),
        damaged(("pools", "lab"), {}),
        damaged(("pools", "lab"), 3),
        damaged(("generation",), "seven"),
        damaged(("phase",), "sideways"),
        damaged(("learner", "address"), "nowhere"),
        damaged(("unknown",), 1),
    ],
)
def test_a_damaged_wish_is_told_in_one_line(
    folder: FleetFolder, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (folder.path / "desired.json").write_text(text)
    assert run_command(["down", "mine"]) == Exit.USAGE
    said = capsys.readouterr().err
    assert "runs/mine/fleet/desired.json is damaged" in said and said.count("\n") == 1
    assert "fleet up writes it anew" in said


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(PATHS), ANYTHING)
def test_whatever_stands_in_a_wish_is_understood_or_refused(
    folder: FleetFolder, path: tuple[str, ...], value: Any
) -> None:
    (folder.path / "desired.json").write_text(damaged(path, value))
    try:
        desired = folder.desired()
    except UserError:
        return
    assert desired is not None
    assert Desired.from_plain(json.loads(json.dumps(asdict(desired)))) == desired


def test_a_full_disk_has_room_for_what_is_wanted_and_seen(
    folder: FleetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = folder.path / "reserve"
    assert folder.write_desired(SOUND) == 1
    assert reserve.stat().st_blocks * 512 >= 2**16

    def on_a_full_disk(path: Path, text: str) -> None:
        if reserve.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_file(path, text)

    monkeypatch.setattr(state, "replace_file", on_a_full_disk)
    assert folder.write_desired(replace(SOUND, phase="down")) == 2
    folder.write_observed({"phase": "down"})
    desired = folder.desired()
    assert desired is not None and (desired.phase, folder.observed()["phase"]) == ("down", "down")
    assert reserve.exists()
