"""Frames that go to many and are made once: the welcome, and the weights of each version that is kept."""

from __future__ import annotations

from collections.abc import Collection

from protocol.codec import encode
from protocol.messages import Arrays, ToWorker, Version, Weights, Welcome


class SharedFrames:
    """The frames of the run of a `welcome`."""

    def __init__(self, welcome: Welcome) -> None:
        self._welcome, self._welcome_frame = welcome, b""
        self._fingerprint = welcome.policy.fingerprint()
        self._weights: dict[int, bytes] = {}

    def of(self, message: ToWorker) -> bytes:
        """Return the frame of a message. Raises ProtocolError where none can hold it."""
        if message is not self._welcome:
            return encode(message)
        self._welcome_frame = self._welcome_frame or encode(message)
        return self._welcome_frame

    def keep(self, version: int, arrays: Arrays, needed: Collection[int]) -> bytes:
        """Keep a version's frame, and return it; those of versions that are not `needed` go."""
        stamp = Version(self._welcome.incarnation, version)
        frame = encode(Weights(self._welcome.run, stamp, self._fingerprint, arrays))
        frames = {**self._weights, version: frame}
        self._weights = {number: kept for number, kept in frames.items() if number in needed}
        return frame

    def weights(self, version: int) -> bytes | None:
        """Return a version's frame, None where it is not kept."""
        return self._weights.get(version)
