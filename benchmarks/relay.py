"""A network that can be cut: a TCP relay in user space, whose connections stall or break on command."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any

_CHUNK_BYTES = 1 << 16


class Relay:
    """Forwards a free local port to each of `targets`, in a thread of its own, while it is entered.

    `stall` stops all bytes where they are, as a network does that drops packets: nobody is told. `cut` breaks
    every connection, loses what was under way, and breaks new ones at once. `heal` ends both.
    """

    def __init__(self, targets: Sequence[int], host: str = "127.0.0.1") -> None:
        self.ports: list[int] = []
        self.delay_seconds = 0.0
        """Of each piece of up to 64 KiB, one after the other."""
        self._targets, self._host = targets, host
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        self._whole = True
        self._writers: set[asyncio.StreamWriter] = set()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)

    def __enter__(self) -> Relay:
        """Listen."""
        self._thread.start()
        self._wait_for(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Break what is left and end the thread."""
        self._wait_for(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def stall(self) -> None:
        """Let no byte through; connections stay."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def cut(self) -> None:
        """Break all connections, and every new one."""
        self._loop.call_soon_threadsafe(self._break)

    def heal(self) -> None:
        """Let bytes through again, and connections stand."""
        self._loop.call_soon_threadsafe(self._mend)

    # The relay's thread

    def _wait_for(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _listen(self) -> None:
        for target in self._targets:
            server = await asyncio.start_server(partial(self._accept, target), self._host, 0)
            self._servers.append(server)
            self.ports.append(server.sockets[0].getsockname()[1])

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        self._break()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    async def _accept(self, target: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        beyond: asyncio.StreamWriter | None = None
        with suppress(OSError, asyncio.CancelledError):
            await self._flows.wait()
            if self._whole:
                answers, beyond = await asyncio.open_connection(self._host, target)
                self._writers.add(beyond)
                await asyncio.wait(
                    [
                        asyncio.ensure_future(self._pump(reader, beyond)),
                        asyncio.ensure_future(self._pump(answers, writer)),
                    ],
                    return_when=asyncio.FIRST_COMPLETED,
                )
        for end in (writer, beyond):
            if end is not None:
                end.close() if self._whole else end.transport.abort()
                self._writers.discard(end)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await asyncio.sleep(self.delay_seconds)
                await self._flows.wait()
                writer.write(data)
                await writer.drain()

    def _break(self) -> None:
        self._whole = False
        self._flows.set()
        for writer in self._writers:
            writer.transport.abort()

    def _mend(self) -> None:
        self._whole = True
        self._flows.set()
