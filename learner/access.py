"""Who may speak to this learner and as what; the list of keys is read again while it runs."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from learner.conduct import Conduct, Line, Offence
from learner.descriptors import with_room
from protocol.errors import UserError
from protocol.keys import Allowed, KeyPair, Keyring

logger = logging.getLogger(__name__)

READ_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Changes:
    """What reading the list again brought."""

    revoked: tuple[Allowed, ...]
    reopen: bool
    """All connections are to be closed."""


class Access:
    """The keys of a learner: whom it lets in, what they may do, and who was expelled.

    `own` are keys of this process's making, for this machine's workers and operator; no list holds them. The
    doorkeeper's thread calls `admits`, the trainer's `passes`, `useful` and `offend`, the I/O thread all.
    """

    def __init__(self, keyring: Keyring, own: Collection[Allowed] = ()) -> None:
        self.pair: KeyPair = keyring.learner()
        self.conduct = Conduct()
        self._keyring, self._own = keyring, {key.public: key for key in own}
        self._signature: tuple[int, int, int] | None = keyring.signature()
        self._listed, self._trouble = keyring.allowed(), ""
        self._keys = {**self._listed.keys, **self._own}
        self._expelled: frozenset[str] = frozenset()
        self._read_at = -READ_AGAIN_SECONDS

    def admits(self, public: str) -> bool:
        """Say whether the owner of a key may come in, and whether what it sends is looked at."""
        return public in self._keys and public not in self._expelled

    def passes(self, public: str, line: Line, now: float) -> bool:
        """Say whether a frame of this key is to be decoded."""
        return self.admits(public) and self.conduct.spend(public, line, now)

    def offend(self, public: str, offence: Offence, now: float, times: float = 1.0) -> None:
        """Count something against a key; against none that is not, or no longer, on the list."""
        if public in self._keys:
            self.conduct.offend(public, offence, now, times)

    def useful(self, public: str, line: Line, now: float) -> None:
        """Count a frame in favour of a key."""
        self.conduct.useful(public, line, now)

    def commands(self, public: str) -> bool:
        """Say whether a key may command the fleet."""
        return self.admits(public) and self._keys[public].role == "operator"

    def name(self, public: str) -> str:
        """Return a key's name."""
        return self._keys[public].name if public in self._keys else public

    def expel(self, public: str) -> None:
        """Let a key in no more, and drop what it sends, until it is revoked and allowed again."""
        self._expelled |= {public}

    def read_again(self, now: float) -> Changes | None:
        """Look at the list where a second has passed; return what changed for who is here, if it did."""
        if now - self._read_at < READ_AGAIN_SECONDS:
            return None
        self._read_at = now
        if (signature := self._keyring.signature()) == self._signature:
            return None
        self._signature = signature
        try:
            new = with_room(self._keyring.allowed)
        except UserError as error:
            self._signature = None  # what cannot be read now, as without a free descriptor, may be soon
            if str(error) != self._trouble:
                logger.warning("the list of allowed keys stays as it was: %s", error)
            self._trouble = str(error)
            return None
        self._trouble = ""
        before, self._listed = self._listed, new
        self._keys = {**new.keys, **self._own}
        revoked = tuple(key for public, key in before.keys.items() if public not in new.keys)
        added = [key.name for public, key in new.keys.items() if public not in before.keys]
        self._expelled = self._expelled.intersection(self._keys)
        for key in revoked:
            self.conduct.forget(key.public)
        if added:
            logger.info("lets in %s", ", ".join(added))
        if revoked:
            logger.info("lets in no more: %s", ", ".join(key.name for key in revoked))
        return Changes(revoked, new.reopen > before.reopen)

    def to_plain(self, now: float) -> list[dict[str, Any]]:
        """Return what the status tells of each key that was heard."""
        found = self.conduct.to_plain(now).items()
        return [
            {"name": self.name(public), "role": self._keys[public].role, **record}
            for public, record in found
            if public in self._keys
        ]
