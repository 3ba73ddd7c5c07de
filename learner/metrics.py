"""What each update did, as rows of metrics.csv and as TensorBoard's event files.

Both hold the same values under the same names. `learning_curve` reads `steps` (environment steps of the
update), `return/LABEL` of each scenario or else `return_mean`, `lag_mean`, `lag_max`, `steps_per_second`.
"""

from __future__ import annotations

import csv
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from learner.descriptors import with_room
from protocol.errors import UserError

Row = Mapping[str, str]


class MetricsWriter:
    """Appends one row an update to `folder`/metrics.csv and `folder`/tensorboard.

    `resumed_update` is the number of updates done before; rows past it, which did not survive, are cut.
    The columns are those of the first row; a later name opens a new one.
    """

    def __init__(self, folder: Path, resumed_update: int = 0) -> None:
        self.path = folder / "metrics.csv"
        rows = [row for row in read_metrics(self.path) if int(row["update"]) <= resumed_update]
        self._columns = list(rows[0]) if rows else []
        self._rewrite(rows)
        life = f"{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        events = folder / "tensorboard" / f"events.out.tfevents.{life}"
        events.parent.mkdir(exist_ok=True)
        self._events = RecordWriter(with_room(lambda: events.open("wb")))
        self._add_event(Event(file_version="brain.Event:2"))
        started = SessionLog(
            status=SessionLog.START
        )  # TensorBoard drops what an earlier life wrote past this
        self._add_event(Event(step=resumed_update + 1, session_log=started))

    def write(self, update: int, values: Mapping[str, float]) -> None:
        """Add the row of one update, the number of updates done with it."""
        if new := [name for name in ("update", *values) if name not in self._columns]:
            self._columns += new
            self._rewrite(read_metrics(self.path))
        with with_room(lambda: self.path.open("a", newline="")) as file:
            csv.DictWriter(file, self._columns).writerow({"update": update, **values})
        summary = Summary(value=[Summary.Value(tag=name, simple_value=v) for name, v in values.items()])
        self._add_event(Event(step=update, summary=summary))

    def close(self) -> None:
        """Bring the last event to its file."""
        self._events.close()

    def _add_event(self, event: Event) -> None:
        event.wall_time = time.time()
        self._events.write(event.SerializeToString())
        self._events.flush()

    def _rewrite(self, rows: list[Row]) -> None:
        draft = self.path.with_suffix(".new")
        draft.parent.mkdir(parents=True, exist_ok=True)
        with with_room(lambda: draft.open("w", newline="")) as file:
            writer = csv.DictWriter(file, self._columns)
            if self._columns:
                writer.writeheader()
            writer.writerows(rows)
        os.replace(draft, self.path)


def read_metrics(path: Path) -> list[Row]:
    """Return the rows of a metrics.csv by column name; a last row that a crash cut short is left out.

    Raises UserError where it is damaged.
    """
    if not path.exists():
        return []
    try:
        with with_room(lambda: path.open(newline="")) as file:
            text = file.read()
        rows: list[Row] = list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))
        for row in rows:
            int(row["update"])
    except (ValueError, KeyError, TypeError, csv.Error):
        raise UserError(f"{path} is damaged: remove it to go on without the metrics up to now") from None
    return rows
