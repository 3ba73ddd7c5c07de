"""The engine of a cluster under Slurm: workers as tasks of job arrays, through the site's own commands.

A batch script becomes its worker (`exec`), so that Slurm's SIGTERM, 60 s before the time limit or at a
preemption, is the worker's own, and means drain. The job's name says whose it is and its comment which names
its tasks have, so `squeue` tells any process the same. A task that Slurm requeues keeps its name.
"""

from __future__ import annotations

import math
import re
import shlex
import stat
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.engines import Member, WorkerLaunch, worker_arguments
from deploy.engines.processes import last_lines
from deploy.engines.slurm_jobs import PENDING, Task, ask, cancel, pack_names, tasks_of
from protocol.errors import UserError

TERM_BEFORE_SECONDS, DRAIN_SECONDS = 60, 50
"""When Slurm says that the time is over, and how long the worker may then finish what it plays."""
_MOST_TASKS = 1000
"""In one array, whatever MaxArraySize allows."""
_TOLD_LINES = 3
_NAME = "$name"
"""Where the name of a task's worker stands in its command."""
_OVERRIDING = ("ARRAY_INX", "JOB_NAME", "COMMENT", "OUTPUT", "ERROR", "OPEN_MODE", "SIGNAL", "REQUEUE")
"""SBATCH_... in the environment would count above the script."""


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    """What a pool of this engine may be told; empty leaves it to the site."""

    partition: str = ""
    account: str = ""
    time: str = ""
    """Of one worker, as sbatch's --time takes it: 240, 4:00:00, 1-12."""
    cpus: int = 1
    mem: str = ""
    """Of one worker, as sbatch's --mem takes it: 2G."""
    venv: str = sys.prefix
    """The virtual environment that has `fleet`, on the nodes."""
    logs: str = ""
    """Folder for the workers' output, there on the nodes already; the run's `logs` if not said. `fleet logs`
    needs it on a file system that is shared."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the worker begins, such as module load python."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch, such as --qos=low or --constraint=avx2."""
    poll_seconds: float = 5.0
    """squeue is asked no more often than this; after something was done, at once."""

    def __post_init__(self) -> None:
        """Refuse what would not stand in a line of the script."""
        if not self.poll_seconds >= 0:
            raise UserError(f"--poll-seconds is {self.poll_seconds}; it must be at least 0")
        if self.cpus < 1:
            raise UserError(f"--cpus is {self.cpus}; it must be at least 1")
        for name in ("partition", "account", "time", "mem", "venv", "logs", "setup", "sbatch"):
            for text in (
                [getattr(self, name)] if isinstance(getattr(self, name), str) else getattr(self, name)
            ):
                if not text.isprintable():
                    raise UserError(f"--{name} is {text!r}; it must be one line")
        for option in self.sbatch:
            if not option.startswith("-"):
                raise UserError(f"--sbatch has {option!r}; write options as sbatch takes them: --qos=low")
            if option.startswith(("--array", "-a", "--job-name", "-J", "--comment", "--output", "-o")):
                raise UserError(f"--sbatch has {option!r}, which the fleet sets itself")


def job_name(launch: WorkerLaunch) -> str:
    """Return the name of the jobs of a run's pool."""
    return re.sub(r"[^\w.:+-]", "_", f"fleet:{launch.run}:{launch.pool}")


def batch_script(
    launch: WorkerLaunch, options: SlurmOptions, names: Sequence[str], logs: Path, avoid: Collection[str] = ()
) -> str:
    """Return the script of an array whose task k is the worker names[k], with its output in logs/NAME.log."""
    given = {
        "job-name": job_name(launch),
        "array": f"0-{len(names) - 1}",
        "comment": pack_names(names),
        "output": str(logs).replace("%", "%%") + "/%A_%a.log",
        "open-mode": "append",
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": str(options.cpus),
        "signal": f"B:TERM@{TERM_BEFORE_SECONDS}",
        "partition": options.partition,
        "account": options.account,
        "time": options.time,
        "mem": options.mem,
        "exclude": ",".join(sorted(avoid)),
    }
    lines = [f"--{option}={shlex.quote(value)}" for option, value in given.items() if value]
    arguments = [*worker_arguments(launch, _NAME), "--drain-on-term", str(DRAIN_SECONDS)]
    spelled = ('"$name"' if text == _NAME else shlex.quote(text) for text in arguments)
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {line}" for line in (*lines, "--requeue", *options.sbatch)),
            "trap 'exit 130' INT  # until the worker hears it; a shell that waits for a command would not",
            f"names=({' '.join(map(shlex.quote, names))})",
            'name="${names[SLURM_ARRAY_TASK_ID]}"',
            f"logs={shlex.quote(str(logs))}",
            'ln -f "$logs/${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}.log" "$logs/$name.log"',
            'echo "worker $name on $SLURMD_NODENAME, requeued ${SLURM_RESTART_COUNT:-0} times"',
            *options.setup,
            f"exec {shlex.quote(options.venv + '/bin/fleet')} worker {' '.join(spelled)}",
            "",
        ]
    )


class SlurmEngine:
    """Workers of a pool as tasks of job arrays, their output in `logs/NAME.log`."""

    def __init__(self, launch: WorkerLaunch, options: SlurmOptions, folder: Path) -> None:
        self._launch, self._options = launch, options
        self._logs = Path(options.logs or folder / "logs").absolute()
        self._array_limit = 0
        # What this process knows beside what Slurm tells, only so that nothing is told or asked twice.
        self._live: dict[str, str] = {}
        """The task of each name that was pending or running when last asked."""
        self._ending: set[str] = set()
        """Names that were asked to end: their end is no news."""
        self._members: list[Member] = []
        self._asked_at = -math.inf
        if launch.key:
            _check_key(launch.key)

    def members(self) -> Sequence[Member]:
        """Ask squeue, not more often than a controller likes; those that ended are told once."""
        if time.monotonic() - self._asked_at < self._options.poll_seconds:
            return self._members
        tasks = self._tasks()
        live = {task.name: task for task in tasks if task.live}
        ended = {task.name: task for task in tasks if not task.live}
        news = [name for name in self._live if name not in live and name not in self._ending]
        self._members, self._asked_at = [_living(task) for task in live.values()], time.monotonic()
        ended_now = [self._ended(name, self._live[name], ended.get(name)) for name in news]
        self._live = {name: task.id for name, task in live.items()}
        return [*self._members, *ended_now]

    def start(self, names: Sequence[str], avoid: Collection[str] = ()) -> Sequence[Member]:
        """Submit an array, or several where one may not be that large; sbatch's refusal is their detail."""
        members: list[Member] = []
        self._asked_at = -math.inf
        self._make_logs()
        most = self._largest_array()
        for share in (names[start : start + most] for start in range(0, len(names), most)):
            try:
                job = self._submit(share, avoid)
            except UserError as refusal:
                without = f", without {', '.join(sorted(avoid))}" if avoid else ""
                members += [Member(name, "", "failed", f"{refusal}{without}") for name in share]
            else:
                self._live |= {name: f"{job}_{index}" for index, name in enumerate(share)}
                members += [
                    Member(name, "", "pending", f"submitted, task {self._live[name]}") for name in share
                ]
        return members

    def stop(self, names: Collection[str], *, kill: bool = False) -> None:
        """Cancel what waits; let SIGINT, which returns tickets at once, or SIGKILL reach what runs.

        SIGTERM is left to Slurm, and to scancel by hand: it drains.
        """
        tasks = [task for task in self._tasks() if task.live and task.name in names]
        running = [task.id for task in tasks if task.state == "RUNNING"]
        others = [task.id for task in tasks if task.state != "RUNNING"]
        self._ending.update(names)
        self._asked_at = -math.inf
        # Never with --state: scancel would take all waiting tasks of an array for one.
        cancel(others)
        cancel(running, f"--signal={'KILL' if kill else 'INT'}", "--batch")
        if kill:
            cancel(running)

    def log(self, name: str, lines: int) -> str:
        """Read it where the nodes wrote it. Raises UserError where that is not to be seen from here."""
        file = self._logs / f"{name}.log"
        if not re.fullmatch(r"[\w.-]+", name) or not file.exists():
            raise UserError(
                f"no {file}: {name} has not begun, or this host does not share that folder with the nodes"
            )
        return last_lines(file, lines)

    def close(self) -> None:
        """Nothing is held."""

    def _tasks(self) -> list[Task]:
        return tasks_of(job_name(self._launch))

    def _submit(self, names: Sequence[str], avoid: Collection[str]) -> str:
        script = batch_script(self._launch, self._options, names, self._logs, avoid)
        own = {"PARTITION": self._options.partition, "ACCOUNT": self._options.account}
        own |= {"TIMELIMIT": self._options.time}
        overriding = [f"SBATCH_{name}" for name in (*_OVERRIDING, *(name for name in own if own[name]))]
        told = ask("sbatch", "--parsable", given=script, unset=overriding)
        return told.strip().partition(";")[0]

    def _ended(self, name: str, id: str, task: Task | None) -> Member:
        why = task.words() if task else "ended, and Slurm has forgotten how"
        logs = (self._logs / f"{name}.log", self._logs / f"{id}.log")
        file = next((file for file in logs if file.exists()), None)
        if file:
            end = " | ".join(last_lines(file, _TOLD_LINES).split("\n"))
        else:
            end = f"nothing in {self._logs}, which its node must have and this host share"
        return Member(name, task.host if task else "", "failed", f"{why}, task {id}: {end}")

    def _largest_array(self) -> int:
        if not self._array_limit:
            found = re.search(r"MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"))
            self._array_limit = min(max(1, int(found[1])), _MOST_TASKS) if found else _MOST_TASKS
        return self._array_limit

    def _make_logs(self) -> None:
        """Make the folder where it can be made from here; a folder that was named may be the nodes' own."""
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if not self._options.logs:
                raise UserError(f"{self._logs} cannot be made: {error.strerror}") from error


def _check_key(key: Path) -> None:
    try:
        mode = key.stat().st_mode
    except OSError as error:
        raise UserError(f"{key}, the workers' key, cannot be read: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(f"{key} can be read by others: chmod 600 {key}")


def _living(task: Task) -> Member:
    return Member(task.name, task.host, "pending" if task.state in PENDING else "running", task.words())
