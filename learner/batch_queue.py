"""Train episodes on their way to the trainer: which of them make the next batch, and when it is whole.

In arrival order a batch is the first `--episodes-per-update` episodes received. In started order batch u is
whole when every ticket of [u*size, (u+1)*size) is received or discarded; discards leave it smaller, or even
empty.
"""

from __future__ import annotations

from collections import Counter, deque

from learner.book import Book
from learner.config import RunConfig
from protocol.messages import Episode


class BatchQueue:
    """Batches of the tickets in `book`, from number `first` on: batch u makes version u + 1."""

    def __init__(self, config: RunConfig, book: Book, first: int) -> None:
        self._size, self._order, self._book = config.episodes_per_update, config.order, book
        self._episodes: dict[int, Episode] = {}
        """Received and not taken, by ticket."""
        self._arrived: list[int] = []
        """Received tickets of no whole batch, in arrival order."""
        self._settled: Counter[int] = Counter()
        """Tickets received or discarded, by batch; in started order."""
        self._next = first
        self._whole: deque[list[int]] = deque()
        """Tickets of the batches that are whole and not consumed."""
        self.taken = 0
        """How many of those the trainer has."""
        if self._order == "started":
            discarded = (
                number // self._size for numbers in book.account.discarded.values() for number in numbers
            )
            self._settled.update(batch for batch in discarded if batch >= first)
        self._close()

    @property
    def whole(self) -> int:
        """Return how many batches are whole and not yet consumed, the one in training included."""
        return len(self._whole)

    @property
    def waiting_episodes(self) -> int:
        """Return how many episodes are received and not yet taken with a batch."""
        return len(self._episodes)

    def missing(self) -> tuple[int, int] | None:
        """Return, in started order, the oldest ticket that the next batch waits for, and how many those are.

        None where nothing of that batch is outstanding.
        """
        ends = (self._next + 1) * self._size
        number = next((n for n, ticket in self._book.open.items() if not ticket.received), ends)
        return (number, self._size - self._settled[self._next]) if number < ends else None

    def receive(self, episode: Episode) -> None:
        """Keep the first copy of an episode for its batch."""
        number = episode.ticket.number
        self._episodes[number] = episode
        if self._order == "arrival":
            self._arrived.append(number)
        self.settle(number)

    def settle(self, number: int) -> None:
        """Count a ticket that is received or discarded towards its batch."""
        if self._order == "started":
            self._settled[number // self._size] += 1
        self._close()

    def take(self) -> list[Episode] | None:
        """Return the next whole batch by ticket, None if there is none yet."""
        if self.taken == len(self._whole):
            return None
        numbers = self._whole[self.taken]
        self.taken += 1
        return [self._episodes.pop(number) for number in numbers]

    def consume(self) -> None:
        """Settle the tickets of the oldest batch taken: it has been trained on."""
        self._book.consume(self._whole.popleft())
        self.taken -= 1

    def _close(self) -> None:
        """Close every batch that is whole."""
        if self._order == "arrival":
            while len(self._arrived) >= self._size:
                self._whole.append(sorted(self._arrived[: self._size]))
                del self._arrived[: self._size]
            return
        while self._settled[self._next] == self._size:
            first = self._next * self._size
            self._whole.append([n for n in range(first, first + self._size) if n in self._episodes])
            del self._settled[self._next]
            self._next += 1
