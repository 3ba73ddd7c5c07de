"""Real fleets in a folder of their own: processes started by the `fleet` command and ended with the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from deploy.query import ask
from protocol.errors import UserError

FLEET = str(Path(sys.executable).with_name("fleet"))
DEADLINE_SECONDS = 120.0
"""Of anything a test waits for; generous, because the machine may be busy."""

Argument = str | float | Path


class Fleet:
    """Commands run in `folder`; whatever still lives at the end is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []
        self.via: tuple[str, ...] = ()
        """What stands before a command, to start it on another host."""

    def start(self, *arguments: Argument, **environment: str) -> subprocess.Popen[str]:
        """Start `fleet ARGUMENTS`, its output in a file that `output` reads."""
        log = self.folder / f"output-{len(self.processes)}.txt"
        with log.open("w") as file:
            process = subprocess.Popen(
                [*self.via, FLEET, *map(str, arguments)],
                cwd=self.folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.processes.append(process)
        return process

    def output(self, process: subprocess.Popen[str]) -> str:
        """Return all that a process has printed so far."""
        return (self.folder / f"output-{self.processes.index(process)}.txt").read_text()

    def finish(self, process: subprocess.Popen[str], status: int = 0) -> str:
        """Wait for a process to end with this status; return its output, with all its stacks if it hangs."""
        try:
            process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            process.wait()
        output = self.output(process)
        assert process.returncode == status, output
        return output

    def run(self, *arguments: Argument, status: int = 0, **environment: str) -> str:
        """Run `fleet ARGUMENTS` to its end; return its output."""
        return self.finish(self.start(*arguments, **environment), status)

    def json(self, *arguments: Argument, status: int = 0) -> dict[str, Any]:
        """Run `fleet ARGUMENTS --json FILE`; return what the file holds."""
        file = self.folder / "answer.json"
        self.run(*arguments, "--json", file, status=status)
        return dict(json.loads(file.read_text()))

    def learner(self, *arguments: Argument, name: str = "run") -> tuple[subprocess.Popen[str], int]:
        """Start a learner on free ports; return it with its control port."""
        address = self.folder / "runs" / name / "address"
        address.unlink(missing_ok=True)
        process = self.start("learner", "--name", name, "--port", "auto", *arguments)
        self.wait_until(lambda: address.exists() or process.poll() is not None, "the learner listened")
        assert address.exists(), self.output(process)
        return process, int(address.read_text().rpartition(":")[2])

    def worker(self, port: int, slots: int = 10, *arguments: Argument) -> subprocess.Popen[str]:
        """Start a worker."""
        return self.start("worker", "--learner", f"127.0.0.1:{port}", "--slots", slots, *arguments)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition; fail, saying what it was, after DEADLINE_SECONDS."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                printed = "\n".join(self.output(process)[-2000:] for process in self.processes)
                raise AssertionError(
                    f"in {DEADLINE_SECONDS:.0f} s it did not come true that {what}\n{printed}"
                )
            time.sleep(0.02)

    def finish_survivors(self, workers: Sequence[subprocess.Popen[str]]) -> None:
        """Wait until one of the workers of a resumed run is told its end; assert that none ended otherwise.

        The run may be over before the others have dialled again: they wait for another learner.
        """
        self.wait_until(lambda: any(worker.poll() is not None for worker in workers), "a worker was told")
        for worker in workers:
            if worker.poll() is not None:
                assert "the run is complete" in self.finish(worker), "a worker needed a restart"

    def status(self, port: int) -> dict[str, Any] | None:
        """Return the learner's status report, None if it does not answer."""
        try:
            return dict(ask(f"127.0.0.1:{port}", "status"))
        except UserError:
            return None

    def descendants(self, process: subprocess.Popen[str]) -> list[psutil.Process]:
        """Return the living processes that a process has started."""
        children: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
        return children

    def close(self) -> None:
        """Kill what is left."""
        for process in self.processes:
            if process.poll() is None:
                for child in self.descendants(process):
                    child.kill()
                process.send_signal(signal.SIGKILL)
                process.wait()
