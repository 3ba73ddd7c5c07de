"""A whole Slurm cluster on this machine: a controller and one node of four processors, with their own munge.

    with SlurmCluster() as cluster:      # SLURM_CONF is set: sbatch, squeue and scancel speak to it
        cluster.run("sinfo")

Nothing of it is shared with a cluster that the machine may belong to, and nothing of it is left at the end.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import pytest

CPUS = 4
"""Declared, whatever the machine has."""
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
_DEADLINE_SECONDS = 60.0


def lacking() -> str:
    """Return why no cluster can be had on this machine, or "" where it can."""
    if os.geteuid() != 0:
        return "needs root, for slurmd"
    missing = [program for program in _PROGRAMS if not shutil.which(program)]
    return f"needs {', '.join(missing)}: Debian's slurmctld, slurmd, slurm-client, munge" if missing else ""


needs_slurm = pytest.mark.skipif(bool(lacking()), reason=lacking())


class SlurmCluster:
    """Partitions `normal`, whose jobs are requeued for those of `urgent`; pauses are short."""

    def __enter__(self) -> SlurmCluster:
        """Start it and wait until its node is idle."""
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.name = f"fleet{os.getpid()}"
        self.node = socket.gethostname().partition(".")[0]
        self._before = os.environ.get("SLURM_CONF")
        self._daemons: list[subprocess.Popen[bytes]] = []
        os.environ["SLURM_CONF"] = str(self.folder / "slurm.conf")
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.close()

    def run(self, *command: str) -> str:
        """Run a command to its end; return what it printed."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_SECONDS)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def logs(self) -> str:
        """Return the end of what the daemons have to say."""
        return "\n".join(file.read_text()[-3000:] for file in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        """End jobs, daemons and files."""
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(["scancel", "--quiet", f"--user={os.getuid()}"], timeout=10)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()
        while self._kill_jobs():  # one that was just being launched shows in a later look
            time.sleep(0.1)
        if self._before is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = self._before
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kill_jobs(self) -> bool:
        """Kill what is left of jobs and of those that watch over them; return whether something was."""
        killed, ours = False, f"SLURM_CONF={self.folder}/slurm.conf\0".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environment = (folder / "environ").read_bytes()
                watches = ours in environment and (folder / "comm").read_text().startswith("slurm")
                if watches or f"SLURM_CLUSTER_NAME={self.name}\0".encode() in environment:
                    os.kill(int(folder.name), signal.SIGKILL)
                    killed = True
        return killed

    def _start(self) -> None:
        for folder in ("state", "spool"):
            (self.folder / folder).mkdir()
        key, munge = self.folder / "munge.key", self.folder / "munge.sock"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        own = {"pid-file": "munged.pid", "seed-file": "munge.seed", "log-file": "munged.log"}
        files = [f"--{option}={self.folder / file}" for option, file in own.items()]
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}", *files)
        self._wait("munged listens", munge.exists)
        (self.folder / "slurm.conf").write_text(self._configuration(munge))
        self._daemon("slurmctld", "-D", "-c")
        self._daemon("slurmd", "-D")
        self._wait("its node is idle", lambda: "idle" in self._nodes())

    def _daemon(self, program: str, *arguments: str) -> None:
        with (self.folder / f"{program}.out.log").open("wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    [program, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output
                )
            )

    def _nodes(self) -> str:
        return subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True).stdout

    def _wait(self, what: str, condition: object) -> None:
        assert callable(condition)
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not condition():
            ended = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"not true: {what}; ended: {ended}\n{self.logs()}")
            time.sleep(0.05)

    def _configuration(self, munge: Path) -> str:
        with socket.socket() as one, socket.socket() as two:
            for probe in (one, two):
                probe.bind(("127.0.0.1", 0))
            ports = one.getsockname()[1], two.getsockname()[1]
        return f"""
ClusterName={self.name}
SlurmctldHost={self.node}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge},cred_expire=5
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd.pid
SlurmctldLogFile={self.folder}/slurmctld.log
SlurmdLogFile={self.folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=20
MaxArraySize=4
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
NodeName={self.node} NodeAddr=127.0.0.1 CPUs={CPUS} State=UNKNOWN
PartitionName=normal Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""
