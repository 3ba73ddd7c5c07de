"""The ssh engine with real ssh servers: each host is a network namespace with a home folder of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import deploy.engines.ssh
import protocol
from deploy.engines import Member, WorkerLaunch
from deploy.engines.remote import word
from deploy.engines.ssh import SshEngine, SshOptions
from deploy.engines.ssh_scripts import Ssh, SshLogin
from deploy.engines.wheel import running_package
from deploy.query import ask
from protocol.errors import UserError
from rollout_worker.environments.cage2.compilation import CACHE_FOLDER
from tests.end_to_end.fleet_processes import Fleet
from tests.namespaces import Host, Namespaces, Sshd, needs_sshd

pytestmark = needs_sshd

DEADLINE_SECONDS = 60.0
STUB = """#!/bin/sh
[ "$1" = -c ] && exec {python} "$@"
echo "worker $*"
trap '[ -e "$HOME/deaf" ] || {{ echo terminated; exit 0; }}' TERM
while :; do sleep 0.1; done
"""
"""Answers as the Python of a host; as a worker it only waits."""


class Site:
    """Two hosts, `one` and `two`, and a config for `ssh` that knows them and others with something wrong."""

    def __init__(self, hosts: Namespaces, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        self.config = folder / "ssh_config"
        self.homes: dict[str, Path] = {}
        self.engines: list[SshEngine] = []
        self.servers: dict[str, Sshd] = {}
        for name, host in zip(("one", "two"), hosts, strict=True):
            self.homes[name] = folder / f"home of '{name}'"
            self.homes[name].mkdir()
            self.servers[name] = host.run_sshd(
                folder / name,
                environment={
                    "HOME": str(self.homes[name]),
                    "NUMBA_CACHE_DIR": str(CACHE_FOLDER.parent),
                    # Instead of packages that an installation would fetch.
                    "PYTHONPATH": sysconfig.get_path("purelib"),
                },
                options=["ListenAddress 127.0.0.1:2222"],
            )
        one, nobody = self.servers["one"], hosts.address.replace(".254", ".99")
        neighbour = ["ip", "neigh", "add", nobody, "lladdr", "02:00:00:00:00:99", "dev", hosts.bridge]
        subprocess.run(neighbour, check=True)  # or this machine would know that nobody is there
        blocks = [server.client_config(name) for name, server in self.servers.items()]
        blocks += [
            one.client_config("down").replace(one.address, nobody),
            one.client_config("refusing").replace("Port 22", "Port 23"),
            one.client_config("nameless").replace(one.address, "no-such-host.invalid"),
            one.client_config("stranger").replace("host_key", "-").replace("known_hosts", "none_known"),
            one.client_config("changed").replace("one/known_hosts", "wrong_hosts"),
            one.client_config("keyless").replace("one/client_key", "two/client_key"),
            one.client_config("inner").replace(one.address, "127.0.0.1").replace("Port 22", "Port 2222")
            + f"  HostKeyAlias {one.address}\n  ProxyJump one\n",
        ]
        theirs = (folder / "two/host_key.pub").read_text().split()
        (folder / "wrong_hosts").write_text(f"{one.address} {theirs[0]} {theirs[1]}\n")
        self.config.write_text("".join(blocks))
        self.stub = folder / "stub python"
        self.stub.write_text(STUB.format(python=sys.executable))
        self.stub.chmod(0o755)

    def engine(self, *hosts: str, launch: WorkerLaunch | None = None, **options: object) -> SshEngine:
        """Return an engine of its own; without further options its workers only wait."""
        given = {"python": str(self.stub), "ssh_config": self.config, "connect_seconds": 5, "per_host": 4}
        chosen = SshOptions(hosts, **{**given, **options})  # type: ignore[arg-type]  # as a test says
        launch = launch or WorkerLaunch("run", "lab", "127.0.0.1:1", 2)
        self.engines.append(SshEngine(launch, chosen, self.folder))
        return self.engines[-1]

    def script(self, host: str, text: str) -> str:
        ssh = Ssh(SshLogin(config=self.config))
        try:
            return ssh.run(host, text)
        finally:
            ssh.close()

    def clear(self) -> None:
        """End all but the servers, and empty the homes."""
        for engine in self.engines:
            engine.close()
        self.engines.clear()
        for host, server in zip(self.hosts, self.servers.values(), strict=True):
            host.plug_in()
            for pid in set(host.pids()) - {server.process.pid}:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for home in self.homes.values():
            (home / "deaf").unlink(missing_ok=True)
            subprocess.run(["rm", "-rf", home / ".local"], check=True)


@pytest.fixture(scope="module")
def whole_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Namespaces(2) as hosts:
        yield Site(hosts, tmp_path_factory.mktemp("site"))


@pytest.fixture
def site(whole_site: Site) -> Iterator[Site]:
    yield whole_site
    whole_site.clear()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"in {DEADLINE_SECONDS:.0f} s it did not come true that {what}"
        time.sleep(0.05)


def brief(members: object) -> set[tuple[str, str, str]]:
    assert isinstance(members, list)
    return {(member.name, member.host, member.state) for member in members}


def worker_pids(host: Host) -> set[int]:
    """Return the processes on a host that are workers, stub or not, and were not forked off one."""
    parents = {}
    for pid in host.pids():
        with suppress(OSError):
            if b"rollout_worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    return {pid for pid, parent in parents.items() if parent not in parents}


def test_workers_are_started_once_found_by_others_and_stopped(site: Site) -> None:
    engine, other = site.engine("one", "two"), site.engine("one", "two")
    started = engine.start(["lab-1", "lab-2", "lab-3"])
    assert brief(started) == {
        ("lab-1", "one", "running"),
        ("lab-2", "two", "running"),
        ("lab-3", "one", "running"),
    }
    pids = [worker_pids(host) for host in site.hosts]
    assert [len(found) for found in pids] == [2, 1]
    assert brief(other.members()) == brief(started), "who runs where is asked of the hosts"
    assert brief(other.start(["lab-3", "lab-2"])) == brief(started[1:]), "it runs already"
    engine.close()  # the workers go on without connection or engine
    assert [worker_pids(host) for host in site.hosts] == pids
    wait_until(lambda: "--label lab-2" in other.log("lab-2", 5), "the log says what was started")
    assert other.log("lab-9", 5) == ""

    other.stop(["lab-1", "lab-2"])
    wait_until(lambda: brief(other.members()) == {("lab-3", "one", "running")}, "two have ended")
    assert other.log("lab-2", 1) == "terminated\n", "the log outlives its worker"
    os.kill(worker_pids(site.hosts[0]).pop(), signal.SIGKILL)
    wait_until(lambda: brief(other.members()) == {("lab-3", "one", "failed")}, "a death is told")
    assert other.members() == [], "once"


def test_a_worker_that_does_not_listen_is_killed(site: Site) -> None:
    (site.homes["one"] / "deaf").touch()
    engine = site.engine("one")
    engine.start(["lab-1"])
    wait_until(lambda: "worker" in engine.log("lab-1", 5), "it runs")
    engine.stop(["lab-1"])
    assert engine.members() == [Member("lab-1", "one", "running", "is asked to end")]
    engine.stop(["lab-1"], kill=True)
    wait_until(lambda: engine.members() == [], "it is gone, which is nothing to tell")
    assert not worker_pids(site.hosts[0])


def test_more_than_there_is_room_for_waits_until_there_is(site: Site) -> None:
    engine = site.engine("one", "two", per_host=1)
    assert engine.capacity() == 2
    told = engine.start(["lab-1", "lab-2", "lab-3", "lab-4"], avoid=["two"])
    assert brief(told[:1]) == {("lab-1", "one", "running")}
    assert told[1:] == [
        Member(f"lab-{n}", "", "pending", "all places of 1 hosts are taken") for n in (2, 3, 4)
    ]
    engine.stop(["lab-1", "lab-4"])
    wait_until(lambda: ("lab-2", "one", "running") in brief(engine.members()), "it got the place")
    assert brief(engine.members()) == {("lab-2", "one", "running"), ("lab-3", "", "pending")}


def test_every_host_that_cannot_have_workers_says_why_in_one_line(site: Site) -> None:
    old = site.folder / "old"
    old.write_text("#!/bin/sh\necho python 3.9\necho cores 2\n")
    other_release = site.folder / "other"
    other_release.write_text("#!/bin/sh\necho python 3.12\necho cores 2\necho version 0.0.7\n")
    bare = site.folder / "bare"
    bare.write_text("#!/bin/sh\necho python 3.12\necho cores 2\n")
    for script in (old, other_release, bare):
        script.chmod(0o755)
    reasons = {
        "down": "does not answer .*timed out",
        "refusing": "refuses the connection",
        "nameless": "no host of that name is known",
        "stranger": "its host key is not known here",
        "changed": "its host key has changed",
        "keyless": r"refuses the key .*Permission denied \(publickey\)",
    }
    engine = site.engine("two", *reasons)
    told = engine.start([f"lab-{n}" for n in range(8)])
    failed = {member.host: member for member in told if member.state == "failed"}
    assert failed.keys() == reasons.keys(), "one of each is told"
    for host, reason in reasons.items():
        assert re.match(reason, failed[host].detail), failed[host]
        assert "\n" not in failed[host].detail
    assert [member.host for member in told if member.state == "running"] == ["two", "two"], "partial success"

    for python, reason in (
        (old, "is Python 3.9, a worker needs 3.11 or newer"),
        (other_release, f"has rollout-fleet 0.0.7, this fleet is {protocol.VERSION}"),
        (bare, "has no rollout-fleet: set install = true"),
        ("/nowhere/python", "no /nowhere/python there"),
    ):
        engine = site.engine("one", python=str(python))
        (member,) = engine.start(["lab-1"])
        assert member.state == "failed" and reason in member.detail, member
    with pytest.raises(UserError, match="ssh_config"):
        site.engine("one", ssh_config=Path("/nowhere/config")).members()


def test_a_host_that_falls_silent_keeps_its_workers_in_doubt(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy.engines.ssh, "_SILENT_SECONDS", 0.0)
    quick = ("ServerAliveInterval=2", "ServerAliveCountMax=2")
    engine = site.engine("one", "two", ssh_options=quick, connect_seconds=2)
    engine.start(["lab-1", "lab-2"])
    pids = worker_pids(site.hosts[1])
    site.hosts[1].unplug()
    wait_until(lambda: any("unknown" in member.detail for member in engine.members()), "it falls silent")
    assert brief(engine.members()) == {("lab-1", "one", "running"), ("lab-2", "two", "running")}
    told = engine.start(["lab-2"])
    assert told[0].detail.startswith("state unknown"), "no second copy anywhere"
    with pytest.raises(UserError, match="not stopped: two: "):
        engine.stop(["lab-2"])
    site.hosts[1].plug_in()
    wait_until(lambda: all("unknown" not in member.detail for member in engine.members()), "it is back")
    assert worker_pids(site.hosts[1]) == pids
    assert len(worker_pids(site.hosts[0])) == 1


def test_what_a_login_shell_says_of_itself_is_not_taken_for_an_answer(site: Site) -> None:
    for number, (forced, told) in enumerate(
        (
            ('echo "Welcome!"; echo running lab-7; exec sh -c "$SSH_ORIGINAL_COMMAND"', ""),
            ("echo This account is currently not available.", "runs no commands: This account is"),
        )
    ):
        folder = site.folder / f"forced {number}"
        server = site.hosts[0].run_sshd(
            folder,
            port=2300 + number,
            environment={"HOME": str(site.homes["one"])},
            options=[f"ForceCommand {forced}"],
        )
        (folder / "config").write_text(server.client_config("forced"))
        engine = site.engine("forced", ssh_config=folder / "config")
        (member,) = engine.start(["lab-1"])
        assert member.state == ("failed" if told else "running") and told in member.detail, member
        assert len(engine.members()) == (0 if told else 1)


def test_jump_hosts_and_sessions_of_the_users_own_are_used(site: Site) -> None:
    assert site.script("inner", 'echo "$HOME"') == f"{site.homes['one']}\n"
    control = site.folder / "mine"
    mine = ["ssh", "-F", str(site.config), "-o", f"ControlPath={control}"]
    subprocess.run([*mine, "-fN", "-o", "ControlMaster=yes", "one"], check=True)
    ssh = Ssh(SshLogin(config=site.config, options=(f"ControlPath={control}", "IdentityFile=none")))
    assert ssh.run("one", "echo in") == "in\n", "over the session that is open: no key would do"
    ssh.close()
    subprocess.run([*mine, "-O", "exit", "one"], check=True, capture_output=True)


def ended(engine: SshEngine, count: int) -> list[Member]:
    """Wait until so many of its workers have ended by themselves."""
    found: list[Member] = []

    def all_ended() -> bool:
        found.extend(member for member in engine.members() if member.state == "failed")
        return len(found) == count

    wait_until(all_ended, f"{count} workers have ended")
    return found


def knows(learner: str, label: str) -> bool:
    return any(worker["label"] == label for worker in ask(learner, "status")["workers"])


def test_workers_train_a_learner_directly_and_through_a_tunnel(site: Site, fleet: Fleet) -> None:
    learner, port = fleet.learner(
        *("--bind", site.hosts.address, "--insecure", "--evaluation-episodes", 0),
        *("--total-episodes", 200, "--episodes-per-update", 40),
    )
    address = f"{site.hosts.address}:{port}"
    engines = [
        site.engine(host, launch=WorkerLaunch("run", pool, address, 10), python=sys.executable, tunnel=tunnel)
        for host, pool, tunnel in (("two", "far", True), ("one", "near", False))
    ]
    for engine, name in zip(engines, ("far-1", "near-1"), strict=True):
        (member,) = engine.start([name])
        assert member.state == "running", member
        wait_until(partial(knows, address, name), f"{name} has joined")
    fleet.finish(learner)
    assert fleet.json("ledger", "run")["train"]["consumed"] == [[0, 200]]
    for engine in engines:
        assert "exit status 0" in ended(engine, 1)[0].detail


@contextmanager
def running(program: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program beside the test."""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def answering(host: Host, port: str) -> bool:
    """Return whether somebody at the far end of a tunnel says a word."""
    script = f'exec 3<> /dev/tcp/127.0.0.1/{port} && read -t 5 -n 4 word <&3 && [ "$word" = helo ]'
    return host.run(["bash", "-c", script]).returncode == 0


def test_a_tunnel_comes_back_at_the_same_ports_and_ends_with_its_process(site: Site) -> None:
    with running(SAYS_HELO) as speaker:
        assert speaker.stdout
        launch = WorkerLaunch("run", "lab", f"127.0.0.1:{speaker.stdout.readline().strip()}", 1)
        quick = ("ServerAliveInterval=2", "ServerAliveCountMax=2")
        engine = site.engine("one", launch=launch, tunnel=True, ssh_options=quick)
        engine.start(["lab-1"])
        wait_until(lambda: "--learner" in engine.log("lab-1", 1), "the worker says what it was told")
        port = engine.log("lab-1", 1).split("--learner 127.0.0.1:")[1].split()[0]
        assert answering(site.hosts[0], port)

        tunnel = engine._tunnels["one"]
        assert tunnel._process
        tunnel._process.kill()
        wait_until(lambda: answering(site.hosts[0], port), "it is back after its ssh was killed")
        site.hosts[0].unplug()
        wait_until(lambda: bool(tunnel.trouble), "the silence is noticed here, not there")
        site.hosts[0].plug_in()
        wait_until(lambda: answering(site.hosts[0], port), "it is back although the host held the ports")

        other = site.engine("one", launch=launch, tunnel=True)
        other.members()
        assert not other._tunnels, "one process keeps it"
        engine.close()
        wait_until(lambda: not answering(site.hosts[0], port), "it is gone")
        other.members()
        wait_until(lambda: answering(site.hosts[0], port), "another process keeps it now")


SAYS_HELO = """
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    server.accept()[0].sendall(b"helo")
"""


def test_a_tunnel_does_not_outlive_a_process_that_is_killed(site: Site) -> None:
    script = f"""
from pathlib import Path
from deploy.engines.remote import word
from deploy.query import ask
from deploy.engines.ssh_scripts import Ssh, SshLogin
from deploy.engines.tunnel import Tunnel
ssh = Ssh(SshLogin(config=Path({str(site.config)!r})))
tunnel = Tunnel(ssh, "one", "127.0.0.1:9", ("run", "tunnels", "lab"), Path({str(site.folder / "lock")!r}))
print(tunnel.learner(30), flush=True)
input()
"""
    with running(script) as keeper:
        assert keeper.stdout
        port = keeper.stdout.readline().strip().rpartition(":")[2]
        listening = ["bash", "-c", f"exec 3<> /dev/tcp/127.0.0.1/{port}"]
        assert site.hosts[0].run(listening).returncode == 0
        keeper.kill()
        wait_until(lambda: site.hosts[0].run(listening).returncode != 0, "the host is free of it")


@pytest.fixture
def small_disk(site: Site) -> Iterator[Path]:
    folder = site.folder / "small disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_release_is_installed_once(site: Site, small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    package = running_package()
    (site.folder / package.file_name).write_bytes(package.content)
    fresh: dict[str, Any] = {
        "install": True,
        "wheel": site.folder / package.file_name,
        "python": sys.executable,
        "pip_options": ("--no-deps", "--no-index"),
    }
    full = site.engine("two", install_folder=str(small_disk), **fresh)
    (member,) = full.start(["lab-0"])
    assert member.state == "failed" and member.detail.startswith("its disk is full"), member
    assert not list(small_disk.glob("*/*")), "what was begun is removed"

    old = site.homes["one"] / ".local/share/rollout-fleet/0.0.7-abcdef"
    old.mkdir(parents=True)
    used = old.with_name("0.0.8-fedcba") / "bin/python"
    used.parent.mkdir(parents=True)
    used.symlink_to("/bin/sleep")
    site.hosts[1].popen([used, "600"])
    engine = site.engine("one", **fresh)
    (member,) = engine.start(["lab-1"])
    assert member.state == "running", member
    assert "one: installing" in caplog.text
    (made,) = old.parent.glob("*/complete")
    assert not old.exists(), "nobody used that"
    assert used.exists(), "a process did use that"
    (pid,) = worker_pids(site.hosts[0])
    assert f"{made.parent}/bin/python\0".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    said = site.script("one", f"{word(f'{made.parent}/bin/fleet')} --help")
    assert "fleet of rollout workers" in said

    before = made.stat().st_mtime_ns
    again = site.engine("one", **fresh)
    caplog.clear()
    assert again.start(["lab-2"])[0].state == "running"
    assert "installing" not in caplog.text, "it is there"
    assert made.stat().st_mtime_ns == before
    assert [path.name for path in old.parent.iterdir() if path.is_dir() and path != used.parents[1]] == [
        made.parent.name
    ]
