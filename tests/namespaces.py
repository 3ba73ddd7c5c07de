"""Several hosts on one machine: network namespaces on one bridge, with real `sshd`s where they are asked for.

    with Namespaces(2) as hosts:
        hosts[0].popen(["python3", "-m", "http.server", "--bind", hosts[0].address])
        hosts.address  # this process, as the hosts reach it

They share the machine's files and processes; only their network is their own.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pytest


@cache
def lacking(*programs: str) -> str:
    """Return why no namespaces can be had on this machine, or "" where they can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    for program in ("ip", "nsenter", "unshare", *programs):
        if not shutil.which(program):
            return f"needs {program}"
    made = subprocess.run(["unshare", "--net", "true"], capture_output=True)
    return "" if made.returncode == 0 else "this machine lets nobody make network namespaces"


needs_namespaces = pytest.mark.skipif(bool(lacking()), reason=lacking())
needs_sshd = pytest.mark.skipif(
    bool(lacking("sshd", "ssh", "ssh-keygen")), reason=lacking("sshd", "ssh", "ssh-keygen")
)


@dataclass(frozen=True, slots=True)
class Sshd:
    """A running ssh server and what a client needs to log in there as root."""

    address: str
    port: int
    identity: Path
    known_hosts: Path
    folder: Path
    process: subprocess.Popen[bytes]

    def client_config(self, alias: str) -> str:
        """Return what makes `ssh -F FILE ALIAS` reach this server."""
        return (
            f"Host {alias}\n  HostName {self.address}\n  Port {self.port}\n  User root\n"
            f'  IdentityFile "{self.identity}"\n  IdentitiesOnly yes\n'
            f'  UserKnownHostsFile "{self.known_hosts}"\n'
        )

    @property
    def log(self) -> str:
        return (self.folder / "sshd.log").read_text()


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace: an address of its own on the bridge, and a loopback of its own."""

    namespace: str
    """As `ip netns` names it."""
    address: str
    interface: str
    """Its end of the cable, inside the namespace."""
    plug: str
    """The other end, on the bridge: what is done to it, this host cannot see."""

    def popen(self, command: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """Start a command on this host; the process's number is the command's own."""
        return subprocess.Popen(self._entered(command), **options)

    def run(self, command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on this host and wait; its output comes back as text."""
        return subprocess.run(self._entered(command), capture_output=True, text=True, **options)

    def _entered(self, command: Sequence[str | Path]) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.namespace}", "--", *map(str, command)]

    def unplug(self) -> None:
        """Cut this host off: what was connected falls silent, and new connections find no route."""
        _ip("link", "set", self.plug, "nomaster")

    def plug_in(self) -> None:
        """End what `unplug` began."""
        _ip("link", "set", self.plug, "master", _bridge(self.plug))

    def pids(self) -> list[int]:
        """Return the processes on this host."""
        return [int(pid) for pid in _ip("netns", "pids", self.namespace).split()]

    def run_sshd(
        self,
        folder: Path,
        *,
        port: int = 22,
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> Sshd:
        """Start a server with a host key and a client key of its own, all its files in `folder`.

        `environment` is what its sessions find set, such as HOME; `options` are lines of sshd_config, and
        stand before all others, so that they win.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("host_key", "client_key"):
            _make_key(folder / name)
        (folder / "authorized_keys").write_text((folder / "client_key.pub").read_text())
        kind, public, *_ = (folder / "host_key.pub").read_text().split()
        where = self.address if port == 22 else f"[{self.address}]:{port}"
        (folder / "known_hosts").write_text(f"{where} {kind} {public}\n")
        lines = [
            *options,
            *(["SetEnv " + " ".join(f'"{k}={v}"' for k, v in environment.items())] if environment else []),
            f"ListenAddress {self.address}:{port}",
            f'HostKey "{folder}/host_key"',
            f'AuthorizedKeysFile "{folder}/authorized_keys"',
            f'PidFile "{folder}/sshd.pid"',
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UsePAM no",
            "StrictModes no",
            "UseDNS no",
            "MaxStartups 100:30:200",
            "MaxSessions 100",
            "Subsystem sftp internal-sftp",
        ]
        (folder / "sshd_config").write_text("\n".join(lines) + "\n")
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd locks itself up
        sshd = shutil.which("sshd")
        assert sshd, "no sshd: mark the test with needs_sshd"
        with (folder / "sshd.log").open("wb") as log:
            process = self.popen(
                [sshd, "-D", "-e", "-f", folder / "sshd_config"], stdin=subprocess.DEVNULL, stderr=log
            )
        _wait_for_line(folder / "sshd.log", "Server listening", process)
        return Sshd(self.address, port, folder / "client_key", folder / "known_hosts", folder, process)


class Namespaces(Sequence[Host]):
    """So many hosts, while the `with` lasts; afterwards no process, interface or namespace of them is left.

    Each takes a number that no other living test process holds; whatever an earlier holder of the number
    left behind when it was killed is removed first.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._hosts: list[Host] = []

    def __enter__(self) -> Namespaces:
        self._number, self._lock = _free_number()
        self._remove()
        self.bridge = f"rf{self._number}"
        """The interface that joins them, on this side."""
        self.address = f"198.18.{self._number}.254"
        """This process, as the hosts reach it."""
        try:
            _ip("link", "add", self.bridge, "type", "bridge")
            _ip("addr", "add", f"{self.address}/24", "dev", self.bridge)
            _ip("link", "set", self.bridge, "up")
            self._hosts = [self._add(index) for index in range(1, self._count + 1)]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()
        self._lock.close()

    def _add(self, index: int) -> Host:
        host = Host(
            f"{self.bridge}-{index}", f"198.18.{self._number}.{index}", "eth0", f"{self.bridge}-{index}"
        )
        _ip("netns", "add", host.namespace)
        _ip("link", "add", host.plug, "type", "veth", "peer", "eth0", "netns", host.namespace)
        _ip("link", "set", host.plug, "master", self.bridge, "up")
        for command in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{host.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", self.address),
        ):
            _ip("-n", host.namespace, *command)
        return host

    def _remove(self) -> None:
        prefix = f"rf{self._number}"
        named = (line.split()[0] for line in _ip("netns", "list").splitlines())
        namespaces = [name for name in named if name.startswith(f"{prefix}-")]
        deadline = time.monotonic() + 5
        for name in namespaces:
            while pids := _ip("netns", "pids", name).split():
                for pid in map(int, pids):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                if time.monotonic() > deadline:
                    break  # uninterruptible, or a zombie that its parent will reap
                time.sleep(0.01)
            subprocess.run(["ip", "link", "delete", name], capture_output=True)  # gone with it, or before it
            _ip("netns", "delete", name)
        subprocess.run(["ip", "link", "delete", prefix], capture_output=True)  # absent on the first way in

    def __len__(self) -> int:
        return len(self._hosts)

    def __getitem__(self, index: Any) -> Any:
        return self._hosts[index]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def _bridge(plug: str) -> str:
    return plug.rpartition("-")[0]


def _free_number() -> tuple[int, IO[str]]:
    """Return a number that is ours until its lock is closed; the kernel lets go of it if we die."""
    for number in range(1, 250):
        lock = open(Path(tempfile.gettempdir()) / f"rollout-fleet-namespaces-{number}.lock", "w")  # noqa: SIM115  # held
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
        else:
            return number, lock
    raise AssertionError("249 test processes hold namespaces already")


def _make_key(path: Path) -> None:
    if not path.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def _wait_for_line(path: Path, text: str, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 20
    while text not in path.read_text():
        assert process.poll() is None, f"sshd ended with {process.returncode}: {path.read_text()}"
        assert time.monotonic() < deadline, f"no {text!r} in time: {path.read_text()}"
        time.sleep(0.02)
