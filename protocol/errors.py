"""What can go wrong on the wire.

FleetError
├── ProtocolError           a frame that is not a valid message
│   ├── FrameTooLarge
│   └── VersionMismatch
└── UserError               a mistake in what the user asked for; printed as one line, without a trace
"""

from __future__ import annotations


class FleetError(Exception):
    """The root of this project's errors."""


class ProtocolError(FleetError):
    """A frame that does not decode to a valid message; it is counted and dropped."""


class FrameTooLarge(ProtocolError):
    """A frame or array above its limit; carries both numbers."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(f"{what} has {size:,}, the limit is {limit:,}")
        self.size, self.limit = size, limit


class VersionMismatch(ProtocolError):
    """A peer that speaks another major version of the protocol; carries both versions."""

    def __init__(self, theirs: int, ours: int) -> None:
        super().__init__(
            f"the peer speaks protocol version {theirs}, this program speaks {ours}: install the same release"
        )
        self.theirs, self.ours = theirs, ours


class UserError(FleetError):
    """A mistake that its user can mend; the text says what happened, where, and what to do."""
