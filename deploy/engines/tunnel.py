"""A learner's ports on a host that cannot reach the learner: one `ssh -R` a host, kept up by a thread.

The session on the host ends when the pipe into our `ssh` closes, so a tunnel never outlives the process that
keeps it, however that ends. A new one takes the ports that the last one had there: workers reconnect by
themselves. A session that the host has not noticed is dead would hold those ports, so it is ended first.
"""

from __future__ import annotations

import fcntl
import logging
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from zlib import crc32

from deploy.engines.remote import folder_of, script
from deploy.engines.ssh_scripts import SCRIPT, HostError, Ssh, explain
from protocol.addresses import Ports, parse_address
from protocol.errors import UserError

logger = logging.getLogger(__name__)

_FIRST_PORT, _BLOCKS = 20_000, 3_000  # below the ports that systems give to outgoing connections
_TRIES = 5  # of blocks of ports, and of one that workers know already
_UP_SECONDS = 60.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0
_TAKEN = "remote port forwarding failed"
"""What ssh says where a port is in use, and where none may be forwarded."""

_PREPARE = """
locked
if lives tunnel; then
    kill "$pid"
    for turn in 1 2 3 4 5 6 7 8 9 10; do
        lives tunnel || break
        sleep 0.2
    done
fi
[ -e "$folder/port" ] && cat "$folder/port" || :
"""
"""Prints the first port of the last tunnel."""

_HOLD = """
case $(cat "/proc/$PPID/comm") in
sshd*) printf '%s %s %s\\n' "$PPID" "$(begun "$PPID")" "$boot" > "$folder/tunnel.pid" ;;
esac
printf '%s\\n' PORT > "$folder/port" && echo up && exec cat > /dev/null
"""


def forwardings(learner: str, port: int) -> list[str]:
    """Return what `ssh -R` is told so that a host has the learner from `port` on; four ports an address."""
    given: list[str] = []
    for address in learner.split(","):
        host, control = parse_address(address)
        shown = f"[{host}]" if ":" in host else host
        for there in astuple(Ports.from_base(control)):
            given.append(f"127.0.0.1:{port + len(given)}:{shown}:{there}")
    return given


def through(learner: str, port: int) -> str:
    """Return the learner's address, or addresses, as they are at the far end of such a tunnel."""
    return ",".join(f"127.0.0.1:{port + 4 * index}" for index in range(len(learner.split(","))))


class Tunnel:
    """Kept up from its making until `close`, which its process's end does too."""

    def __init__(self, ssh: Ssh, host: str, learner: str, purpose: Sequence[str], lock: Path) -> None:
        """Take `lock`, on this machine, so that no two processes end each other's tunnel.

        BlockingIOError where another process has it.
        """
        self._ssh, self._host, self._learner = ssh, host, learner
        self._folder = folder_of(*purpose, host)
        lock.parent.mkdir(parents=True, exist_ok=True)
        self._lock = lock.open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise
        self._port = 0
        """On the host; 0 while it is not known."""
        self._taken = 0
        """Times in a row that somebody else had it."""
        self._trouble = "not up yet"
        self._up, self._closing = threading.Event(), threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name=f"tunnel to {host}", daemon=True)
        self._thread.start()

    def learner(self, seconds: float) -> str:
        """Return the learner's address on the host, once the tunnel is up. HostError if it is not in time."""
        if not self._up.wait(seconds):
            raise HostError(self._host, f"no tunnel: {self._trouble}")
        return through(self._learner, self._port)

    @property
    def trouble(self) -> str:
        """Why it is down; empty while it is up."""
        return "" if self._up.is_set() else f"the tunnel is down: {self._trouble}"

    def close(self) -> None:
        """Take it down; workers behind it wait, as for a learner that is away."""
        self._closing.set()
        if self._process:
            self._process.terminate()
        self._thread.join()
        self._lock.close()

    def _keep(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._closing.is_set():
            try:
                process = self._open()
            except UserError as error:
                self._trouble = error.reason if isinstance(error, HostError) else str(error)
                logger.warning("%s: no tunnel: %s; again in %.0f s", self._host, self._trouble, pause)
                self._closing.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                continue
            logger.info(
                "%s: tunnel up, the learner is %s there", self._host, through(self._learner, self._port)
            )
            self._up.set()
            process.wait()
            self._up.clear()
            pause = _FIRST_PAUSE_SECONDS
            if not self._closing.is_set():
                self._trouble = "it broke"
                logger.warning("%s: the tunnel broke (ssh ended with %d)", self._host, process.returncode)
            _let_go(process)

    def _open(self) -> subprocess.Popen[bytes]:
        """Return an `ssh` whose forwardings hold."""
        last = self._ssh.run(self._host, script(self._folder, _PREPARE)).strip()
        known = self._port or (int(last) if last.isdecimal() else 0)
        if known and self._taken < _TRIES:  # workers use it
            ports = [known]
        else:
            first = crc32(f"{self._folder} {self._learner}".encode())
            ports = [_FIRST_PORT + 4 * ((first + 37 * turn) % _BLOCKS) for turn in range(_TRIES)]
        for port in ports:
            try:
                process = self._attempt(port)
            except HostError as error:
                if _TAKEN not in error.reason:
                    raise
                failure = error
            else:
                self._port, self._taken = port, 0
                return process
        self._taken += 1
        raise failure

    def _attempt(self, port: int) -> subprocess.Popen[bytes]:
        forwarded = [text for given in forwardings(self._learner, port) for text in ("-R", given)]
        more = ["-o", "ExitOnForwardFailure=yes", *forwarded]
        process = subprocess.Popen(
            [*self._ssh.command(self._host, *more, shared=False), SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us
        )
        self._process = process
        if self._closing.is_set():  # `close` may not have seen it
            process.terminate()
        assert process.stdin and process.stdout and process.stderr
        said: deque[bytes] = deque(maxlen=20)
        listener = threading.Thread(target=said.extend, args=(process.stderr,), daemon=True)
        listener.start()  # for as long as it runs: each try to reach a learner that is away says a line
        late = threading.Timer(_UP_SECONDS, process.kill)
        late.start()
        with suppress(BrokenPipeError):
            process.stdin.write((script(self._folder, _HOLD.replace("PORT", str(port))) + "\n").encode())
            process.stdin.flush()
        up = any(line == b"up\n" for line in iter(process.stdout.readline, b""))
        late.cancel()
        if up:
            return process
        listener.join(_UP_SECONDS)
        _let_go(process)
        raise HostError(self._host, explain(b"".join(said).decode(errors="replace"), process.returncode))


def _let_go(process: subprocess.Popen[bytes]) -> None:
    with process, suppress(BrokenPipeError):
        process.kill()
