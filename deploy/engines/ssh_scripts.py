"""Shell scripts on other hosts, by the user's own `ssh`: its config, agent, known hosts and jump hosts hold.

A script goes in over standard input: nothing of it is quoted for the login shell there, shows in a list of
processes, or is too long. All scripts of a host share one connection (ControlMaster), in a folder of ours.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from protocol.errors import UserError

SCRIPT = "exec sh -s"
"""What the login shell of a host is told, whichever shell it is."""

_BEGIN = "rollout-fleet: begin"
"""Whatever a login shell prints before this line is not ours."""
_SILENCE_SECONDS, _SILENCES = 5, 3  # a connection that died without a word is noticed after 15 s
_LINGER_SECONDS = 60  # of a shared connection whose process was killed
_SCRIPT_SECONDS = 60.0
_AT_ONCE = 16

T = TypeVar("T")


class HostError(UserError):
    """A host that does not do what was asked of it; the text is one line and begins with its name."""

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(f"{host}: {reason}")
        self.host, self.reason = host, reason


@dataclass(frozen=True, slots=True)
class SshLogin:
    """How `ssh` is called, beyond what its own config says."""

    user: str = ""
    config: Path | None = None
    """A file instead of ~/.ssh/config, as `ssh -F` takes it."""
    options: tuple[str, ...] = ()
    """As `ssh -o` takes them, such as "ProxyJump=gate"."""
    connect_seconds: int = 10


class Ssh:
    """Runs scripts on hosts; safe to use from several threads. `close` it."""

    def __init__(self, login: SshLogin = SshLogin()) -> None:
        self._login = login
        self._shared: dict[str, bool] = {}
        # Short, because the path of a socket may have 107 bytes; nobody else can enter it.
        short = "/tmp" if Path("/tmp").is_dir() else None
        self._sockets = tempfile.TemporaryDirectory(
            prefix="fleet-ssh-", dir=short, ignore_cleanup_errors=True
        )

    def run(self, host: str, script: str, seconds: float = _SCRIPT_SECONDS) -> str:
        """Run a POSIX shell script on `host`; return what it printed. HostError where it did not succeed."""
        # In braces it is read to its end before any of it runs, and nothing that runs can eat the rest.
        text = f"{{\nprintf '%s\\n' '{_BEGIN}'\n{script}\n}} < /dev/null\n"
        with tempfile.TemporaryFile() as errors:  # a pipe would be held open by the shared connection
            try:
                done = subprocess.run(
                    [*self.command(host), SCRIPT],
                    input=text.encode(),
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    timeout=seconds,
                    start_new_session=True,  # Ctrl-C is for us
                )
            except subprocess.TimeoutExpired:
                raise HostError(host, f"no answer within {seconds:.0f} s") from None
            errors.seek(0)
            said = errors.read().decode(errors="replace")
        if done.returncode:
            raise HostError(host, explain(said, done.returncode))
        _, begun, printed = done.stdout.decode(errors="replace").partition(_BEGIN + "\n")
        if not begun:
            answer = last_line(done.stdout.decode(errors="replace")) or last_line(said)
            raise HostError(host, f"its login shell runs no commands: {answer or 'no word from it'}")
        return printed

    def command(self, host: str, *more: str, shared: bool = True) -> list[str]:
        """Return the `ssh` command for a host, which lacks only what it shall run there.

        `more` are further options. `shared`: over the shared connection, without the forwardings of the
        user's config.
        """
        login = self._login
        options = [
            *login.options,
            "BatchMode=yes",
            f"ConnectTimeout={login.connect_seconds}",
            f"ServerAliveInterval={_SILENCE_SECONDS}",
            f"ServerAliveCountMax={_SILENCES}",
            "LogLevel=ERROR",
            "RemoteCommand=none",
        ]
        if not shared:
            options += ["ControlMaster=no", "ControlPath=none"]
        else:
            options += ["ClearAllForwardings=yes"]
            if not self._shares_already(host):
                path = Path(self._sockets.name) / "%C"
                options += ["ControlMaster=auto", f"ControlPath={path}", f"ControlPersist={_LINGER_SECONDS}"]
        return [
            *self._program,
            "-T",
            *(text for option in options for text in ("-o", option)),
            *(["-l", login.user] if login.user else []),
            *more,
            "--",
            host,
        ]

    def each(self, hosts: Iterable[str], do: Callable[[str], T]) -> Mapping[str, T | HostError]:
        """Do something with all hosts, side by side; return what came of it, in their order."""
        hosts = list(hosts)

        def attempt(host: str) -> T | HostError:
            try:
                return do(host)
            except HostError as error:
                return error

        if not hosts:
            return {}
        with ThreadPoolExecutor(min(_AT_ONCE, len(hosts))) as pool:
            return dict(zip(hosts, pool.map(attempt, hosts), strict=True))

    def close(self) -> None:
        """End the shared connections; what was started over them goes on. Closing again does nothing."""
        if not Path(self._sockets.name).exists():
            return
        for socket in Path(self._sockets.name).iterdir():
            command = [*self._program, "-o", f"ControlPath={socket}", "-O", "exit", "any"]
            subprocess.run(command, capture_output=True, timeout=_SCRIPT_SECONDS)
        self._sockets.cleanup()

    @cached_property
    def _program(self) -> list[str]:
        if not (found := shutil.which("ssh")):
            raise UserError("no `ssh` on this machine: install OpenSSH's client")
        config = self._login.config
        if config and not config.is_file():
            raise UserError(f"{config}: no such file, which ssh_config names")
        return [found, *(["-F", str(config)] if config else [])]

    def _shares_already(self, host: str) -> bool:
        """Return whether the user's own config shares connections to this host: perhaps one made by hand."""
        if host not in self._shared:
            asked = [*self._program, "-G", *(text for o in self._login.options for text in ("-o", o))]
            said = subprocess.run([*asked, "--", host], capture_output=True, text=True).stdout
            self._shared[host] = re.search(r"^controlpath (?!none$)", said, re.MULTILINE) is not None
        return self._shared[host]


_REASONS: Sequence[tuple[str, str]] = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key has changed; if it may: ssh-keygen -R HOST",
    ),
    ("Host key verification failed", "its host key is not known here: log in once by hand"),
    ("Could not resolve hostname", "no host of that name is known"),
    ("Connection refused", "refuses the connection: no ssh server on that port"),
    (r"[Tt]imed out|[Tt]imeout", "does not answer"),
    ("No route to host|Network is unreachable", "cannot be reached"),
    ("Too many authentication failures", "refuses the keys offered: name the right one in ssh's config"),
    (
        "remote port forwarding failed",
        "none of the ports tried is free there, or its ssh server forbids forwarding",
    ),
    (r"Permission denied \(", "refuses the key"),
    ("No space left on device|Disk quota exceeded", "its disk is full"),
    (
        "No matching distribution found|Failed to establish a new connection",
        "cannot fetch packages: say where they are with pip_options",
    ),
)
"""What ssh, or a script, says; the first that fits counts."""


def explain(said: str, status: int) -> str:
    """Return in one line why ssh, or the script that it ran, ended with this status, having said this."""
    for pattern, reason in _REASONS:
        line = next((line for line in said.splitlines() if re.search(pattern, line)), None)
        if line is not None:
            return f"{reason} ({line.strip(' @')})"
    errors = [line for line in said.splitlines() if line.startswith("ERROR: ")]  # pip's, before its hints
    return last_line("\n".join(errors) or said) or f"its shell ended with status {status}, without a word"


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
