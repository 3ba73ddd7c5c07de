"""What a host is told over ssh, word for word, read by a real shell; and what is made of its answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import protocol
from deploy.engines import Member, WorkerLaunch
from deploy.engines.remote import InFolder, InHome, Process, file_name, folder_of, start_script, word
from deploy.engines.remote_python import in_home, install_script
from deploy.engines.ssh import SshOptions, worker_command
from deploy.engines.ssh_roll import UNKNOWN_SECONDS, Roll
from deploy.engines.ssh_scripts import HostError, Ssh, SshLogin, explain
from deploy.engines.tunnel import forwardings, through
from deploy.engines.wheel import Package, read_package, running_package
from protocol.errors import UserError

SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]
NASTY = [
    "",
    " ",
    "'",
    '"',
    "\\",
    "$HOME",
    "`id`",
    "$(id)",
    "a b",
    "-n",
    "*",
    "~",
    "\n",
    "!x",
    "#",
    "é",
    "%s",
    ";&|",
]
texts = st.one_of(
    st.sampled_from(NASTY), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
)


def shell_command(name: str) -> list[str]:
    return [name, "sh"] if name == "busybox" else [name]


@pytest.mark.parametrize("shell", SHELLS)
@settings(max_examples=30)
@example(NASTY)
@given(st.lists(texts, min_size=1, max_size=20))
def test_a_shell_reads_every_argument_as_it_was(shell: str, arguments: list[str]) -> None:
    script = f"printf '%s\\0' {' '.join(map(word, arguments))}"
    read = subprocess.run([*shell_command(shell), "-c", script], capture_output=True, check=True).stdout
    assert read.decode().split("\0")[:-1] == arguments


@example("a~b")
@given(texts)
def test_any_name_is_one_for_a_file_and_a_word_of_a_shell(name: str) -> None:
    made = file_name(name)
    assert "/" not in made and not made.startswith((".", "-", "~"))
    assert word(made) == (made or "''"), "a shell needs no quotes for it"


@settings(max_examples=10)
@given(run=texts, pool=texts, name=texts.filter(bool), module=texts)
@example(run="it's", pool='a "b"', name="../x y", module="$(id)")
def test_a_started_worker_gets_its_words_its_key_and_its_folder(
    tmp_path_factory: pytest.TempPathFactory, run: str, pool: str, name: str, module: str
) -> None:
    home = tmp_path_factory.mktemp("home")
    (home / "bin dir").mkdir()
    python = home / "bin dir" / "py'thon"
    python.write_text('#!/bin/sh\nprintf \'%s\\0\' "$@" > "$HOME/said" && mv "$HOME/said" "$HOME/done"\n')
    python.chmod(0o755)
    launch = WorkerLaunch(run, pool, "box:5555", 3, Path("unread"), (module,))
    command = worker_command(launch, name, InHome("bin dir/py'thon"))
    script = start_script(folder_of(run, pool, "a host"), {name: command}, {"key": "it's\nsecret"})
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    done = subprocess.run(["sh", "-s"], input=script, text=True, capture_output=True, env=environment)
    assert (done.stdout, done.stderr, done.returncode) == (f"started {file_name(name)}\n", "", 0)
    deadline = time.monotonic() + 30
    while not (home / "done").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    said = (home / "done").read_bytes().decode().split("\0")[:-1]  # text mode would change \r
    key = said.pop(said.index("--key") + 1)
    assert said == [
        *("-P", "-m", "rollout_worker", "--learner", "box:5555", "--slots", "3"),
        *("--pool", pool, "--label", name, "--allow-env", module, "--key"),
    ]
    assert Path(key).read_text() == "it's\nsecret"
    assert Path(key).stat().st_mode & 0o777 == 0o600
    assert Path(key).is_relative_to(home / ".local/state/rollout-fleet")
    assert Path(key).parent.stat().st_mode & 0o077 == 0, "nobody else may look into the folder"


def test_asking_twice_at_the_same_time_starts_once(tmp_path: Path) -> None:
    script = start_script(folder_of("run"), {"one": ["sleep", "60"]}, {})
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    asked = [
        subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(8)
    ]
    said = sorted(process.communicate()[0] for process in asked)
    pid = int((tmp_path / ".local/state/rollout-fleet/run/one.pid").read_text().split()[0])
    os.kill(pid, 9)
    assert said == ["running one\n"] * 7 + ["started one\n"]


def test_another_process_that_got_the_number_is_not_taken_for_the_worker(tmp_path: Path) -> None:
    folder = tmp_path / ".local/state/rollout-fleet/run"
    folder.mkdir(parents=True)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    began = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19]
    for name, line in (
        ("same", f"{os.getpid()} {began} {boot}"),
        ("later", f"{os.getpid()} {int(began) - 1} {boot}"),
        ("rebooted", f"{os.getpid()} {began} 00000000-0000-0000-0000-000000000000"),
        ("torn", f"{os.getpid()}"),
        ("empty", ""),
    ):
        (folder / f"{name}.pid").write_text(f"{line}\n")
    script = (
        start_script(folder_of("run"), {}, {})
        + "\nlist\nfor n in later rebooted torn empty; do stop KILL $n; done"
    )
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=environment, check=True)
    kinds = {line.split()[1]: line.split()[0] for line in done.stdout.splitlines()}
    assert kinds == {"same": "running", "later": "dead", "rebooted": "dead", "torn": "dead", "empty": "dead"}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("ssh: connect to host a port 22: Connection timed out", "does not answer ("),
        ("ssh: connect to host a port 22: Connection refused", "refuses the connection"),
        ("ssh: connect to host a port 22: No route to host", "cannot be reached"),
        ("ssh: Could not resolve hostname a: Name or service not known", "no host of that name is known"),
        (
            "root@a: Permission denied (publickey).",
            "refuses the key (root@a: Permission denied (publickey).)",
        ),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "its host key has changed",
        ),
        ("No ED25519 host key is known for a.\nHost key verification failed.", "its host key is not known"),
        ("pip: no\nERROR: [Errno 28] No space left on device\n", "its disk is full"),
        ("ERROR: No matching distribution found for numba>=0.61", "cannot fetch packages"),
        ("ERROR: what it is\n[notice] hint", "ERROR: what it is"),
        ("first\nsomething new\n\n", "something new"),
        ("", "its shell ended with status 3"),
    ],
)
def test_what_ssh_says_becomes_one_line(said: str, reason: str) -> None:
    told = explain(said, 3)
    assert told.startswith(reason)
    assert "\n" not in told


def test_a_tunnel_carries_four_ports_an_address() -> None:
    assert forwardings("box:5555,[::1]:6000", 20000) == [
        *(f"127.0.0.1:{20000 + index}:box:{5555 + index}" for index in range(4)),
        *(f"127.0.0.1:{20004 + index}:[::1]:{6000 + index}" for index in range(4)),
    ]
    assert through("box:5555,[::1]:6000", 20000) == "127.0.0.1:20000,127.0.0.1:20004"


def test_the_users_own_options_come_first_and_a_host_is_never_an_option() -> None:
    command = Ssh(SshLogin("me", None, ("ProxyJump=gate", "ConnectTimeout=3"))).command("-oProxyCommand=id")
    assert command.index("ConnectTimeout=3") < command.index("ConnectTimeout=10")
    assert command[-2:] == ["--", "-oProxyCommand=id"]


def test_a_silent_host_keeps_its_workers_for_a_while() -> None:
    roll = Roll()
    silence = HostError("a", "does not answer")
    roll.started("w-1", "a", 0.0)
    assert roll.note("a", silence, UNKNOWN_SECONDS) == [
        Member("w-1", "a", "running", "state unknown: does not answer")
    ]
    assert not roll.ended()
    assert roll.note("a", silence, UNKNOWN_SECONDS + 1) == []
    (lost,) = roll.ended()
    assert (lost.name, lost.host, lost.state) == ("w-1", "a", "failed")
    assert not roll.ended(), "told once"
    assert roll.note("a", [Process("w-1", alive=True)], 99.0) == [Member("w-1", "a", "running")]


def test_only_an_end_that_nobody_asked_for_is_told() -> None:
    roll = Roll()
    for name in ("crashed", "stopped", "vanished"):
        roll.started(name, "a", 0.0)
    roll.stopping("stopped")
    dead = [Process("crashed", alive=False, last_words="boom"), Process("long-dead", alive=False)]
    assert roll.note("b", [], 1.0) == [], "another host knows nothing of them"
    assert roll.note("a", dead, 1.0) == []
    assert [(member.name, member.detail) for member in roll.ended()] == [
        ("crashed", "ended: boom"),
        ("vanished", "gone, and its host knows nothing of it"),
    ]


def test_paths_of_a_host_begin_at_its_home() -> None:
    assert in_home("~/a b") == InHome("a b")
    assert word(in_home("~/a b")) == "\"$HOME\"/'a b'"
    assert in_home("/opt/~") == "/opt/~"
    assert word(InFolder("key")) == '"$folder"/key'


def test_the_wheel_of_what_runs_is_the_same_each_time_and_whole(tmp_path: Path) -> None:
    package = running_package()
    assert package == running_package() and package.build == running_package().build
    with zipfile.ZipFile(BytesIO(package.content)) as wheel:
        names = set(wheel.namelist())
        record = wheel.read(f"rollout_fleet-{protocol.VERSION}.dist-info/RECORD").decode().splitlines()
    assert {"deploy/engines/ssh.py", "protocol/py.typed", "rollout_worker/__main__.py"} <= names
    assert {line.split(",")[0] for line in record} == names
    assert not any("__pycache__" in name for name in names)
    (tmp_path / package.file_name).write_bytes(package.content)
    assert read_package(tmp_path / package.file_name).build == package.build


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"hosts": ()}, "--hosts"),
        ({"per_host": 0}, "--per-host is 0"),
        ({"connect_seconds": 0}, "--connect-seconds is 0"),
        ({"wheel": Path("a.whl")}, "install = true"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        SshOptions(**{"hosts": ("a",), **options})  # type: ignore[arg-type]  # that is the point


def test_paths_here_do_not_depend_on_where_a_process_works() -> None:
    options = SshOptions(("a",), ssh_config=Path("~/conf"), install=True, wheel=Path("x.whl"))
    assert options.ssh_config == Path.home() / "conf"
    assert options.wheel == Path.cwd() / "x.whl"
    with pytest.raises(UserError, match="No such file"):
        read_package(Path("/nowhere/x.whl"))
    with pytest.raises(UserError, match="no wheel"):
        read_package(Path("x.txt"))


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_accept_the_scripts(shell: str) -> None:
    install = install_script(
        word(in_home("~/x")), "1-2", "python3", Package("a b.whl", b"\0" * 10**5), ["--x='"]
    )
    for script in (install, start_script(folder_of("run"), {"a": ["b"]}, {})):
        done = subprocess.run([*shell_command(shell), "-n"], input=script, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
