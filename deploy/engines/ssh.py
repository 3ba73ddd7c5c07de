"""The engine of hosts that are reached by ssh: workers that outlive connection and supervisor.

Who runs where is asked of the hosts. In this process is only what no host knows: who waits for a place, and
who was seen on a host that does not answer now.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

from deploy.engines import Member, WorkerLaunch, worker_arguments
from deploy.engines.remote import Command, InFolder, Process, RemoteProcesses, Word, file_name
from deploy.engines.remote_python import HostPython, find, install
from deploy.engines.ssh_roll import Roll
from deploy.engines.ssh_scripts import HostError, Ssh, SshLogin
from deploy.engines.tunnel import Tunnel
from deploy.engines.wheel import Package, read_package, running_package
from protocol.errors import UserError

logger = logging.getLogger(__name__)

_SILENT_SECONDS = 30.0
"""A host that did not answer is not asked again for so long, unless workers are to be started."""
_TUNNEL_SECONDS = 30.0
_KEY = "key"

Answers = Mapping[str, Sequence[Process] | HostError]


@dataclass(frozen=True, slots=True)
class SshOptions:
    """What a pool of this engine may be told."""

    hosts: tuple[str, ...]
    """As `ssh` takes them: names of its config, or USER@HOST."""
    per_host: int | Literal["cores"] = "cores"
    """Workers on each host; `cores`: as many as it has cores that may be used."""
    user: str = ""
    ssh_config: Path | None = None
    """A file instead of ~/.ssh/config."""
    ssh_options: tuple[str, ...] = ()
    """As `ssh -o` takes them, such as "ProxyJump=gate"."""
    connect_seconds: int = 10
    python: str = "python3"
    """Of the hosts: one that has rollout-fleet, or, with `install`, one to make an environment with."""
    install: bool = False
    """Put this release into a virtual environment of each host that does not have it."""
    install_folder: str = "~/.local/share/rollout-fleet"
    """Where on the hosts those environments lie."""
    wheel: Path | None = None
    """What is installed, instead of the release that runs here."""
    pip_options: tuple[str, ...] = ()
    """Of `pip install`, such as "--index-url=URL"."""
    tunnel: bool = False
    """Carry the learner's ports through ssh. Then `learner` is its address as this machine reaches it."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense; let no path depend on the folder that this process works in."""
        if not self.hosts:
            raise UserError('--hosts is empty: name some, such as hosts = ["cpu[01-16]"]')
        if isinstance(self.per_host, int) and self.per_host < 1:
            raise UserError(f"--per-host is {self.per_host}; it must be positive")
        if self.connect_seconds < 1:
            raise UserError(f"--connect-seconds is {self.connect_seconds}; it must be positive")
        for name in ("ssh_config", "wheel"):
            if path := getattr(self, name):
                object.__setattr__(self, name, Path(os.path.abspath(path.expanduser())))
        if self.wheel and not self.install:
            raise UserError("--wheel is what install = true installs: set that too")


def worker_command(launch: WorkerLaunch, name: str, python: Word) -> Command:
    """Return the command that is a worker of another host.

    `launch.learner` is its address there; the key has to be in the folder of its processes.
    """
    arguments = worker_arguments(replace(launch, key=None), name)
    key: Command = ["--key", InFolder(_KEY)] if launch.key else []
    return [python, "-P", "-m", "rollout_worker", *arguments, *key]


class SshEngine:
    """Workers of a pool on hosts reached by ssh."""

    def __init__(self, launch: WorkerLaunch, options: SshOptions, folder: Path) -> None:
        self._launch, self._options, self._folder = launch, options, folder
        self._ssh = Ssh(
            SshLogin(options.user, options.ssh_config, options.ssh_options, options.connect_seconds)
        )
        self._processes = RemoteProcesses(self._ssh, launch.run, "pools", launch.pool)
        self._roll = Roll()
        self._waiting: dict[str, str] = {}
        """Who has no place yet, and why."""
        self._avoid: frozenset[str] = frozenset()
        self._answers: Answers = {}
        """The last ones."""
        self._silent: dict[str, tuple[float, HostError]] = {}
        """Hosts that are not asked before this time, and why."""
        self._refusals: dict[str, tuple[float, HostError]] = {}
        """Hosts that cannot have workers, and are not looked at again before this time."""
        self._pythons: dict[str, HostPython] = {}
        self._tunnels: dict[str, Tunnel] = {}

    def members(self) -> Sequence[Member]:
        """Ask all hosts; who waits for a place gets one that has become free."""
        answers, running = self._look()
        if self._options.tunnel:
            for host in {member.host for member in running.values()}:
                self._tunnel(host)
        placed = self._place(list(self._waiting), answers, patient=True) if self._waiting else []
        return [*self._roll.ended(), *running.values(), *placed]

    def start(self, names: Sequence[str], avoid: Collection[str] = ()) -> Sequence[Member]:
        """Start workers on the hosts with the most room, installing there first if told so."""
        self._avoid = frozenset(avoid)
        self._silent.clear()
        self._refusals.clear()
        answers, running = self._look()
        new = dict.fromkeys([*self._waiting, *names])
        placed = self._place([name for name in new if name not in running], answers)
        for member in placed:
            if member.state == "failed" and member.name not in names:
                self._roll.tell(member)
        there = running | {member.name: member for member in placed}
        return [there[name] for name in names]

    def stop(self, names: Collection[str], *, kill: bool = False) -> None:
        """Signal workers. Raises UserError where no host could be told to."""
        for name in names:
            self._waiting.pop(name, None)
        if not all(map(self._roll.host_of, names)):
            self._look()
        by_host: dict[str, list[str]] = {}
        for name in names:
            if host := self._roll.host_of(name):
                self._roll.stopping(name)
                by_host.setdefault(host, []).append(name)
        done = self._ssh.each(by_host, lambda host: self._processes.stop(host, by_host[host], kill=kill))
        failed = [result for result in done.values() if isinstance(result, HostError)]
        for error in failed:
            logger.warning("%s: not stopped: %s", self._launch.pool, error)
        if failed and len(failed) == len(done):
            raise UserError(f"not stopped: {'; '.join(map(str, failed))}")

    def log(self, name: str, lines: int) -> str:
        """Return the end of a log; "" where no host has one."""
        host = self._roll.host_of(name)
        answers = self._ssh.each(
            [host] if host else self._options.hosts, lambda one: self._processes.log(one, name, lines)
        ).values()
        for answer in answers:
            if isinstance(answer, str):
                return answer
        for answer in answers:
            if isinstance(answer, HostError):
                raise answer
        return ""

    def capacity(self) -> int:
        """Return how many workers these hosts may have; 1 for each that cannot tell, so that it is tried."""
        answers = self._answers or self._look()[0]
        found = self._ssh.each(answers, lambda host: self._places(host, answers[host]))
        return sum(1 if isinstance(places, HostError) else places for places in found.values())

    def close(self) -> None:
        """Take down tunnels and shared connections; the workers go on."""
        for tunnel in self._tunnels.values():
            tunnel.close()
        self._tunnels.clear()
        self._ssh.close()

    def _look(self) -> tuple[Answers, dict[str, Member]]:
        """Ask the hosts and take note; return their answers, and who runs."""
        now = time.monotonic()
        silent = {host: error for host, (until, error) in self._silent.items() if now < until}
        asked = (host for host in self._options.hosts if host not in silent)
        answers = {**self._ssh.each(asked, self._processes.list), **silent}
        self._answers, now = answers, time.monotonic()
        running: dict[str, Member] = {}
        for host, answer in answers.items():
            if isinstance(answer, HostError) and host not in silent:
                self._silent[host] = now + _SILENT_SECONDS, answer
            running |= {member.name: member for member in self._roll.note(host, answer, now)}
        return answers, running

    def _place(self, names: Sequence[str], answers: Answers, *, patient: bool = False) -> Sequence[Member]:
        """Start workers where there is room; the rest waits.

        Of hosts that cannot have workers each gets one to fail, so that it is told; all, if no host can. With
        `patient` these wait too.
        """
        rooms = self._rooms([host for host in self._options.hosts if host not in self._avoid], answers)
        room = {host: found for host, found in rooms.items() if isinstance(found, int)}
        refused = [found for found in rooms.values() if isinstance(found, HostError)]
        rest, plan = list(names), dict[str, list[str]]()
        fail = 0 if patient else min(len(rest), len(refused)) if room else len(rest)
        told = [
            Member(rest.pop(0), error.host, "failed", error.reason) for error in islice(cycle(refused), fail)
        ]
        while rest and room and room[best := max(room, key=lambda host: room[host])] > 0:
            plan.setdefault(best, []).append(rest.pop(0))
            room[best] -= 1
        for host, started in self._ssh.each(plan, lambda host: self._start_on(host, plan[host])).items():
            now = time.monotonic()
            if isinstance(started, HostError):
                told += [Member(name, host, "failed", started.reason) for name in plan[host]]
            else:
                told += [self._roll.started(name, host, now) for name in plan[host]]
        reason = f"all places of {len(room)} hosts are taken" if room else "no host can have it"
        self._waiting = dict.fromkeys(rest, "; ".join([reason, *map(str, refused)]))
        return [*told, *(Member(name, "", "pending", why) for name, why in self._waiting.items())]

    def _rooms(self, hosts: Sequence[str], answers: Answers) -> Mapping[str, int | HostError]:
        """Return how many more workers each host may have, or why none."""

        def room(host: str) -> int:
            answer = answers[host]
            if isinstance(answer, HostError):
                raise answer
            self._python(host)
            return self._places(host, answer) - sum(process.alive for process in answer)

        return self._ssh.each(hosts, room)

    # One host

    def _places(self, host: str, answer: Sequence[Process] | HostError) -> int:
        """Return how many workers a host may have. HostError where only it could tell."""
        if self._options.per_host != "cores":
            return self._options.per_host
        if host not in self._pythons and isinstance(answer, HostError):
            raise answer
        return self._python(host).cores

    def _python(self, host: str) -> HostPython:
        """Return what workers of a host run on; installed there if so told. Raises HostError."""
        if host in self._pythons:
            return self._pythons[host]
        until, refusal = self._refusals.get(host, (0.0, None))
        if refusal and time.monotonic() < until:
            raise refusal
        options = self._options
        try:
            if options.install:
                folder, pip_options = options.install_folder, options.pip_options
                found = install(self._ssh, host, options.python, self._package, folder, pip_options)
            else:
                found = find(self._ssh, host, options.python)
        except HostError as error:
            self._refusals[host] = time.monotonic() + _SILENT_SECONDS, error
            raise
        self._pythons[host] = found
        return found

    def _start_on(self, host: str, names: Sequence[str]) -> None:
        """Start workers on a host that is ready for them."""
        launch = self._launch
        if self._options.tunnel:
            tunnel = self._tunnel(host)
            if not tunnel:
                raise HostError(host, "another process keeps this run's tunnel to it")
            launch = replace(launch, learner=tunnel.learner(_TUNNEL_SECONDS))
        python = self._python(host).python
        commands = {name: worker_command(launch, name, python) for name in names}
        self._processes.start(host, commands, {_KEY: _text(launch.key)} if launch.key else {})

    def _tunnel(self, host: str) -> Tunnel | None:
        """Return the tunnel to a host, dug now if need be; None where another process keeps it."""
        if host not in self._tunnels:
            launch = self._launch
            lock = self._folder / "fleet" / f"tunnel-{file_name(launch.pool)}-{file_name(host)}.lock"
            with suppress(BlockingIOError):
                purpose = (launch.run, "tunnels", launch.pool)
                self._tunnels[host] = Tunnel(self._ssh, host, launch.learner, purpose, lock)
        return self._tunnels.get(host)

    @cached_property
    def _package(self) -> Package:
        return read_package(self._options.wheel) if self._options.wheel else running_package()


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; it is to be the workers' key") from None
