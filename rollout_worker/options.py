"""What a worker is told by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from protocol.addresses import Ports, parse_address
from protocol.errors import UserError
from protocol.messages import MOST_NAME_CHARACTERS

Place = tuple[str, Ports]
"""Host and ports of a learner."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker is told by hand; all else comes with the learner's welcome."""

    learner: str
    """HOST:PORT, or several with commas between them: where it may be after a restart, tried in turn."""
    ports: Ports | None = None
    """All four ports, where they are not the dialled one and the three after it; of one address only."""
    key: Path | None = None
    """Of a key file, where the learner lets in only whom it knows."""
    slots: int = 50
    give_up_after_seconds: float = 600.0
    """The worker ends when it hears nothing from the learner for this long."""
    allow_env: tuple[str, ...] = ()
    """Modules that register Gymnasium environments and may be imported."""
    log_file: Path | None = None
    """Beside standard error."""
    log_level: str = "info"
    journal: Path | None = None
    """Where to note each episode that is played and pushed."""
    max_failures: int = 5
    """Failed tickets in a row after which the worker ends."""
    pool: str = ""
    label: str = ""
    drain_on_term_seconds: float = 0.0
    """SIGTERM lets the running episodes end, for at most this long; 0 returns them at once."""
    die_with_parent: bool = False
    """End when the process that started this one is gone (on Linux, the thread that did)."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name in ("slots", "give_up_after_seconds", "max_failures"):
            if getattr(self, name) <= 0:
                option = name.removesuffix("_seconds").replace("_", "-")
                raise UserError(f"--{option} is {getattr(self, name)}; it must be positive")
        if not self.drain_on_term_seconds >= 0:
            raise UserError(f"--drain-on-term is {self.drain_on_term_seconds}; it must not be negative")
        for name in ("pool", "label"):
            if len(text := getattr(self, name)) > MOST_NAME_CHARACTERS or not text.isprintable():
                raise UserError(f"--{name} is {text!r}; up to {MOST_NAME_CHARACTERS} printable characters")

    def places(self) -> dict[str, Place]:
        """Return where each of the learner's addresses is. Raises UserError."""
        addresses = [address.strip() for address in self.learner.split(",")]
        if self.ports and len(addresses) > 1:
            raise UserError("--ports are those of one learner: give one --learner, or leave --ports out")
        found = {address: parse_address(address) for address in addresses}
        return {
            address: (host, self.ports or Ports.from_base(port)) for address, (host, port) in found.items()
        }
