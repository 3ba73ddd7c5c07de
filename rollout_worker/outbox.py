"""Finished episodes that the learner has not yet said it received, as the frames that are sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from protocol.codec import encode
from protocol.errors import ProtocolError
from protocol.messages import Episode, Failure
from protocol.sockets import Socket
from protocol.sockets.frames import send_nowait
from protocol.tickets import Ticket
from rollout_worker.events import EpisodeFinished, Event, TicketFailed
from rollout_worker.journal import Journal


class Outbox:
    """The frames, and which of them are to be pushed: the main thread packs, the other one sends."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._frames: dict[Ticket, bytes] = {}
        self._pushes: deque[Ticket] = deque()

    @property
    def full(self) -> bool:
        """Say whether there is something to be sent."""
        return bool(self._pushes)

    def pack(self, ended: Episode | Failure) -> Event:
        """Take in what the player is through with, and return what there is to say of it."""
        self._journal.ended(ended)
        if isinstance(ended, Failure):
            return TicketFailed(ended)
        try:
            frame = encode(ended)
        except ProtocolError as error:
            return TicketFailed(Failure(ended.ticket, f"its episode cannot be sent: {error}"))
        self._frames[ended.ticket] = frame
        return EpisodeFinished(ended.ticket)

    def push(self, tickets: tuple[Ticket, ...]) -> None:
        """Send these when `send` is called next."""
        self._journal.pushed(tickets)
        self._pushes.extend(tickets)

    def send(self, socket: Socket) -> None:
        """Send what is to be pushed, as far as the socket takes it."""
        while self._pushes:
            frame = self._frames.get(self._pushes[0])
            if frame is not None and not send_nowait(socket, frame):
                return
            self._pushes.popleft()

    def forget(self, tickets: Iterable[Ticket]) -> None:
        """Drop what the learner has, or does not want."""
        for ticket in tickets:
            self._frames.pop(ticket, None)
