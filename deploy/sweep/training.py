"""One training of a trial: a `fleet train` process with a run folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from deploy.engines.processes import last_lines
from deploy.exits import Exit
from deploy.runs import FINISHED, OUTCOME, RUNS
from deploy.settings import Settings, to_toml
from deploy.sweep import score
from learner.run_folder import replace_file

_PATIENCE_SECONDS = 20.0
"""Between SIGINT and SIGKILL: a training ends at the next minibatch, and writes a checkpoint."""


class Training:
    """A training in the folder of a sweep: SWEEP/runs/NAME, told by SWEEP/trials/NAME.toml.

    One that was begun before goes on from its last checkpoint; one that had finished is not repeated.
    """

    def __init__(self, sweep: Path, name: str, settings: Settings) -> None:
        self.run = sweep / RUNS / name
        self.updates = settings.run.updates
        self._log = sweep / "trials" / f"{name}.log"
        self._kill_at = float("inf")
        self._process: subprocess.Popen[bytes] | None = None
        if not _finished(self.run):
            self._process = self._start(sweep, name, settings)

    def poll(self) -> int | None:
        """Return the exit status, None while it lives; negative for a signal."""
        if self._process is None:
            return Exit.OK
        if time.monotonic() > self._kill_at:
            self._process.kill()
        return self._process.poll()

    def interrupt(self) -> None:
        """Let it end as Ctrl-C would, within _PATIENCE_SECONDS."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._kill_at = time.monotonic() + _PATIENCE_SECONDS

    def wait(self) -> None:
        """Wait for its end after `interrupt`."""
        if self._process:
            try:
                self._process.wait(max(0.0, self._kill_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def kill(self) -> None:
        """End it at once, if it lives."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def checkpoint_scores(self) -> dict[int, float]:
        """Return the scores of the versions evaluated so far."""
        return score.checkpoint_scores(self.run)

    def reason(self, status: int) -> str:
        """Return in one line why it failed."""
        if status == -signal.SIGKILL:
            return "killed (SIGKILL), as the system does when memory runs out"
        if status < 0:
            return f"ended by signal {signal.Signals(-status).name}"
        lines = last_lines(self._log, 200).splitlines()
        told = [line.removeprefix("fleet: ") for line in lines if line.startswith("fleet: ")]
        return (told or lines or [f"status {status}, without a word"])[-1].strip()

    def _start(self, sweep: Path, name: str, settings: Settings) -> subprocess.Popen[bytes]:
        config = sweep / "trials" / f"{name}.toml"
        config.parent.mkdir(exist_ok=True)
        replace_file(config, to_toml(settings))
        again = any(self.run.glob("checkpoints/update-*"))
        if not again:
            shutil.rmtree(self.run, ignore_errors=True)
        # -P: a folder of ours in the user's working directory is not this program.
        command = [sys.executable, "-P", "-m", "deploy.tether", str(os.getpid()), "deploy", "train"]
        command += ["--resume", name] if again else ["--config", str(config.resolve()), "--name", name]
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        absolute = os.pathsep.join(os.path.abspath(path) for path in paths if path)
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=sweep,
                env={**os.environ, "PYTHONPATH": absolute},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the sweep only, which ends them in order
            )


def _finished(run: Path) -> bool:
    outcome = run / OUTCOME
    return outcome.exists() and outcome.read_text().startswith(FINISHED)
