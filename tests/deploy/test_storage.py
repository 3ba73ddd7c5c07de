"""Folders that one may not write, that are files, or that vanish: one line, whatever command meets them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.app import run_command
from deploy.exits import Exit
from tests.end_to_end.fleet_processes import Fleet

_ORDINARY = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
"""Modes bind whom this starts, be it root."""

_SMALL = ["--env", "CartPole-v1", "--episode-length", "20", "--total-episodes", "660"]
BEGINNINGS = [
    ["train", *_SMALL],
    ["train", *_SMALL, "--name", "mine"],
    ["learner", *_SMALL, "--port", "auto"],
    ["sweep", "space.toml", "--trials", "1", *_SMALL],
    ["compare", "--env", "CartPole-v1", "--episodes", "20", "--n-envs", "4"],
]


def lacking_ordinary_users() -> str:
    if os.geteuid() != 0:
        return ""
    able = shutil.which("setpriv") and subprocess.run([*_ORDINARY, "true"], capture_output=True)
    return "" if able and able.returncode == 0 else "root, and cannot become anybody else"


needs_ordinary_user = pytest.mark.skipif(bool(lacking_ordinary_users()), reason=lacking_ordinary_users())


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    (tmp_path / "space.toml").write_text("[space]\nlearning_rate = [0.001, 0.002]\n")
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.close()


@needs_ordinary_user
@pytest.mark.parametrize("arguments", BEGINNINGS, ids=" ".join)
def test_where_nothing_may_be_written_nothing_begins_and_one_line_says_why(
    fleet: Fleet, arguments: list[str]
) -> None:
    fleet.via = _ORDINARY if os.geteuid() == 0 else ()
    (fleet.folder / "runs").mkdir(mode=0o555)
    told = ["Permission denied in runs: see to its owner and mode, then try again"]
    process = fleet.start(*arguments)
    assert fleet.finish(process, Exit.FAILED).splitlines() == [f"fleet: {line}" for line in told]


def test_a_sweep_whose_folder_is_removed_ends_in_one_line(fleet: Fleet) -> None:
    process = fleet.start("sweep", "space.toml", *_SMALL, "--total-episodes", 100_000, "--name", "s")
    folder = fleet.folder / "runs" / "s"
    fleet.wait_until(lambda: any(folder.glob("runs/*/updates.jsonl")), "a trial trained")
    while folder.exists():  # something may be written into it meanwhile
        shutil.rmtree(folder, ignore_errors=True)
    output = fleet.finish(process, Exit.FAILED)
    assert output.splitlines()[-1] == (
        "fleet: runs/s is gone: find out who removed it while it was in use, then try again"
    )
    assert "Traceback" not in output and "trial 0 failed" not in output


@needs_ordinary_user
@pytest.mark.parametrize("arguments", [BEGINNINGS[0], BEGINNINGS[3]], ids=" ".join)
def test_a_working_directory_that_may_not_be_written_is_named(fleet: Fleet, arguments: list[str]) -> None:
    fleet.via = _ORDINARY if os.geteuid() == 0 else ()
    (fleet.folder / "output-0.txt").touch()
    fleet.folder.chmod(0o555)
    output = fleet.run(*arguments, status=Exit.FAILED)
    fleet.folder.chmod(0o755)
    told = f"Permission denied in {fleet.folder}: see to its owner and mode, then try again"
    assert output.splitlines() == [f"fleet: {told}"]


@needs_ordinary_user
@pytest.mark.parametrize("arguments", BEGINNINGS[:2], ids=" ".join)
def test_runs_that_may_not_be_looked_into_are_told_of(fleet: Fleet, arguments: list[str]) -> None:
    fleet.via = _ORDINARY if os.geteuid() == 0 else ()
    (fleet.folder / "runs").mkdir(mode=0o000)
    output = fleet.run(*arguments, status=Exit.FAILED)
    (fleet.folder / "runs").chmod(0o755)
    assert output == "fleet: Permission denied in runs: see to its owner and mode, then try again\n"


@pytest.mark.parametrize("arguments", BEGINNINGS, ids=" ".join)
@pytest.mark.parametrize("dangling", [False, True])
def test_runs_that_is_no_folder_is_one_line(
    fleet: Fleet,
    arguments: list[str],
    dangling: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(fleet.folder)
    if dangling:
        Path("runs").symlink_to("nowhere")
    else:
        Path("runs").touch()
    assert run_command(arguments) == Exit.FAILED
    assert capsys.readouterr().err == "fleet: runs is no folder: move it out of the way, then try again\n"


def test_a_comparison_in_a_file_is_one_line(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fleet.folder)
    assert run_command(["compare", "--folder", "space.toml"]) == Exit.FAILED
    assert "fleet: space.toml is no folder: move it out of the way" in capsys.readouterr().err
    assert run_command(["compare", "--json", "none/x.json"]) == Exit.USAGE
    assert "--json none/x.json cannot be written: there is no folder none" in capsys.readouterr().err
