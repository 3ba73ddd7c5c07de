import csv
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from learner.learning_curve import draw, smoothed
from learner.metrics import MetricsWriter, read_metrics


def write(folder: Path, updates: range, resumed_update: int = 0, offset: float = 0.0) -> None:
    writer = MetricsWriter(folder, resumed_update)
    for update in updates:
        writer.write(update, {"steps": 4000, "return_mean": update + offset, "lag_mean": 1.0, "lag_max": 2})
    writer.close()


def column(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def test_one_row_an_update_at_once_on_the_disk(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": 0.1 + 0.2, "lag": 2})
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["update,loss,lag", f"1,{0.1 + 0.2!r},2"]
    writer.write(2, {"lag": 3, "loss": math.nan})
    assert column(tmp_path, "lag") == [2, 3]
    writer.close()


def test_a_resumed_run_cuts_what_did_not_survive(tmp_path: Path) -> None:
    write(tmp_path, range(1, 8))
    write(tmp_path, range(6, 9), resumed_update=5, offset=0.5)
    assert column(tmp_path, "update") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert column(tmp_path, "return_mean") == [1, 2, 3, 4, 5, 6.5, 7.5, 8.5]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = events.Scalars("return_mean")
    assert [event.step for event in scalars] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [event.value for event in scalars] == [1, 2, 3, 4, 5, 6.5, 7.5, 8.5]


def test_a_row_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4,40")
    assert len(read_metrics(tmp_path / "metrics.csv")) == 3
    write(tmp_path, range(4, 5), resumed_update=3)
    assert column(tmp_path, "update") == [1, 2, 3, 4]


def test_a_new_name_opens_a_column(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": 1})
    writer.write(2, {"loss": 2, "return/sleep": -3})
    writer.write(3, {"return/sleep": -4})
    writer.close()
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["return/sleep"] for row in rows] == ["", "-3", "-4"]
    assert [row["loss"] for row in rows] == ["1", "2", ""]


def test_the_learning_curve_is_drawn(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    for update in range(1, 41):
        returns = {
            "return/b_line": -100 / update,
            "return/meander": -200 / update if update % 5 else math.nan,
        }
        rest = {"steps": 40_000, "lag_mean": 1.1, "lag_max": 2, "steps_per_second": 50_000.0}
        writer.write(update, returns | rest)
    writer.close()
    draw(tmp_path / "metrics.csv", tmp_path / "curve.png", title="CAGE-2")
    picture = matplotlib.image.imread(tmp_path / "curve.png")[..., :3]
    assert picture.shape[0] > 500 and picture.shape[1] > 800
    for blue_or_orange in ((0x0B, 0x6E, 0x99), (0xD1, 0x60, 0x3D)):
        drawn = np.abs(picture * 255 - blue_or_orange).max(axis=2) < 2
        assert drawn.sum() > 500


@pytest.mark.parametrize("updates", [0, 1, 2])
def test_short_runs_are_drawn_too(tmp_path: Path, updates: int) -> None:
    write(tmp_path, range(1, updates + 1))
    draw(tmp_path / "metrics.csv", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").exists() == (updates > 0)


def test_smoothing_averages_what_is_there() -> None:
    np.testing.assert_allclose(smoothed(np.array([1.0, 2.0, 6.0, np.nan, 4.0]), 3), [1.5, 3.0, 4.0, 5.0, 4.0])
    np.testing.assert_allclose(smoothed(np.array([5.0]), 10), [5.0])
    assert np.isnan(smoothed(np.array([np.nan, np.nan]), 1)).all()
