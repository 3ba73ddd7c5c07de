"""`fleet steps`: what the barrier of synchronous mode waited for, from the record of a run's steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.json_file import JsonFile, writable, write_json
from deploy.storage import file_told
from protocol.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from learner.step_record import StepRecord

_SLOWEST = 10
_PICTURED_ROUNDS = 30


def steps(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What --record-steps wrote.")],
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture", metavar="FILE.png", callback=writable, help="Draw the timeline of some rounds."
        ),
    ] = None,
    around: Annotated[
        int | None, typer.Option("--around", metavar="ROUND", help="Draw around it (default: the middle).")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Print the slowest slots, how long the barrier waited, and the share of wall time that this is."""
    from learner.step_record import read_record

    summary = Summary()
    for _, orders in groupby(read_record(file), key=lambda order: (order.life, order.round)):
        summary.add(list(orders))
    if not summary.rounds:
        raise UserError(f"{file} holds no round yet")
    plain = summary.to_plain()
    typer.echo(describe(plain))
    write_json(json_file, plain)
    if picture:
        middle = summary.rounds // 2 if around is None else around
        first = max(1, middle - _PICTURED_ROUNDS // 2)
        rounds = range(first, first + _PICTURED_ROUNDS)
        chosen = [order for order in read_record(file) if order.life == 0 and order.round in rounds]
        if not chosen:
            raise UserError(f"--around {middle} is no round of {file}: it has 1 to {summary.rounds}")
        draw_timeline(chosen, picture)


@dataclass(slots=True)
class SlotTimes:
    """One slot's answers: how long they took, and how often it was among the last of a round."""

    answers: int = 0
    seconds: float = 0.0
    longest_seconds: float = 0.0
    last: int = 0


@dataclass(slots=True)
class Summary:
    """Figures of a record, gathered round by round."""

    waits: list[float] = field(default_factory=list)
    """Seconds from the first order of each round to its last answer."""
    slots: dict[int, SlotTimes] = field(default_factory=dict)
    workers: dict[str, SlotTimes] = field(default_factory=dict)
    """The same of whole orders."""
    lives: dict[int, tuple[float, float]] = field(default_factory=dict)
    """First order and last answer of each life."""

    @property
    def rounds(self) -> int:
        """Return the number of rounds."""
        return len(self.waits)

    def add(self, orders: list[StepRecord]) -> None:
        """Take in a round."""
        sent, ended = min(order.sent for order in orders), max(order.answered for order in orders)
        self.waits.append(ended - sent)
        life = orders[0].life
        self.lives[life] = self.lives.get(life, (sent, ended))[0], ended
        for order in orders:
            places = [self.slots.setdefault(slot, SlotTimes()) for slot in order.slots.tolist()]
            for times in (*places, self.workers.setdefault(order.worker, SlotTimes())):
                times.answers += 1
                times.seconds += order.answered - order.sent
                times.longest_seconds = max(times.longest_seconds, order.answered - order.sent)
                times.last += order.answered == ended

    def to_plain(self) -> dict[str, Any]:
        """Return all figures as JSON values, slots and workers from the slowest on."""
        import numpy as np

        waits = np.array(self.waits)
        wall = sum(end - begin for begin, end in self.lives.values())
        names, shares = ("p50", "p90", "p99", "max"), (50, 90, 99, 100)
        return {
            "rounds": self.rounds,
            "wall_seconds": wall,
            "waiting_share": float(waits.sum() / wall) if wall else 0.0,
            "wait_seconds": dict(zip(names, np.percentile(waits, shares).tolist(), strict=True)),
            "slots": [{"slot": slot, **times} for slot, times in self._slowest(self.slots)],
            "workers": [{"worker": host, **times} for host, times in self._slowest(self.workers)],
        }

    def _slowest(self, found: dict[Any, SlotTimes]) -> Iterable[tuple[Any, dict[str, float]]]:
        for name, times in sorted(found.items(), key=lambda item: -item[1].seconds / item[1].answers):
            yield (
                name,
                {
                    "answers": times.answers,
                    "mean_seconds": times.seconds / times.answers,
                    "max_seconds": times.longest_seconds,
                    "last_share": times.last / self.rounds,
                },
            )


def describe(plain: dict[str, Any]) -> str:
    """Return the figures as text."""
    waits = ", ".join(f"{name} {_spell(seconds)}" for name, seconds in plain["wait_seconds"].items())
    lines = [
        f"{plain['rounds']:,} rounds in {plain['wall_seconds']:.1f} s of wall time",
        f"the barrier waited {waits}",
        f"{plain['waiting_share']:.1%} of the wall time was waiting for answers",
    ]
    for title, kind in (("slot", "slots"), ("worker", "workers")):
        lines.append(f"{title:>16}  {'mean':>9}  {'longest':>9}  {'last in':>8}")
        for times in plain[kind][:_SLOWEST]:
            mean, longest = _spell(times["mean_seconds"]), _spell(times["max_seconds"])
            lines.append(f"{times[title]:>16}  {mean:>9}  {longest:>9}  {times['last_share']:>8.1%}")
        if len(plain[kind]) > _SLOWEST:
            lines.append(f"{f'{len(plain[kind]) - _SLOWEST} faster ones':>16}")
    return "\n".join(lines)


def draw_timeline(orders: Sequence[StepRecord], file: Path) -> None:
    """Draw a line for each slot: coloured, by worker, while its action is under way, grey while it waits."""
    from matplotlib.figure import Figure

    slots = sorted({slot for order in orders for slot in order.slots.tolist()})
    workers = list(dict.fromkeys(order.worker for order in orders))
    began = min(order.sent for order in orders)
    ends = {n: max(o.answered for o in group) for n, group in groupby(orders, key=lambda order: order.round)}
    figure = Figure(figsize=(12, 1.5 + min(len(slots), 100) * 0.08), layout="constrained")
    axes = figure.subplots()
    for order in orders:
        spans = [(_ms(order.sent - began), _ms(order.answered - order.sent))]
        rest = [(_ms(order.answered - began), _ms(ends[order.round] - order.answered))]
        for slot in order.slots.tolist():
            place = slots.index(slot) - 0.4, 0.8
            axes.broken_barh(spans, place, color=f"C{workers.index(order.worker) % 10}", linewidth=0)
            axes.broken_barh(rest, place, color="0.85", linewidth=0)
    for number, worker in enumerate(workers[:10]):
        axes.plot([], [], color=f"C{number}", linewidth=6, label=worker)
    axes.plot([], [], color="0.85", linewidth=6, label="waits for the others")
    axes.set(
        title=f"Rounds {orders[0].round} to {orders[-1].round}",
        xlabel="milliseconds; white is the learner's own time",
        ylabel="slot",
        ylim=(len(slots) - 0.5, -0.5),
    )
    axes.set_yticks(range(0, len(slots), max(1, len(slots) // 10)), slots[:: max(1, len(slots) // 10)])
    figure.legend(loc="outside right upper", frameon=False)
    kinds = figure.canvas.get_supported_filetypes()
    if file.suffix and file.suffix[1:].lower() not in kinds:
        raise UserError(f"--picture {file} is of no known kind: end its name with .png, .pdf or .svg")
    with file_told("--picture", file):
        figure.savefig(file, dpi=120)


def _ms(seconds: float) -> float:
    return seconds * 1000


def _spell(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.2f} ms"
