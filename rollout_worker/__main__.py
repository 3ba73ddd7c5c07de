"""`python -m rollout_worker --learner HOST:PORT`: a worker without the command line's libraries."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import random
import signal
import sys
from pathlib import Path
from types import ModuleType

# Read once, when numpy and numba are imported below. Threads of several workers would fight for the cores.
for _library in ("OPENBLAS", "OMP", "MKL", "NUMBA"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"


def main(arguments: list[str] | None = None) -> int:
    """Parse `arguments`, be a worker, return the exit status (see `rollout_worker.events.ExitCode`)."""
    signal.signal(signal.SIGINT, _interrupted)  # until the worker hears it and says goodbye
    parser = argparse.ArgumentParser(prog="python -m rollout_worker", description="Play for a learner.")
    parser.add_argument("--learner", required=True, metavar="HOST:PORT[,HOST:PORT]")
    parser.add_argument("--ports", help="all four ports, such as 5555,6001,6002,6003")
    parser.add_argument("--key", type=Path, metavar="FILE", help="key file (or FLEET_KEY names it)")
    parser.add_argument("--slots", type=int, default=50, help="environments in this worker (default 50)")
    parser.add_argument("--give-up-after", type=float, default=600.0, metavar="SECONDS")
    parser.add_argument("--allow-env", action="append", default=[], metavar="MODULE")
    parser.add_argument("--log-file", type=Path)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--journal", type=Path, metavar="FILE", help="note each episode played and pushed")
    parser.add_argument("--max-failures", type=int, default=5, help="failed tickets in a row (default 5)")
    parser.add_argument("--pool", default="", help="pool of workers that this one is counted to")
    parser.add_argument("--label", default="", help="name of this worker, for its operator")
    parser.add_argument("--drain-on-term", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--die-with-parent", action="store_true")
    given = parser.parse_args(arguments)

    _import_numpy_random()
    from protocol.addresses import Ports
    from protocol.errors import UserError
    from rollout_worker.events import ExitCode
    from rollout_worker.options import WorkerOptions
    from rollout_worker.worker import run_worker

    try:
        options = WorkerOptions(
            learner=given.learner,
            ports=Ports.parse(given.ports) if given.ports else None,
            key=given.key or (Path(told) if (told := os.environ.get("FLEET_KEY")) else None),
            slots=given.slots,
            give_up_after_seconds=given.give_up_after,
            allow_env=tuple(given.allow_env),
            log_file=given.log_file,
            log_level=given.log_level,
            journal=given.journal,
            max_failures=given.max_failures,
            pool=given.pool,
            label=given.label,
            drain_on_term_seconds=given.drain_on_term,
            die_with_parent=given.die_with_parent,
        )
        return run_worker(options)
    except UserError as error:
        print(f"rollout worker: {error}", file=sys.stderr)
        return ExitCode.USAGE


def _interrupted(number: int, frame: object) -> None:
    os.write(2, b"rollout worker: interrupted\n")
    os._exit(128 + number)


def _import_numpy_random() -> None:
    """Import numpy.random, which Gymnasium needs, without 3.4 MB of OpenSSL, which nothing here does.

    Of `secrets` it takes one function; the rest of that module brings hmac and so OpenSSL. For this import
    the function stands alone; whoever imports `secrets` afterwards gets all of it.
    """
    if "secrets" in sys.modules:
        return
    alone = ModuleType("secrets")
    alone.randbits = random.SystemRandom().getrandbits  # type: ignore[attr-defined]  # as secrets does
    sys.modules["secrets"] = alone
    try:
        importlib.import_module("numpy.random")
    finally:
        del sys.modules["secrets"]


if __name__ == "__main__":
    _status = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(_status)  # all is closed; Python's own farewell to numba's code takes a quarter of a second
