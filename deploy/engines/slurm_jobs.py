"""What Slurm is asked and tells: its commands, the tasks of an array by name, its reasons in words."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from deploy.fleet.hosts import expand_hosts
from protocol.errors import UserError

_PATIENCE_SECONDS = 60.0
"""Slurm's commands try a controller that does not answer again; past this they are given up."""
_MOST_IDS = 500
"""Tasks that one scancel is told."""

PENDING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"})
RUNNING = frozenset({"RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING", "STOPPED", "SUSPENDED"})
_STATES = {
    "SUSPENDED": "suspended by Slurm",
    "STOPPED": "stopped by Slurm",
    "COMPLETING": "ends",
    "COMPLETED": "ended by itself",
    "TIMEOUT": "reached its time limit",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "ran out of memory: ask for more with mem",
    "CANCELLED": "was cancelled by somebody else",
    "PREEMPTED": "was preempted and not requeued",
    "DEADLINE": "did not end before its deadline",
    "BOOT_FAIL": "its node did not boot",
}
_REASONS = {
    "None": "about to be placed",
    "Resources": "waits until enough of the cluster is free",
    "Priority": "waits for jobs of higher priority",
    "BeginTime": "was requeued, and starts again after a pause",
    "Dependency": "waits for another job",
    "JobHeldUser": "is held: scontrol release lets it go",
    "JobHeldAdmin": "is held by an administrator",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is inactive",
    "PartitionTimeLimit": "asks for more time than its partition gives",
    "PartitionConfig": "asks for more than its partition or account gives",
    "PartitionNodeLimit": "asks for more nodes than its partition gives",
    "ReqNodeNotAvail": "a node that it needs is down or reserved",
    "NodeDown": "a node that it needs is down",
    "Reservation": "waits for its reservation",
    "Licenses": "waits for a licence",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its QOS is not valid",
    "launch failed requeued held": "could not be launched, and is held",
    "NonZeroExitCode": "ended with an error",
    "JobLaunchFailure": "was killed, or could not be launched",
    "RaisedSignal": "was killed by a signal",
}
_LIMITS = {"Assoc": "its account", "QOS": "its QOS", "Max": "this cluster"}


@dataclass(frozen=True, slots=True)
class Task:
    """A task of an array."""

    id: str
    """JOB_INDEX."""
    name: str
    """That the array's comment gives it."""
    state: str
    reason: str
    host: str
    """Empty where it has none."""

    @property
    def live(self) -> bool:
        """Say whether it runs or will."""
        return self.state in PENDING or self.state in RUNNING

    def words(self) -> str:
        """Return in words why it waits or has ended; "" where it runs."""
        if self.state in PENDING or self.state == "FAILED":
            return _in_words(self.reason, "waits" if self.state in PENDING else "ended with an error")
        return _STATES.get(self.state, "" if self.state in RUNNING else self.state.lower())


def ask(program: str, *arguments: str, given: str = "", unset: Collection[str] = ()) -> str:
    """Return what a command of Slurm's prints, without variables that begin like `unset` in its environment.

    Raises UserError where it fails, in one line.
    """
    environment = {name: text for name, text in os.environ.items() if not name.startswith(tuple(unset))}
    try:
        done = subprocess.run(
            [program, *arguments],
            input=given,
            env={**environment, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_SECONDS,
        )
    except FileNotFoundError:
        raise UserError(
            f"no {program} on this host: run the fleet where Slurm's jobs are submitted"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{program} had no answer from Slurm in {_PATIENCE_SECONDS:.0f} s") from None
    if done.returncode:
        raise UserError(f"{program}: {_complaint(done.stderr)}")
    return done.stdout


def tasks_of(job_name: str) -> list[Task]:
    """Return this user's tasks of that name, and those that ended within MinJobAge. Raises UserError."""
    shape = "--format=%F_%K|%T|%r|%N|%k"
    told = ask("squeue", "--me", "--array", "--noheader", "--states=all", f"--name={job_name}", shape)
    tasks: list[Task] = []
    unpacked: dict[str, tuple[str, ...]] = {}
    for line in told.splitlines():
        id, state, reason, host, comment = line.split("|", 4)
        if comment not in unpacked:
            unpacked[comment] = unpack_names(comment)
        index = id.partition("_")[2]
        if index.isdigit() and int(index) < len(unpacked[comment]):
            tasks.append(Task(id, unpacked[comment][int(index)], state, reason, host))
    return tasks


def cancel(ids: Sequence[str], *how: str) -> None:
    """Run scancel on tasks, of which some may have ended. Raises UserError where Slurm does not answer."""
    for start in range(0, len(ids), _MOST_IDS):
        try:
            ask("scancel", "--quiet", *how, *ids[start : start + _MOST_IDS])
        except UserError as error:
            if re.search(r"Unable to contact|no scancel|no answer", str(error)):
                raise


def pack_names(names: Sequence[str]) -> str:
    """Return names as Slurm writes hosts, in their order: lab-7 lab-8 lab-9 are lab-[7-9]."""
    packed: list[tuple[str, int, int]] = []
    for name in names:
        head, number = _numbered(name)
        if number >= 0 and packed and packed[-1][0] == head and packed[-1][2] == number - 1:
            packed[-1] = (head, packed[-1][1], number)
        else:
            packed.append((head, number, number))
    return ",".join(
        head if first < 0 else f"{head}{first}" if first == last else f"{head}[{first}-{last}]"
        for head, first, last in packed
    )


def unpack_names(text: str) -> tuple[str, ...]:
    """Return the names that `pack_names` packed; none where it is nothing of that kind."""
    try:
        return expand_hosts(text.split(","))
    except UserError:
        return ()


def _numbered(name: str) -> tuple[str, int]:
    """Return head and number of a name; -1 where it has no number that can be counted on."""
    found = re.fullmatch(r"(.*?)(0|[1-9]\d{0,8})", name)
    return (found[1], int(found[2])) if found and not found[1][-1:].isdigit() else (name, -1)


def _in_words(reason: str, otherwise: str) -> str:
    kind = re.split(r"[,:]", reason)[0]
    whose = next((whose for head, whose in _LIMITS.items() if kind.startswith(head)), "")
    words = _REASONS.get(kind) or (f"a limit of {whose} is reached" if whose else otherwise)
    return f"{words} ({reason})"


def _complaint(errors: str) -> str:
    """Return the last thing that a command of Slurm's complains of, without saying who complains."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line) for line in errors.splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("Try ")] or ["failed without a word"]
    return told[-1].removeprefix("Batch job submission failed: ")
