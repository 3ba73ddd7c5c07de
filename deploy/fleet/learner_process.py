"""The learner's process, here or on a host that ssh reaches: started, found again, asked to end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

from deploy.engines.local import PROCESSES
from deploy.engines.processes import KeptProcesses, last_lines
from deploy.engines.remote import RemoteProcesses, folder_of
from deploy.engines.remote_python import find
from deploy.engines.ssh_scripts import Ssh, SshLogin
from deploy.options import settings
from deploy.runs import FINISHED, OUTCOME, RUNS
from deploy.settings import MAY_CHANGE_ON_RESUME, Settings

NAME = "learner"
OUTPUT = Path("logs") / "learner.out"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a learner runs."""

    host: str = ""
    """As `ssh` takes it; empty for here."""
    python: str = "python3"
    """Of that host: one that has rollout-fleet[learner]."""
    ssh_config: str = ""
    """A file instead of ~/.ssh/config."""


class LearnerProcess(Protocol):
    """One run's learner; methods may take seconds, UserError where its host cannot be asked."""

    def alive(self) -> bool:
        """Return whether it runs."""

    def finished(self, chosen: Settings) -> bool:
        """Return whether the last one ended because its run, as it is wanted, is complete."""

    def start(self, config: str, chosen: Settings) -> None:
        """Begin the run with `config`, the text of a config.toml, or go on with what of it may change."""

    def stop(self, *, kill: bool = False) -> None:
        """Ask it to end at a checkpoint, or end it at once."""

    def log(self, lines: int) -> str:
        """Return the last lines that it printed."""

    def close(self) -> None:
        """Let go of connections."""


def learner_arguments(run: str, name: str, config: str, chosen: Settings, *, resume: bool) -> Sequence[str]:
    """Return the arguments of `fleet` that make a learner of `run`, a folder, at first called `name`.

    `config` is the file that holds `chosen`. A resumed run takes only what may change.
    """
    if not resume:
        return ["learner", "--name", name, "--config", config]
    arguments = ["learner", "--resume", run]
    for part in (chosen.run, chosen.ppo, chosen.launch):
        for entry in fields(part):
            value = getattr(part, entry.name)
            if (
                entry.name not in MAY_CHANGE_ON_RESUME
                or entry.name in ("workers", "slots")
                or value in ("", ())
            ):
                continue
            flag = settings()[entry.name].flags[0].split("/")
            if isinstance(value, bool):
                arguments.append(flag[0] if value else flag[1])
            else:
                texts = value if isinstance(value, tuple) else (value,)
                arguments += [word for text in texts for word in (flag[0], str(text))]
    return arguments


class LocalLearner:
    """A learner on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes = KeptProcesses(folder / PROCESSES)

    def alive(self) -> bool:
        """Return whether it runs."""
        return NAME in self._processes.living()

    def began(self) -> bool:
        """Return whether it ever listened: from then on the run has settings that it goes on with."""
        return (self._folder / "config.toml").is_file()

    def complete(self) -> bool:
        """Return whether the run ended complete, whatever is wanted of it now."""
        return last_lines(self._folder / OUTCOME, 1).startswith(FINISHED)

    def finished(self, chosen: Settings) -> bool:
        """Return whether the run is complete."""
        return _is_finished(last_lines(self._folder / OUTCOME, 1), chosen)

    def start(self, config: str, chosen: Settings) -> None:
        """Begin the run, or go on with it. Raises UserError."""
        file = self._folder / "fleet" / "learner.toml"
        file.write_text(config, encoding="utf-8")
        arguments = learner_arguments(
            str(self._folder), self._folder.name, str(file), chosen, resume=self.began()
        )
        command = [sys.executable, "-P", "-m", "deploy", *arguments]
        self._processes.start(NAME, command, dict(os.environ), self._folder / OUTPUT)

    def stop(self, *, kill: bool = False) -> None:
        """Signal it."""
        self._processes.signal(NAME, signal.SIGKILL if kill else signal.SIGTERM)

    def log(self, lines: int) -> str:
        """Return the last lines that it printed."""
        return last_lines(self._folder / OUTPUT, lines)

    def close(self) -> None:
        """Nothing is held."""


class RemoteLearner:
    """A learner on a host that ssh reaches, its run in a folder there."""

    def __init__(self, place: Place, run: str, fleet: str) -> None:
        self._host, self._python, self._run = place.host, place.python, run
        self._ssh = Ssh(SshLogin(config=Path(place.ssh_config) if place.ssh_config else None))
        self._purpose = (f"{run}.{fleet}", NAME)
        self._processes = RemoteProcesses(self._ssh, *self._purpose)

    def alive(self) -> bool:
        """Return whether it runs."""
        return any(process.name == NAME and process.alive for process in self._processes.list(self._host))

    def finished(self, chosen: Settings) -> bool:
        """Return whether the run is complete."""
        return _is_finished(self._read(OUTCOME), chosen)

    def start(self, config: str, chosen: Settings) -> None:
        """Begin the run, or go on with it. Raises UserError."""
        resume = bool(self._read("config.toml"))
        run = str(RUNS / self._run)
        arguments = learner_arguments(run, self._run, "learner.toml", chosen, resume=resume)
        command = [find(self._ssh, self._host, self._python).python, "-P", "-m", "deploy", *arguments]
        self._processes.start(self._host, {NAME: command}, {"learner.toml": config})

    def stop(self, *, kill: bool = False) -> None:
        """Signal it."""
        self._processes.stop(self._host, [NAME], kill=kill)

    def log(self, lines: int) -> str:
        """Return the last lines that it printed."""
        return self._processes.log(self._host, NAME, lines) or ""

    def close(self) -> None:
        """Close the connection."""
        self._ssh.close()

    def _read(self, file: str) -> str:
        """Return a file of the run's folder there, "" where there is none."""
        folder = folder_of(*self._purpose, self._host)
        path = f"{folder}/{RUNS}/{self._run}/{file}"
        return self._ssh.run(self._host, f"if [ -e {path} ]; then cat {path}; fi")


def learner_process(run: Path, fleet: str, place: Place) -> LearnerProcess:
    """Return the process of a run's learner, on a host that ssh reaches or here."""
    return RemoteLearner(place, run.name, fleet) if place.host else LocalLearner(run)


def _is_finished(outcome: str, chosen: Settings) -> bool:
    """Return whether a run ended complete, and no further updates are wanted."""
    word, _, updates = outcome.strip().partition(" ")
    return word == FINISHED and updates.isdecimal() and int(updates) >= chosen.run.updates
