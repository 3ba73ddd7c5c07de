"""Evaluate tickets, played on the cores of this machine; each return depends on its ticket's number alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from deploy.local import SINGLE_THREADED, usable_cores
from deploy.tether import die_with
from protocol.errors import FleetError

if TYPE_CHECKING:
    from deploy.playable import Playable
    from protocol.tickets import Ticket

_SLOTS, _TASK_EPISODES = 200, 1000
"""A task has no fewer episodes than there are slots: who has begun all that it was given owes less."""
_SLOW_SLOTS, _SLOW_TASK_EPISODES = 1, 1
"""The original simulator builds an environment for each slot, and gains nothing by many."""
_SAME_WISH_SECONDS = 1.0
"""A terminal, `timeout` and schedulers may send one Ctrl-C twice."""


def play_returns(
    playable: Playable, episodes: int, allow_env: Sequence[str] = ()
) -> Iterator[tuple[int, float]]:
    """Yield the number and the undiscounted return of evaluate tickets 0 to `episodes` - 1 as they end.

    FleetError where a process is killed; what stops an environment is raised as it is.
    """
    size = _SLOW_TASK_EPISODES if playable.environment.name == "cyborg" else _TASK_EPISODES
    tasks = [range(start, min(start + size, episodes)) for start in range(0, episodes, size)]
    processes = min(usable_cores(), len(tasks))
    if processes == 1:
        yield from _play(playable, _tickets(range(episodes)), min(_slots(playable), episodes))
    else:
        yield from _play_elsewhere(playable, tasks, processes, allow_env)


@contextmanager
def noting_interrupts() -> Iterator[list[float]]:
    """Note when Ctrl-C came in the list that is yielded, not heeding it; one a second later is heeded.

    That holds on after the block where one came in it: its double may still be on the way.
    """
    noted: list[float] = []

    def note(number: int, frame: object) -> None:
        noted.append(time.monotonic())
        if noted[-1] - noted[0] >= _SAME_WISH_SECONDS:
            signal.signal(signal.SIGINT, usual)
            signal.raise_signal(signal.SIGINT)

    usual = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        if not noted:
            signal.signal(signal.SIGINT, usual)


def _slots(playable: Playable) -> int:
    return _SLOW_SLOTS if playable.environment.name == "cyborg" else _SLOTS


def _play_elsewhere(
    playable: Playable, tasks: Sequence[range], processes: int, allow_env: Sequence[str]
) -> Iterator[tuple[int, float]]:
    for name, value in SINGLE_THREADED.items():
        os.environ.setdefault(name, value)  # read by the numerical libraries of the new processes
    waiting = iter(tasks)
    players: list[_Process] = []
    try:
        with _interrupts_held():  # Ctrl-C reaches the whole group; these processes never heed it
            players += [_Process() for _ in range(processes)]
        for player in players:
            player.receive()
            player.connection.send((playable, allow_env))
        for player in 2 * players:
            player.give(next(waiting, None))
        while at_work := [player for player in players if player.owed]:
            ready = wait([player.connection for player in at_work])
            for player in (player for player in at_work if player.connection in ready):
                yield player.receive()
                player.owed -= 1
                if player.owed <= len(tasks[0]):
                    player.give(next(waiting, None))
    finally:
        for player in players:
            player.connection.close()
            player.process.terminate()


class _Process:
    """A process that plays what it is given, one task ahead, so that it never waits for the next."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(os.getpid(), theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.owed = 0
        """Episodes that it was given and has not ended."""
        self._told_the_end = False

    def give(self, task: range | None) -> None:
        """Hand a task over, or once that there are no more."""
        if not self._told_the_end:
            self.connection.send(task)
            self._told_the_end = task is None
            self.owed += len(task or ())

    def receive(self) -> tuple[int, float]:
        """Return what the next episode brought. Raises what stopped it, FleetError where it was killed."""
        try:
            ended: tuple[int, float] | Exception = self.connection.recv()
        except (EOFError, ConnectionError):
            raise FleetError("a process of the evaluation was killed: is there enough memory?") from None
        if isinstance(ended, Exception):
            raise ended
        return ended


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back to the end; processes started within inherit that, and hold it back for ever."""
    resource_tracker.ensure_running()  # multiprocessing's own; its start would let Ctrl-C through
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _serve(parent: int, given: Connection) -> None:
    from rollout_worker.environments.registry import allow

    die_with(parent)
    given.send((0, 0.0))  # this process is up
    playable, allow_env = given.recv()

    def tickets() -> Iterator[Ticket]:
        while (task := given.recv()) is not None:
            yield from _tickets(task)

    try:
        allow(allow_env)
        for ended in _play(playable, tickets(), _slots(playable)):
            given.send(ended)
    except Exception as error:
        given.send(error)


def _tickets(numbers: range) -> Iterator[Ticket]:
    from protocol.tickets import Ticket

    return (Ticket("evaluate", number) for number in numbers)


def _play(playable: Playable, tickets: Iterator[Ticket], slots: int) -> Iterator[tuple[int, float]]:
    from rollout_worker.rollout import play

    for episode in play(
        playable.environment, playable.policy, playable.arrays, playable.seed, tickets, slots=slots
    ):
        yield episode.ticket.number, float(episode.rewards.sum(dtype="float64"))
