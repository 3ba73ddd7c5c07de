"""Where a learner is: its host, and the four ports that it listens on."""

from __future__ import annotations

import errno
import ipaddress
import random
import socket as network
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import astuple, dataclass

from protocol.errors import UserError

_RANDOM = random.SystemRandom()
_AUTO_PORTS = range(20_000, 32_000, 4)  # below the ports that systems give to outgoing connections


@dataclass(frozen=True, slots=True)
class Ports:
    """The four ports of a learner."""

    control: int
    weights: int
    episodes: int
    step: int

    def __post_init__(self) -> None:
        ports = astuple(self)
        if not all(0 < port < 2**16 for port in ports) or len(set(ports)) < len(ports):
            raise UserError(
                f"ports {', '.join(map(str, ports))} must be four different numbers from 1 to 65535"
            )

    @classmethod
    def from_base(cls, base: int) -> Ports:
        """Return `base` and the three ports after it."""
        return cls(base, base + 1, base + 2, base + 3)

    @classmethod
    def parse(cls, text: str) -> Ports:
        """Return the ports of "5555" (and the three after it) or "5555,6001,6002,6003" (for tunnels)."""
        numbers = text.split(",")
        if len(numbers) not in (1, 4) or not all(map(_is_number, numbers)):
            raise UserError(
                f"{text!r} is neither a port, such as 5555, nor four, such as 5555,6001,6002,6003"
            )
        return cls.from_base(int(text)) if len(numbers) == 1 else cls(*map(int, numbers))


def parse_address(text: str) -> tuple[str, int]:
    """Return host and control port of "HOST:PORT"; an IPv6 address stands in brackets, as in "[::1]:5555"."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or (":" in host and not bracketed) or not _is_number(port) or not 0 < int(port) < 2**16:
        raise UserError(f"{text!r} is no address of a learner: write HOST:PORT, such as gpu-box:5555")
    return host[1:-1] if bracketed else host, int(port)


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= 5


def is_loopback(address: str) -> bool:
    """Say whether only this host reaches an address."""
    return ipaddress.ip_address(address).is_loopback


def resolve(host: str) -> str:
    """Return an address of a host, an IPv4 one if it has any. Raises UserError where it has none."""
    try:
        found = network.getaddrinfo(host, None, type=network.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"{host!r} is no address and no name of a host") from error
    return str(min(found, key=lambda entry: entry[0] != network.AF_INET)[4][0])


def endpoint(host: str, port: int) -> str:
    """Return what ZeroMQ calls this address."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def free_blocks(host: str) -> Iterator[Ports]:
    """Yield, in random order, blocks of four ports that are free at the moment."""
    address = resolve(host)
    for base in _RANDOM.sample(_AUTO_PORTS, 100):
        ports = Ports.from_base(base)
        try:
            with ExitStack() as opened:
                for port in astuple(ports):
                    opened.enter_context(network.create_server((address, port), family=_family(address)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
        yield ports


def _family(address: str) -> network.AddressFamily:
    return network.AF_INET6 if ":" in address else network.AF_INET
