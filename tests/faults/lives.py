"""One run of a learner in several lives, each but the last ended by SIGKILL at a moment that is named.

    python -m tests.faults.lives plan.json     {"run": FOLDER, "begin": ["learner", ...], "resume": [...],
                                                "deaths": [["MODULE:FUNCTION", "after", 3], ...]}

Each life is a process of its own, forked from this one, which has imported everything: it begins at once. It
kills itself when it has entered, or left, the function for the `count`th time. Nothing in the product
knows of it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def plant(fatal: str, when: str, count: int) -> None:
    """Let the process kill itself at a call of this function."""
    module, _, path = fatal.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def planted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, planted)


def live(arguments: Sequence[str], death: Sequence[Any]) -> int:
    """Be a learner until the fatal moment, if there is one; return how it ended."""
    pid = os.fork()
    if pid == 0:
        from deploy.app import run_command

        if death:
            plant(*death)
        status = int(run_command(arguments))
        sys.stdout.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> int:
    """Live all lives; 0 where each ended as it was meant to."""
    for name in ("deploy.run", "deploy.commands.train", "learner.run"):
        importlib.import_module(name)
    plan = json.loads(Path(sys.argv[1]).read_text())
    for death in [*plan["deaths"], []]:
        begun = (Path(plan["run"]) / "config.toml").exists()
        status = live(plan["resume" if begun else "begin"], death)
        if status != (-signal.SIGKILL if death else 0):
            print(f"the life of {death} ended with {status}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
