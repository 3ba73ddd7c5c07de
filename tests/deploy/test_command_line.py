"""The `fleet` command as a shell sees it: statuses, one line for each mistake, and what it imports."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy.app import run_command
from deploy.exits import Exit
from deploy.progress import line
from deploy.runs import new_run
from deploy.settings import resolve, to_toml
from deploy.storage import storage_told
from learner.checkpoints import Checkpoint, save
from learner.ledger import Deliveries, Ledger, Share, Shares
from learner.progress import Progress
from protocol.errors import FleetError, UserError

Fleet = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fleet:
    """Run `fleet` in an empty folder: its exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        status = run_command(arguments)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (["train", "--n-env", "3"], "--n-envs"),
        (["train", "--n-envs", "many"], "--n-envs is 'many': it must be a whole number"),
        (
            ["train", "--red-agent", "blin"],
            "choose from b_line (B_lineAgent), meander (RedMeanderAgent), sleep",
        ),
        (["train", "--mode", "sync", "--max-lag", "1"], "--max-lag 1 contradicts --mode sync"),
        (["train", "--mode", "sync", "--step-hook", "nowhere"], "give MODULE:FUNCTION"),
        (["train", "--mode", "sync", "--step-hook", "no.such:look"], "no.such:look cannot be imported"),
        (["train", "--mode", "sync", "--step-hook", "math:pi"], "is a float, not a function"),
        (["train", "--mode", "sync", "--record-steps", "."], "--record-steps . cannot be written"),
        (["train", "--step-hook", "debug:look"], "--step-hook belongs to --mode sync"),
        (["steps", "none"], "none cannot be read"),
        (["train", "--rules", "new"], "--rules is 'new': choose from current, leaderboard"),
        (["train", "--total-episodes", "1e5"], "--total-episodes is '1e5': it must be a whole number"),
        (["train", "--hidden", "64x64"], "--hidden is '64x64': it must be whole numbers, such as 64,64"),
        (["train", "--seed", "-1"], "--seed is -1; it must be from 0 to 9223372036854775807"),
        (["train", "--workers", "3", "--n-envs", "2"], "--workers is 3; it must be at most --n-envs"),
        (["train", "--json", "none/x.json"], "--json none/x.json cannot be written: there is no folder none"),
        (["train", "--json", "."], "--json . cannot be written: it is a folder"),
        (["train", "--port", "65534"], "four different numbers from 1 to 65535"),
        (["evaluate", "none", "--json", "none/x.json"], "there is no folder none"),
        (["evaluate", "none", "--episodes", "0"], "--episodes is 0; it must be from 1"),
        (["evaluate", "none", "--seed", "-1"], "--seed is -1; it must be from 0"),
        (["ledger", ".", "--json", "none/x.json"], "there is no folder none"),
        (["conformance", "none.npz", "--json", "none/x.json"], "there is no folder none"),
        (["replay", "none", "1", "--version", "one"], "--version is 'one': it must be a whole number"),
        (["worker", "--learner", "x:1", "--slots", "0"], "--slots is 0; it must be from 1"),
        (["worker", "--learner", "x:1", "--give-up-after", "nan"], "--give-up-after is nan"),
        (["worker", "--learner", "x:1", "--max-failures", "few"], "--max-failures is 'few'"),
        (["train", "--lag", "exact:1", "--max-lag", "2"], "leave --max-lag out"),
        (["train", "--lag", "exact:1", "--order", "arrival"], "leave --order out"),
        (["train", "--env", "cage3"], "did you mean cage2"),
        (["train", "--env", "CartPole-v1", "--red", "sleep"], "--red-agent belongs to cage2"),
        (["train", "--allow-env", "no.such"], "--allow-env no.such cannot be imported"),
        (["train", "--env", "CartPole-v1", "--rules", "leaderboard"], "--rules belongs to cage2"),
        (["train", "--env", "cyborg", "--observation", "state"], "CybORG tells no true state"),
        (["train", "--env-option", "gren=true"], "no option 'gren'"),
        (["train", "--name", "../x"], "use letters, digits"),
        (["train", "--resume", "none"], "no run or checkpoint 'none'"),
        (["train", "--config", "none.toml"], "cannot be read"),
        (["train", "--init-from", "none"], "no run or checkpoint 'none'"),
        (["train", "--workers", "2", "--slots", "3", "--n-envs", "7"], "make 6 environments, not --n-envs 7"),
        (["learner", "--workers", "2"], "No such option"),
        (["learner", "--port", "http"], "'http' is neither a port"),
        (["learner", "--bind", "0.0.0.0"], "--insecure"),
        (["evaluate", "none"], "no run or checkpoint 'none'"),
        (["hash", "."], "holds no checkpoint"),
        (["ledger", "."], "holds no checkpoint"),
        (["conformance", "none.npz"], "there is no such file"),
        (["nonsense"], "No such command"),
    ],
)
def test_a_mistake_is_one_line_with_its_mend(fleet: Fleet, arguments: list[str], mend: str) -> None:
    status, out, err = fleet(*arguments)
    assert (status, out, err.count("\n")) == (Exit.USAGE, "", 1)
    assert err.startswith("fleet: ") and mend in err
    assert not list(Path("runs").glob("*/*")), "a run that never began leaves nothing behind"


def test_before_the_first_checkpoint_the_learner_is_asked_for_the_ledger(fleet: Fleet) -> None:
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/config.toml").touch()
    Path("runs/mine/address").write_text("127.0.0.1:5555\n")
    status, _, err = fleet("ledger", "mine")
    assert status == Exit.USAGE and "fleet ledger 127.0.0.1:5555" in err


def test_a_run_that_exists_is_not_overwritten(fleet: Fleet) -> None:
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/notes.txt").write_text("precious")
    status, _, err = fleet("train", "--name", "mine")
    assert status == Exit.USAGE
    assert "runs/mine exists already: another --name begins anew" in err
    assert Path("runs/mine/notes.txt").read_text() == "precious"
    Path("runs/mine/config.toml").touch()
    assert "runs/mine exists already: --resume mine" in fleet("train", "--name", "mine")[2]


def test_a_sweep_is_told_from_a_training(fleet: Fleet) -> None:
    Path("runs/s").mkdir(parents=True)
    Path("runs/s/sweep.json").touch()
    _, _, err = fleet("train", "--name", "s")
    assert "it is a sweep, and fleet sweep --resume s goes on with it, another --name" in err
    _, _, err = fleet("train", "--resume", "s")
    assert "runs/s is a sweep, not a training: fleet sweep --resume s goes on with it" in err


def test_the_keys_command_alone_shows_its_commands(fleet: Fleet) -> None:
    status, out, err = fleet("keys")
    assert (status, err) == (Exit.OK, "") and "revoke" in out
    assert fleet("keys", "--help")[1] == out


def test_names_that_are_left_out_are_counted(fleet: Fleet) -> None:
    for name, told in (("kl", "is kl\n"), ("kw", "are kl, kw\n"), ("kl2", "are kl, kl2, kw\n")):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "config.toml").touch()
        assert fleet("evaluate", "nope")[2].endswith(f"; there {told}")
    for number in range(7):
        Path(f"runs/a{number}").mkdir()
        Path(f"runs/a{number}/config.toml").touch()
    assert fleet("evaluate", "nope")[2].endswith("; there are kl, kl2, kw and 7 more\n")
    assert fleet("evaluate", "kll")[2].endswith("; there are kl, kl2 and 8 more\n")


@pytest.mark.parametrize("left", [["logs/learner.log"], ["lock", "incarnation", "logs/learner.log"]])
def test_a_name_whose_start_was_killed_is_free(
    tmp_path: Path, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in (Path("runs/mine") / name for name in left):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert new_run("mine", "cage2") == Path("runs/mine")
    Path("runs/mine/config.toml").touch()
    with pytest.raises(UserError, match="exists already"):
        new_run("mine", "cage2")


def test_an_empty_config_is_not_taken_for_the_defaults(fleet: Fleet) -> None:
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/config.toml").touch()
    status, _, err = fleet("train", "--resume", "mine")
    assert (status, err.count("\n")) == (Exit.USAGE, 1) and "config.toml is empty" in err


def test_a_folder_that_cannot_be_written_is_one_line_and_other_errors_are_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/mine")
    run.mkdir(parents=True)
    (run / "config.toml").touch()
    with pytest.raises(FleetError, match="runs/mine: make room, then --resume mine"), storage_told(run):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FleetError, match=r"Read-only.*runs/mine: mount it writable"), storage_told(run):
        raise OSError(errno.EROFS, "Read-only file system", "runs/mine/lock")
    with pytest.raises(PermissionError), storage_told(run):
        raise PermissionError(errno.EACCES, "Permission denied", "somewhere/else")
    with pytest.raises(FileNotFoundError), storage_told(run):
        (run / "never-made").read_text()


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (["--seed", "9"], "--seed cannot change when a run is resumed"),
        (["--name", "other"], "--name cannot stand beside --resume"),
        (["--config", "x.toml"], "--config cannot stand beside --resume"),
    ],
)
def test_resuming_refuses_to_make_another_run(fleet: Fleet, arguments: list[str], mend: str) -> None:
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/config.toml").write_text(to_toml(resolve({})))
    status, _, err = fleet("train", "--resume", "mine", *arguments)
    assert (status, err.count("\n")) == (Exit.USAGE, 1)
    assert mend in err


def test_a_port_in_use_is_named_and_the_name_stays_free(fleet: Fleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = fleet("learner", "--port", str(port), "--name", "mine", "--env", "CartPole-v1")
    assert (status, err.count("\n")) == (Exit.USAGE, 1)
    assert f"port {port} is in use" in err
    assert not Path("runs/mine").exists()


def test_a_ledger_of_a_silent_port_is_refused(fleet: Fleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        status, _, err = fleet("ledger", f"127.0.0.1:{silent.getsockname()[1]}")
    assert (status, err.count("\n")) == (Exit.USAGE, 1)
    assert "no learner answered" in err


def traces() -> Path:
    """Return the folder of the recorded steps: beside the repository, else the one kept with the tests."""
    shared = ROOT.parent / "shared" / "cage2" / "traces"
    return shared if shared.is_dir() else ROOT / "tests" / "data"


def test_conformance_counts_the_steps_and_names_the_first_mismatch(fleet: Fleet, tmp_path: Path) -> None:
    good = sorted(traces().glob("*.npz"))[0]
    with np.load(good, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["reward"][2, 7] -= 5
    np.savez(tmp_path / "bad.npz", **arrays)
    assert fleet("conformance", str(good))[0] == Exit.OK
    status, out, _ = fleet("conformance", str(good), "bad.npz", "--json", "found.json")
    assert status == Exit.FAILED
    assert "no mismatch" in out.splitlines()[0]
    assert "episode 2, step 7, reward" in out.splitlines()[1]
    found = json.loads(Path("found.json").read_text())["traces"]
    assert [trace["mismatched_episodes"] for trace in found] == [0, 1]
    assert found[1]["mismatch"]["field"] == "reward"


def test_many_workers_on_few_cores_are_told_of(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: object) -> None:
        raise UserError("enough seen")

    monkeypatch.setattr("deploy.commands.train.usable_cores", lambda: 2)
    monkeypatch.setattr("learner.run.LearnerRun.__enter__", refuse)
    _, _, err = fleet("train", "--workers", "9", "--env", "CartPole-v1")
    assert err.splitlines() == ["fleet: 9 workers share 2 cores: slow, and much memory", "fleet: enough seen"]
    assert fleet("train", "--workers", "8", "--env", "CartPole-v1")[2] == "fleet: enough seen\n"


def test_a_worker_says_at_once_that_its_learner_has_no_address() -> None:
    program = [sys.executable, "-m", "rollout_worker", "--learner", "no-such-host.invalid:5555"]
    result = subprocess.run(
        [*program, "--give-up-after", "0.3"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    first, *_, last = result.stderr.splitlines()
    assert "'no-such-host.invalid' is no address and no name of a host" in first
    assert "no word from a learner at no-such-host.invalid:5555" in last and "is it running" in last


def test_a_line_of_progress_is_short() -> None:
    progress = Progress(
        phase="waiting for workers",
        episodes=1_000_000,
        total_episodes=1_000_000,
        update=2500,
        updates=2500,
        update_seconds=12.34,
        episodes_per_second=12345.0,
        steps_per_second=1e6,
        returns={"b_line": -1234.5, "meander": -1234.5},
        workers=1,
        slots=1,
    )
    assert len(line(progress)) <= 160 and line(progress).endswith("1 worker, 1 slot")


@pytest.mark.parametrize(("missing", "arguments"), [("safetensors", ["hash", "."]), ("torch", ["train"])])
def test_a_worker_host_says_what_a_learners_command_needs(missing: str, arguments: list[str]) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None; "
        f"from deploy.app import run_command; sys.exit(run_command({arguments!r}))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (Exit.USAGE, "", 1)
    assert f"needs {missing}: in a clone, pip install --editable '.[learner]'" in result.stderr


def test_an_unexpected_error_leaves_its_traceback(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.settings.settings", lambda: 1 / 0)
    status, _, err = fleet("train")
    assert status == Exit.FAILED
    assert "ZeroDivisionError" in err and err.splitlines()[-1].endswith("the traceback is above")


def test_an_unexpected_error_of_a_run_is_in_its_log(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.run.LearnerRun.__enter__", lambda run: 1 / 0)
    status, _, err = fleet("train", "--name", "mine")
    assert (status, err.count("\n")) == (Exit.FAILED, 1)
    assert err.endswith("the traceback is in runs/mine/logs/learner.log\n")
    assert "Traceback" in Path("runs/mine/logs/learner.log").read_text()


def test_help_and_version_need_no_torch() -> None:
    program = """
import sys
from deploy.app import run_command
for arguments in (["--help"], ["train", "--help"], ["worker", "--help"], ["--version"]):
    run_command(arguments)
print("heavy:", {"torch", "numba", "numpy", "gymnasium", "zmq"} & set(sys.modules))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.endswith("heavy: set()\n")
    assert "--n-envs" in result.stdout and "rollout-fleet " in result.stdout


@pytest.mark.parametrize("command", ["train", "learner", "worker", "evaluate", "replay", "ledger"])
def test_help_is_whole_at_80_columns(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = fleet(command, "--help")
    assert max(map(len, out.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in out and "--no-insecure" not in out
    if command == "train":
        assert "--episodes-per-update N " in out and "\nPPO:\n" in out


def test_a_page_of_text_is_no_trace_and_no_pickle_to_load(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# A page of text\n" * 9)
    status, _, err = fleet("conformance", "page.md")
    assert (status, err.count("\n")) == (Exit.USAGE, 1)
    assert "page.md is not a readable trace: " in err and "pickle" not in err


@pytest.mark.parametrize(("command", "status"), [(["fleet"], 130), (["python", "-m", "rollout_worker"], 130)])
def test_an_interrupt_at_the_start_is_one_line(tmp_path: Path, command: list[str], status: int) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    (tmp_path / "numpy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    program = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
    arguments = ["--learner", "127.0.0.1:1"] if "rollout_worker" in command else ["train"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    result = subprocess.run(
        [*program, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (status, "", 1)
    assert result.stderr.endswith(": interrupted\n")


def test_the_command_is_installed_and_a_worker_refuses_a_bad_address(tmp_path: Path) -> None:
    command = shutil.which("fleet", path=Path(sys.executable).parent)
    assert command
    result = subprocess.run(
        [command, "worker", "--learner", "nowhere"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (Exit.USAGE, "", 1)
    assert "write HOST:PORT" in result.stderr


@pytest.mark.parametrize("broken", ["", "train", "worker"])
def test_a_ledger_whose_law_does_not_hold_ends_with_status_1(fleet: Fleet, broken: str) -> None:
    """In total, or for one worker."""
    ledger = Ledger()
    ledger.accounts["train"].issue(5)
    ledger.shares = Shares(Deliveries(), (Share("host:1", given=5, taken_back=2, held=3),))
    plain = ledger.to_plain()
    if broken == "train":
        plain["train"]["outstanding"] = [[0, 4]]
    elif broken == "worker":
        plain["shares"]["workers"][0]["held"] = 2
    save(Path("some/checkpoint"), Checkpoint(1, {"weights": np.zeros(1)}, plain))
    status, out, err = fleet("ledger", "some/checkpoint")
    assert status == (Exit.FAILED if broken else Exit.OK) and not err
    found = {
        "": "",
        "train": "tickets 4 were issued and are nowhere",
        "worker": "host:1: 5 tickets given, but",
    }
    assert ("violated: " in out) == bool(broken) and found[broken] in out


def test_a_resumed_run_is_not_told_to_end_before_where_it_is(fleet: Fleet) -> None:
    config = to_toml(resolve({"total_episodes": 7260}))
    save(Path("runs/first/checkpoints/update-00011"), Checkpoint(11, {"weights": np.zeros(1)}, {}))
    Path("runs/first/config.toml").write_text(config)
    before = sorted(Path("runs/first").rglob("*"))
    status, out, err = fleet("train", "--resume", "first", "--total-episodes", "660")
    assert (status, out) == (Exit.USAGE, "")
    assert err == (
        "fleet: --total-episodes is 660, but run first has trained on 7,260 already: give more than that\n"
    )
    assert sorted(Path("runs/first").rglob("*")) == before
    assert Path("runs/first/config.toml").read_text() == config
