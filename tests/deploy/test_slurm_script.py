"""What Slurm is asked and how its answers are read, with programs in its place that answer as it does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import deploy.engines.slurm_jobs
from deploy.engines import WorkerLaunch
from deploy.engines.slurm import SlurmEngine, SlurmOptions, batch_script, job_name
from deploy.engines.slurm_jobs import Task, pack_names, unpack_names
from protocol.errors import UserError

LAUNCH = WorkerLaunch("exp 7,b", "lab", "gpu-box:5555", 50, Path("/home/ann/lab.key"), ("my_games",))
ANSWERS = """#!/bin/sh
echo "$(basename "$0") $*" >> "$FAKE_FOLDER/asked"
cat >> "$FAKE_FOLDER/given"
[ -f "$FAKE_FOLDER/$(basename "$0")" ] && . "$FAKE_FOLDER/$(basename "$0")"
exit 0
"""
REFUSES = """{
    echo "sbatch: error: invalid partition specified: nope"
    echo "sbatch: error: Batch job submission failed: Invalid partition name specified"
} >&2; exit 1"""
MISUSED = (
    """{ echo "sbatch: unrecognized option '--foo=1'"; echo 'Try "sbatch --help" for more'; } >&2; exit 1"""
)


class FakeSlurm:
    """Programs of Slurm's names that do what a test says, and note what they were asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for program in ("sbatch", "squeue", "scancel", "scontrol"):
            (folder / "bin" / program).write_text(ANSWERS)
            (folder / "bin" / program).chmod(0o755)

    def does(self, program: str, shell: str) -> None:
        (self.folder / program).write_text(shell)

    def asked(self, program: str) -> list[str]:
        file = self.folder / "asked"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line for line in lines if line.startswith(program)]

    def engine(self, options: SlurmOptions | None = None) -> SlurmEngine:
        launch = WorkerLaunch("run", "lab", "gpu-box:5555", 50)
        return SlurmEngine(launch, options or SlurmOptions(poll_seconds=0), self.folder / "a run")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_FOLDER", str(tmp_path))
    return FakeSlurm(tmp_path)


def test_the_script_is_what_a_person_would_write() -> None:
    options = SlurmOptions(
        partition="short",
        account="ann",
        time="4:00:00",
        cpus=2,
        mem="2G",
        venv="/opt/rollout fleet",
        setup=("module load python/3.11",),
        sbatch=("--qos=low", "--constraint=avx2"),
    )
    names = ["lab-7", "lab-8", "lab-9", "lab-12"]
    assert (
        batch_script(LAUNCH, options, names, Path("/home/ann/100% runs/logs"), ["cn9", "cn2"])
        == r"""#!/bin/bash
#SBATCH --job-name=fleet:exp_7_b:lab
#SBATCH --array=0-3
#SBATCH --comment='lab-[7-9],lab-12'
#SBATCH --output='/home/ann/100%% runs/logs/%A_%a.log'
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --signal=B:TERM@60
#SBATCH --partition=short
#SBATCH --account=ann
#SBATCH --time=4:00:00
#SBATCH --mem=2G
#SBATCH --exclude=cn2,cn9
#SBATCH --requeue
#SBATCH --qos=low
#SBATCH --constraint=avx2
trap 'exit 130' INT  # until the worker hears it; a shell that waits for a command would not
names=(lab-7 lab-8 lab-9 lab-12)
name="${names[SLURM_ARRAY_TASK_ID]}"
logs='/home/ann/100% runs/logs'
ln -f "$logs/${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}.log" "$logs/$name.log"
echo "worker $name on $SLURMD_NODENAME, requeued ${SLURM_RESTART_COUNT:-0} times"
module load python/3.11
exec '/opt/rollout fleet/bin/fleet' worker """
        + '--learner gpu-box:5555 --slots 50 --pool lab --label "$name" --key /home/ann/lab.key'
        + " --allow-env my_games --drain-on-term 50\n"
    )


def test_the_script_becomes_its_task_s_worker(tmp_path: Path) -> None:
    """Run as Slurm runs it, with a `fleet` that tells its arguments and its process."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "bin" / "fleet").write_text('#!/bin/sh\necho $$; for text in "$@"; do echo "<$text>"; done\n')
    (tmp_path / "bin" / "fleet").chmod(0o755)
    launch = WorkerLaunch("run", "lab", "gpu-box:5555", 50, Path("/home/a $b/lab.key"))
    script = batch_script(launch, SlurmOptions(venv=str(tmp_path)), ["lab-3", "lab-4"], tmp_path / "logs")
    log = tmp_path / "logs" / "17_1.log"
    own = {"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "1", "SLURMD_NODENAME": "cn1"}
    with log.open("w") as output:
        shell = subprocess.Popen(
            ["bash", "-s"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={**os.environ, **own},
            text=True,
        )
        shell.communicate(script)
    told, process, *arguments = (tmp_path / "logs" / "lab-4.log").read_text().splitlines()
    assert told == "worker lab-4 on cn1, requeued 0 times" and int(process) == shell.pid
    assert arguments[arguments.index("<--label>") + 1] == "<lab-4>"
    assert arguments[arguments.index("<--key>") + 1] == "</home/a $b/lab.key>"


NAMES = st.builds("{}-{}".format, st.sampled_from(["lab", "spot", "a-b", "node_7"]), st.integers(0, 10**10))


@given(st.lists(NAMES, unique=True, max_size=30))
def test_names_survive_a_job_s_comment(names: list[str]) -> None:
    assert unpack_names(pack_names(names)) == tuple(names)


def test_a_thousand_names_are_one_short_comment() -> None:
    assert pack_names([f"lab-{number}" for number in range(1, 1001)]) == "lab-[1-1000]"
    assert unpack_names("written by somebody else [") == ()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"cpus": 0}, "--cpus is 0"),
        ({"poll_seconds": float("nan")}, "--poll-seconds is nan"),
        ({"mem": "2G\n#SBATCH --uid=0"}, "--mem is"),
        ({"sbatch": ("qos=low",)}, "--sbatch has 'qos=low'; write"),
        ({"sbatch": ("--array=1-9",)}, "the fleet sets itself"),
    ],
)
def test_options_that_would_break_the_script_are_refused(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        SlurmOptions(**options)  # type: ignore[arg-type]  # as a file gives them


def test_a_key_must_be_there_and_private(tmp_path: Path) -> None:
    key = tmp_path / "lab.key"
    launch = WorkerLaunch("run", "lab", "gpu-box:5555", 50, key)
    with pytest.raises(UserError, match="the workers' key, cannot be read: No such file"):
        SlurmEngine(launch, SlurmOptions(), tmp_path)
    key.write_text("secret")
    key.chmod(0o640)
    with pytest.raises(UserError, match="can be read by others: chmod 600"):
        SlurmEngine(launch, SlurmOptions(), tmp_path)
    key.chmod(0o600)
    SlurmEngine(launch, SlurmOptions(), tmp_path)


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("PENDING", "Resources", "waits until enough of the cluster is free (Resources)"),
        ("PENDING", "AssocGrpCpuLimit", "a limit of its account is reached (AssocGrpCpuLimit)"),
        ("PENDING", "QOSMaxJobsPerUserLimit", "a limit of its QOS is reached (QOSMaxJobsPerUserLimit)"),
        (
            "PENDING",
            "ReqNodeNotAvail, UnavailableNodes:cn3",
            "a node that it needs is down or reserved (ReqNodeN",
        ),
        ("PENDING", "SomethingNew", "waits (SomethingNew)"),
        ("FAILED", "NonZeroExitCode", "ended with an error (NonZeroExitCode)"),
        ("FAILED", "SomethingNew", "ended with an error (SomethingNew)"),
        ("TIMEOUT", "TimeLimit", "reached its time limit"),
        ("RUNNING", "None", ""),
        ("SOMETHING_NEW", "None", "something_new"),
    ],
)
def test_states_and_reasons_in_words(state: str, reason: str, words: str) -> None:
    assert Task("17_1", "lab-1", state, reason, "").words().startswith(words)
    assert bool(words) == bool(Task("17_1", "lab-1", state, reason, "").words())


def test_more_than_an_array_may_have_are_several_and_what_is_refused_is_told(slurm: FakeSlurm) -> None:
    slurm.does("scontrol", 'echo "MaxArraySize            = 3"')
    slurm.does(
        "sbatch", f'[ "$(grep -c ^sbatch "$FAKE_FOLDER/asked")" != 2 ] || {{ {REFUSES}; }}; echo "9;c1"'
    )
    members = slurm.engine().start([f"lab-{number}" for number in range(1, 8)])
    assert [member.state for member in members] == ["pending"] * 3 + ["failed"] * 3 + ["pending"]
    assert members[3].detail == "sbatch: Invalid partition name specified"
    assert "#SBATCH --array=0-2\n" in (slurm.folder / "given").read_text()


@pytest.mark.parametrize(
    ("shell", "complaint"),
    [
        (REFUSES, "sbatch: Invalid partition name specified"),
        (MISUSED, "sbatch: unrecognized option '--foo=1'"),
        ("exec sleep 30", "sbatch had no answer from Slurm in 0 s"),
        ("exit 7", "sbatch: failed without a word"),
    ],
)
def test_a_refusal_is_one_line(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, shell: str, complaint: str
) -> None:
    engine = slurm.engine()
    engine.start([])  # so that only sbatch is still to be asked
    monkeypatch.setattr(deploy.engines.slurm_jobs, "_PATIENCE_SECONDS", 0.4)
    slurm.does("sbatch", shell)
    members = engine.start(["lab-1", "lab-2"])
    assert [member.state for member in members] == ["failed"] * 2
    assert [member.detail for member in members] == [complaint] * 2


def test_without_slurm_it_is_said_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    engine = SlurmEngine(LAUNCH_WITHOUT_KEY, SlurmOptions(), tmp_path)
    for act in (engine.members, lambda: engine.start(["lab-1"]), lambda: engine.stop(["lab-1"])):
        with pytest.raises(UserError, match="run the fleet where Slurm's jobs are submitted"):
            act()


def test_variables_of_sbatch_do_not_overrule_the_file(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JOB_NAME", "ARRAY_INX", "PARTITION", "ACCOUNT"):
        monkeypatch.setenv(f"SBATCH_{name}", "mine")
    slurm.does("sbatch", 'env | grep ^SBATCH_ > "$FAKE_FOLDER/environment"; echo 1')
    slurm.engine(SlurmOptions(partition="short")).start(["lab-1"])
    assert (slurm.folder / "environment").read_text() == "SBATCH_ACCOUNT=mine\n"


def test_what_ended_is_told_once_with_the_end_of_its_output_and_what_was_stopped_is_not(
    slurm: FakeSlurm,
) -> None:
    name = job_name(LAUNCH_WITHOUT_KEY)
    slurm.does("sbatch", "echo 17")
    engine = slurm.engine()
    engine.start(["lab-1", "lab-2", "lab-3", "lab-4", "lab-5"])
    (slurm.folder / "a run" / "logs" / "lab-1.log").write_text("one\ntwo\nthree\nfour\n")
    states = [
        "FAILED|NonZeroExitCode|cn1",
        "TIMEOUT|TimeLimit|cn2",
        "COMPLETED|None|cn1",
        "PENDING|Priority|",
    ]
    rows = [f"17_{index}|{state}|lab-[1-5]" for index, state in enumerate(states)]
    engine.stop(["lab-3"])
    slurm.does("squeue", "cat <<'END'\n" + "\n".join([*rows, "3_0|RUNNING|None|cn1|[not ours"]) + "\nEND")
    waiting, *ended = engine.members()
    assert (waiting.name, waiting.state) == ("lab-4", "pending")
    assert [(member.name, member.state) for member in ended] == [
        ("lab-1", "failed"),
        ("lab-2", "failed"),
        ("lab-5", "failed"),
    ]
    assert ended[0].detail == "ended with an error (NonZeroExitCode), task 17_0: two | three | four"
    assert ended[1].host == "cn2" and ended[1].detail.startswith(
        "reached its time limit, task 17_1: nothing in"
    )
    assert ended[2].detail.startswith("ended, and Slurm has forgotten how, task 17_4")
    assert [member.name for member in engine.members()] == ["lab-4"]
    assert f"--name={name}" in slurm.asked("squeue")[-1]


def test_what_waits_is_cancelled_and_what_runs_is_signalled(slurm: FakeSlurm) -> None:
    slurm.does("squeue", "echo '17_0|RUNNING|None|cn1|lab-[1-2]'; echo '17_1|PENDING|Priority||lab-[1-2]'")
    engine = slurm.engine()
    engine.stop(["lab-1", "lab-2", "lab-9"])
    assert slurm.asked("scancel") == ["scancel --quiet 17_1", "scancel --quiet --signal=INT --batch 17_0"]
    engine.stop(["lab-1"], kill=True)
    assert slurm.asked("scancel")[2:] == [
        "scancel --quiet --signal=KILL --batch 17_0",
        "scancel --quiet 17_0",
    ]


def test_the_controller_is_not_asked_too_often(slurm: FakeSlurm) -> None:
    slurm.does("squeue", "echo '17_0|RUNNING|None|cn1|lab-1'")
    engine = slurm.engine(SlurmOptions(poll_seconds=1000.0))
    assert [engine.members() for _ in range(5)] == [engine.members()] * 5
    assert len(slurm.asked("squeue")) == 1
    for act in (lambda: engine.start([]), lambda: engine.stop([])):
        act()
        asked = len(slurm.asked("squeue"))
        engine.members()
        assert len(slurm.asked("squeue")) == asked + 1


def test_a_log_that_is_not_here_says_why(slurm: FakeSlurm) -> None:
    engine = slurm.engine()
    for name in ("lab-1", "../../etc/passwd"):
        with pytest.raises(UserError, match="has not begun, or this host does not share that folder"):
            engine.log(name, 10)


LAUNCH_WITHOUT_KEY = WorkerLaunch("run", "lab", "gpu-box:5555", 50)
