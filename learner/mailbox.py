"""How the trainer's thread and the I/O thread speak: questions go one way, results the other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import zmq

from protocol.errors import FleetError
from protocol.sockets.frames import receive_nowait, send_nowait

T = TypeVar("T")


class RunStopped(FleetError):
    """The run cannot go on, for a reason that is told to the user."""


class Mailbox:
    """Questions of other threads to the one that has this box, which calls `answer` once per turn.

    `bell` is a socket of that thread's, to poll with its others: it can be read once a question has come.
    """

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_up, self.bell = _wake_pair()
        self._over = threading.Event()
        self._failure: BaseException | None = None

    @property
    def over(self) -> bool:
        """Say whether questions are refused from now on, and the thread is to end."""
        return self._over.is_set()

    def ask(self, question: Callable[[], T]) -> Future[T]:
        """Let the thread answer a question in its next turn."""
        answer: Future[T] = Future()

        def task() -> None:
            if self._over.is_set():
                answer.set_exception(self._failure or RunStopped("the I/O thread has ended"))
                return
            try:
                answer.set_result(question())
            except BaseException as error:
                answer.set_exception(error)

        self._tasks.put(task)
        self._wake()
        if self._over.is_set():  # the I/O thread may have looked for tasks for the last time
            self._run()
        return answer

    def end(self) -> None:
        """Let the thread end: what is asked from now on is refused."""
        self._over.set()
        self._wake()

    def close(self) -> None:
        """Close the bell, once the thread has ended."""
        self._wake_up.close()
        self.bell.close()

    # For the thread itself

    def answer(self) -> None:
        """Answer all that was asked, or refuse it once that is over."""
        while receive_nowait(self.bell):
            pass
        self._run()

    def fail(self, error: BaseException) -> None:
        """End with an error, which everyone who asks is told."""
        self._failure = error
        self._over.set()  # without a ring: the other end of the bell is the other thread's

    def _run(self) -> None:
        while True:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                return
            task()

    def _wake(self) -> None:
        send_nowait(self._wake_up, b"")


def take(results: queue.SimpleQueue[T | BaseException], timeout_seconds: float) -> T | None:
    """Return the next result, or None in time; raises one that is an error."""
    try:
        result = results.get(timeout=timeout_seconds)
    except queue.Empty:
        return None
    if isinstance(result, BaseException):
        raise result
    return result


def _wake_pair() -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    receiver, sender = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    address = f"inproc://collector-{id(receiver)}"
    receiver.bind(address)
    sender.connect(address)
    return sender, receiver
