"""Hosts environments for a learner that plays them itself, one step of all a round: synchronous mode."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from protocol.codec import decode, encode
from protocol.errors import FleetError, ProtocolError
from protocol.sockets import Socket
from protocol.sockets.frames import receive_soon, send_nowait
from protocol.sockets.worker import redial
from protocol.specs import EnvironmentSpec, without_greedy
from protocol.step_messages import Present, SlotFailure, SlotReset, Step, Stepped
from protocol.tickets import environment_seed
from rollout_worker.environments import registry
from rollout_worker.environments.delayed_slots import DelayedSlots
from rollout_worker.environments.slots import (
    RAISED,
    SlotEnvironments,
    SlotFailures,
    StepResult,
    failure_reason,
)

logger = logging.getLogger(__name__)

Rows = NDArray[np.int64]
_ALL = slice(None)


class Host:
    """The environments behind the learner's slots, built as they are dealt.

    A slot is open from its reset to the end or failure of its episode. An open slot has a row, its place
    among all environments; these are blocks of `SlotEnvironments`, usually one, each stepped by one call.
    """

    def __init__(self, environments: SlotEnvironments, spec: EnvironmentSpec, run_seed: int) -> None:
        self.passes = self.steps = 0
        """Rounds answered and environment steps made."""
        self.inside = False
        """Whether a round is being played."""
        self.failed_in_a_row = 0
        """Failures since the last episode that ended well."""
        self._spec, self._run_seed = spec, run_seed
        self._size, self._dtype = environments.observation_size, environments.observation_dtype
        self._blocks = [environments]
        self._rows: dict[int, int] = {}
        """Of the open slots."""
        self._free = list(range(environments.slots))
        self._failures: dict[int, str] = {}
        """Slots that failed in this round."""
        self._logged: BaseException | None = None

    @property
    def environments(self) -> int:
        """Return how many are built."""
        return sum(block.slots for block in self._blocks)

    def step(self, step: Step, session: str = "") -> Stepped:
        """Advance the slots of a step, then begin those of its resets; what raises is among the failures."""
        self._failures, self.inside = {}, True
        slots: list[int] = step.slots.tolist()
        result = self._advance_known(slots, step.actions) if slots else self._blank(0)
        digests = np.zeros(len(slots), np.uint32)
        if step.resets:
            begun, more = self._begin(step.resets)
            slots += [reset.slot for reset in step.resets]
            both = self._blank(len(slots))
            _write(both, slice(len(digests)), result)
            _write(both, slice(len(digests), None), begun)
            result, digests = both, np.concatenate((digests, more))
        self._settle(slots, result)
        self.passes, self.inside = self.passes + 1, False
        failures = tuple(SlotFailure(slot, reason) for slot, reason in self._failures.items())
        return Stepped(session, step.incarnation, step.number, *result, digests, failures)

    def forget(self) -> None:
        """Close all slots: the learner begins them anew."""
        self._free += self._rows.values()
        self._rows.clear()

    def close(self) -> None:
        """Close the environments."""
        for block in self._blocks:
            block.close()

    def _advance_known(self, slots: list[int], actions: NDArray[np.int64]) -> StepResult:
        """Advance those of `slots` [k] that are open; the others fail."""
        rows = [self._rows.get(slot, -1) for slot in slots]
        if -1 not in rows:
            return self._advance(np.array(rows, np.int64), actions)
        self._failures |= {slot: "it has no ticket here" for slot in slots if slot not in self._rows}
        known, result = np.flatnonzero(np.array(rows) >= 0), self._blank(len(slots))
        if len(known):
            _write(result, known, self._advance(np.array(rows, np.int64)[known], actions[known]))
        return result

    def _advance(self, rows: Rows, actions: NDArray[np.int64]) -> StepResult:
        """Step the environments of `rows` [k] once, in one call for each block."""
        self.steps += len(rows)
        shares = self._shares(rows)
        if len(shares) == 1:
            block, start, _ = shares[0]
            result = self._step(block, start, rows - start if start else rows, actions)
        else:
            result = self._blank(len(rows))
            for block, start, inside in shares:
                _write(result, inside, self._step(block, start, rows[inside] - start, actions[inside]))
        for block, start, inside in shares:
            if isinstance(block, DelayedSlots):
                block.wait(rows[inside] - start)
        return result

    def _step(
        self, block: SlotEnvironments, start: int, local: Rows, actions: NDArray[np.int64]
    ) -> StepResult:
        """Step environments of one block, whose first row is `start`; note those that raise."""
        try:
            return block.step(local, actions)
        except SlotFailures as failures:
            self._fail(start, failures.errors)
            result: StepResult = failures.result
            return result
        except RAISED as error:
            self._fail(start, dict.fromkeys(local.tolist(), error))
            return self._blank(len(local))

    def _begin(self, resets: tuple[SlotReset, ...]) -> tuple[StepResult, NDArray[np.uint32]]:
        """Reset slots from their tickets and take their actions; return what came last, and the digests."""
        self._make_room(reset.slot for reset in resets)
        rows = np.array([self._open(reset.slot) for reset in resets], np.int64)
        seeds = np.array([environment_seed(self._run_seed, reset.ticket) for reset in resets], np.uint64)
        tickets = [reset.ticket for reset in resets]
        scenarios = [without_greedy(self._spec.scenario(t.sequence, t.number))[0] for t in tickets]
        result = self._blank(len(resets))
        observations, _, terminated, truncated = result
        for block, start, inside in self._shares(rows):
            local = rows[inside] - start
            chosen = np.array(scenarios, object)[inside].tolist()
            if isinstance(block, DelayedSlots):
                for row, reset in zip(local.tolist(), np.array(resets, object)[inside], strict=True):
                    block.numbers[row] = reset.slot
            try:
                observations[inside] = block.reset(local, seeds[inside], chosen)
            except SlotFailures as failures:
                observations[inside] = failures.result
                self._fail(start, failures.errors)
            except RAISED as error:
                self._fail(start, dict.fromkeys(local.tolist(), error))
        lengths = np.array([len(reset.actions) for reset in resets])
        digests = np.zeros(len(resets), np.uint32)
        for number in range(lengths.max()):
            failed = np.array([reset.slot in self._failures for reset in resets])
            going = np.flatnonzero((lengths > number) & ~(failed | terminated | truncated))
            if not len(going):
                break
            for row in going.tolist():
                digests[row] = zlib.crc32(observations[row].tobytes(), int(digests[row]))
            actions = np.array([resets[row].actions[number] for row in going.tolist()], np.int64)
            _write(result, going, self._advance(rows[going], actions))
        return result, digests

    def _settle(self, slots: list[int], result: StepResult) -> None:
        """Close the slots whose episode ended or failed; blank the rows of failures, which mean nothing."""
        _, _, terminated, truncated = result
        for slot in self._failures:
            for array in result:
                array[slots.index(slot)] = 0
            self._close(slot)
        self.failed_in_a_row += len(self._failures)
        if b"\1" in terminated.tobytes() or b"\1" in truncated.tobytes():
            self.failed_in_a_row = 0
            for row in np.flatnonzero(terminated | truncated).tolist():
                self._close(slots[row])

    def _shares(self, rows: Rows) -> list[tuple[SlotEnvironments, int, slice | Rows]]:
        """Return the blocks that some of `rows` are in: block, its first row, which of `rows`."""
        if len(self._blocks) == 1:
            return [(self._blocks[0], 0, _ALL)]
        shares: list[tuple[SlotEnvironments, int, slice | Rows]] = []
        start = 0
        for block in self._blocks:
            inside = np.flatnonzero((rows >= start) & (rows < start + block.slots))
            if len(inside):
                shares.append((block, start, inside))
            start += block.slots
        return shares

    def _make_room(self, slots: Iterable[int]) -> None:
        """Build the environments that new slots lack; when nothing is open, gather all in one block."""
        new = len(set(slots) - self._rows.keys())
        missing = new - len(self._free)
        if not self._rows and (missing > 0 or len(self._blocks) > 1):
            self.close()
            total = max(new, self.environments)
            self._blocks, self._free = [registry.build(self._spec, total)], list(range(total))
        elif missing > 0:
            total = self.environments + missing
            self._free += range(self.environments, total)
            self._blocks.append(registry.build(self._spec, missing))
        else:
            return
        logger.info("hosts in %d environments", total)

    def _open(self, slot: int) -> int:
        if slot not in self._rows:
            self._rows[slot] = self._free.pop(0)
        return self._rows[slot]

    def _close(self, slot: int) -> None:
        if slot in self._rows:
            self._free.append(self._rows.pop(slot))

    def _fail(self, start: int, errors: Mapping[int, BaseException]) -> None:
        """Note failures by their place in the block that begins at row `start`."""
        slots = {row: slot for slot, row in self._rows.items()}
        for row, error in errors.items():
            slot = slots[start + row]
            logger.error("slot %d failed", slot, exc_info=error is not self._logged and error)
            self._logged = error
            self._failures[slot] = failure_reason(error)

    def _blank(self, count: int) -> StepResult:
        flags = np.zeros((2, count), np.bool_)
        return np.zeros((count, self._size), self._dtype), np.zeros(count, np.float32), flags[0], flags[1]


class StepService:
    """Answers the learner's steps over the step socket, each once; owns both socket and host.

    A learner that has not got an answer sends its step again when it hears `Present`, which is said whenever
    nothing came for `quiet_seconds`: so a lost frame costs that time, and no reconnect needs to be noticed.
    """

    def __init__(self, socket: Socket, host: Host, session: str, quiet_seconds: float) -> None:
        self.host = host
        self._socket, self._session, self._quiet_seconds = socket, session, quiet_seconds
        self._incarnation = self._number = 0
        """Of the last step answered."""
        self._answer = b""
        self._heard_at = time.monotonic()

    def dial(self, host: str, port: int) -> None:
        """Turn to another learner, or to the same one elsewhere."""
        redial(self._socket, host, port)

    def introduce(self, incarnation: int) -> None:
        """Say that this session is here, first of all and whenever the learner may have forgotten it."""
        if incarnation > self._incarnation:
            self._follow(incarnation)
        self._say_present()

    def serve(self) -> None:
        """Wait a moment for a frame and answer it. ProtocolError where it is nothing that a learner sends."""
        frame = receive_soon(self._socket)
        if frame is None:
            if time.monotonic() - self._heard_at >= self._quiet_seconds:
                self._say_present()
            return
        step = decode(frame)
        if not isinstance(step, Step):
            raise ProtocolError(f"a learner does not send {type(step).__name__} over the step socket")
        if step.incarnation > self._incarnation:
            self._follow(step.incarnation)
        if step.incarnation < self._incarnation or step.number < self._number:
            return
        if step.number > self._number:
            self._answer, self._number = self._encoded(self.host.step(step, self._session)), step.number
        send_nowait(self._socket, self._answer)
        self._heard_at = time.monotonic()

    def close(self) -> None:
        """Close the socket and the environments."""
        self._socket.close(linger=0)
        self.host.close()

    def _encoded(self, answer: Stepped) -> bytes:
        try:
            return encode(answer)
        except ProtocolError as error:
            raise FleetError(f"an answer cannot be sent: {error}") from error

    def _follow(self, incarnation: int) -> None:
        self._incarnation, self._number, self._answer = incarnation, 0, b""
        self.host.forget()

    def _say_present(self) -> None:
        send_nowait(self._socket, encode(Present(self._session, self._incarnation)))
        self._heard_at = time.monotonic()


def _write(result: StepResult, where: slice | Rows, part: StepResult) -> None:
    for whole, piece in zip(result, part, strict=True):
        whole[where] = piece
