from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.app import run_command
from deploy.commands.compare import asynchronous, blocking_version, step_seconds, synchronous
from deploy.comparison.figures import Mode, Work, curve, measure, predict
from deploy.comparison.pictures import draw_timelines
from deploy.comparison.run import Recording, Sample, WorkerSample, record
from deploy.comparison.table import Comparison, to_markdown, to_plain
from deploy.comparison.timeline import SLOTS, Span, around_an_update, asynchronous_spans
from deploy.environment import environment_spec
from deploy.settings import resolve
from learner.models import policy_spec
from protocol.errors import FleetError
from rollout_worker.environments.delays import parse
from tests.end_to_end.fleet_processes import Argument, Fleet

STRAGGLER = "straggler:8ms,50ms,0.05"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.close()


def work(delay: str = STRAGGLER, step_seconds: float = 0.0) -> Work:
    return Work(
        n_envs=100,
        episodes_per_update=100,
        max_lag=2,
        workers=2,
        cores=2,
        delay=parse(delay) if delay else None,
        step_seconds=step_seconds,
    )


def recording(
    mode: Mode = "async", seconds: float = 10.0, steps_per_second: float = 9500.0, workers: int = 2
) -> Recording:
    """Return a run whose tickets last `seconds`, at one pace, with a start of 3 s and a tail of 2 s."""
    samples = []
    for tick in range(int((seconds + 4) * 5)):
        at = 101.05 + tick / 5
        played = max(0.0, at - 103)
        learner = {"cpu_seconds": 1 + 0.2 * played, "messages": 200 * played, "bytes": 3e6 * played}
        if mode == "sync":
            learner |= {
                "steps": steps_per_second * played,
                "rounds": steps_per_second * played / 100,
                "barrier_seconds": 0.9 * played,
            }
        at_beat = max(0.0, at - 0.1 - 103)
        share = steps_per_second * at_beat / workers
        samples.append(
            Sample(
                at=at,
                first_issued_at=103.0 if played else math.nan,
                last_issued_at=103 + seconds if played > seconds else math.nan,
                version=int(played),
                ready=workers,
                measured=learner,
                workers={
                    f"w{number}": WorkerSample(at - 0.1, round(share), 0.3 * at_beat)
                    for number in range(workers)
                },
            )
        )
    rows = [
        {
            "seconds": str(3 + number),
            "steps": str(steps_per_second),
            "episodes": str(steps_per_second / 100),
            "update_seconds": "0.1",
            "return_mean": str(-100 + number),
            "lag_mean": "1.0",
            "lag_max": "2.0",
        }
        for number in range(1, int(seconds) + 1)
    ]
    return Recording(began=100.0, ended=105.0 + seconds, samples=samples, rows=rows, foreign_cores=0.1)


def test_theory_of_the_straggler_law() -> None:
    measured = {"episode_steps": 100.0, "update_seconds": 0.2, "episodes_per_second": 99.0}
    one, other = (predict(work(), mode, measured) for mode in ("async", "sync"))
    barrier = 0.008 + 0.042 * (1 - 0.95**100)  # 50 ms unless all 100 draw the short time
    assert work().barrier_seconds == pytest.approx(barrier)
    assert one["steps_per_second"] == pytest.approx(100 / 0.0101)
    assert one["efficiency"] == 1 and one["waiting_share"] == 0 and one["barriers_per_episode"] == 0
    assert one["lag_mean"] == pytest.approx(1 + 0.2 * 0.99)
    assert other["efficiency_outside_update"] == pytest.approx(0.0101 / barrier)
    assert other["steps_per_second"] == pytest.approx(10_000 / (100 * barrier + 0.2))
    assert other["barriers_per_episode"] == 101 and other["lag_max"] == 0
    assert other["efficiency"] + other["waiting_share"] == pytest.approx(1)
    assert other["waiting_at_barriers_share"] < other["waiting_share"]


def test_theory_counts_the_own_step_slow_slots_and_batches_of_several_waves() -> None:
    slow = work("constant:10ms,slow=0.1x4", step_seconds=0.001)
    assert slow.ideal_steps_per_second == pytest.approx(90 / 0.011 + 10 / 0.041)
    assert slow.barrier_seconds == pytest.approx(0.041)
    measured = {"episode_steps": 50.0, "update_seconds": 0.0, "episodes_per_second": 1.0}
    uneven = predict(replace(slow, episodes_per_update=150), "sync", measured)
    assert uneven["steps_per_second"] == pytest.approx(
        150 * 50 / (2 * 50 * 0.041)
    )  # the second wave half empty


def test_figures_are_of_the_window_between_first_and_last_ticket() -> None:
    found = measure(recording(), work(), "async")
    assert found["window_seconds"] == pytest.approx(10)
    assert found["steps_per_second"] == pytest.approx(9500, rel=1e-3)
    assert found["efficiency"] == pytest.approx(9500 * 0.0101 / 100, rel=1e-3)
    assert found["waiting_share"] == pytest.approx(1 - found["efficiency"])
    assert found["whole_seconds"] == pytest.approx(15)
    assert found["efficiency_whole"] == pytest.approx(found["efficiency"] * 10 / 15, rel=1e-2)
    assert found["worker_cpu_share"] == pytest.approx(2 * 0.3 / 2, rel=1e-2)
    assert found["learner_cpu_share"] == pytest.approx(0.2 / 2, rel=1e-2)
    assert found["messages_per_episode"] == pytest.approx(200 / 95, rel=1e-2)
    assert found["bytes_per_episode"] == pytest.approx(3e6 / 95, rel=1e-2)
    assert (found["lag_mean"], found["lag_max"]) == (1, 2)


def test_figures_of_sync_leave_the_updates_out_beside() -> None:
    found = measure(recording("sync", steps_per_second=1800), work(), "sync")
    assert found["barriers_per_episode"] == pytest.approx(100)
    assert found["barrier_seconds"] == pytest.approx(0.9 / 18)
    # Ten updates of 0.1 s are done when the last ticket is issued.
    assert found["steps_per_second_outside_update"] == pytest.approx(1800 * 10 / 9, rel=1e-3)
    assert found["waiting_at_barriers_share"] == pytest.approx(0.9 - found["efficiency"])


def test_a_window_can_wait_for_all_workers() -> None:
    run = recording("sync", steps_per_second=1800)
    late = [replace(sample, ready=2 if sample.at > 107 else 1) for sample in run.samples]
    found = measure(replace(run, samples=late), work(), "sync", all_present=2)
    assert found["window_seconds"] == pytest.approx(5, abs=0.21)  # from the end of the update of second 4
    with pytest.raises(FleetError, match="more --episodes"):
        measure(run, work(), "sync", all_present=3)
    with pytest.raises(FleetError, match="more --episodes"):
        measure(replace(run, samples=run.samples[:20]), work(), "sync")


def test_the_curve_adds_steps_up() -> None:
    assert curve(recording())[:2] == [(4.0, 9500.0, -99.0), (5.0, 19000.0, -98.0)]


def comparison(delay: str = STRAGGLER, blocking_rate: float = 9400.0) -> Comparison:
    one = [measure(recording(steps_per_second=rate), work(delay), "async") for rate in (9500.0, 9700.0)]
    other = [measure(recording("sync", steps_per_second=rate), work(delay), "sync") for rate in (1800, 1900)]
    slept = measure(recording(steps_per_second=blocking_rate, workers=100), work(delay), "async")
    return Comparison("title", work(delay), {"async": one, "sync": other}, {"async": slept} if delay else {})


def test_json_holds_means_spread_theory_and_runs() -> None:
    plain = json.loads(json.dumps(to_plain(comparison()), allow_nan=False))
    assert plain["async"]["efficiency"] == pytest.approx(9600 * 0.0101 / 100, rel=1e-3)
    assert plain["async"]["episodes_per_second"] == pytest.approx(96, rel=1e-3)
    assert plain["sync"]["spread"]["steps_per_second"] == pytest.approx([1800, 1900], rel=1e-3)
    assert len(plain["sync"]["runs"]) == 2 and plain["sync"]["theory"]["lag_mean"] == 0
    assert plain["speed_up"]["runs"] == pytest.approx([9500 / 1800, 9700 / 1900], rel=1e-3)
    assert plain["speed_up"]["theory"] > 4.9
    assert plain["work"]["expected_maximum_seconds"] == pytest.approx(0.04975, abs=1e-4)
    assert plain["blocking"]["async"]["efficiency"] == pytest.approx(0.949, abs=1e-3)


def test_markdown_shows_measured_beside_theory() -> None:
    text = to_markdown(comparison())
    assert "| Efficiency (1) | 97.0% (96.0% – 98.0%) | 100.0% | 18.7%" in text
    assert "**Speed-up of async, steps/s** | **5.19 (5.11 – 5.28)** |" in text
    assert "async -2.0 points" in text and "µs of CPU" not in text
    assert "10.100 ms, the delay's own mean" in text
    assert all(line.count("|") == 6 for line in text.splitlines() if line.startswith("|"))


def test_markdown_explains_where_blocking_differs_and_efficiency_means_nothing() -> None:
    assert "async -46.4 points: a step took the workers" in to_markdown(comparison(blocking_rate=5000))
    free = comparison("")
    assert "Efficiency means nothing here" in to_markdown(free) and "nan" not in to_markdown(free)
    assert to_plain(free)["async"]["efficiency"] is None


def test_episodes_are_of_one_length_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    run = asynchronous({"n_envs": "7"}, 50, None).run
    assert (run.episode_length, run.episodes_per_update, run.total_episodes) == ((0,), 7, 50)
    assert asynchronous({"episode_length": ["20"]}, 50, None).run.episode_length == (20,)
    (file := tmp_path / "settings.toml").write_text("episode_length = [30, 50]\nepisodes_per_update = 9\n")
    run = asynchronous({}, 50, file).run
    assert (run.episode_length, run.episodes_per_update) == ((30, 50), 9)


def test_both_modes_are_given_the_same_work() -> None:
    settings = resolve({"n_envs": 8, "total_episodes": 80, "episodes_per_update": 8, "lag": "exact:1"})
    other = synchronous(settings)
    assert other.run == replace(settings.run, mode="sync", max_lag=0, order="arrival", exact=False)
    assert other.ppo == settings.ppo
    slept = blocking_version(replace(settings, run=replace(settings.run, step_delay="constant:1ms")))
    assert (slept.launch.workers, slept.launch.slots, slept.run.step_delay) == (8, 1, "constant:1ms,blocking")


def test_a_step_alone_is_measured_without_its_delay() -> None:
    run = resolve({"environment": "CartPole-v1", "step_delay": "constant:1s"}).run
    assert 0 < step_seconds(environment_spec(run)) < 0.5


def test_async_steps_follow_each_other_and_last_as_long_as_drawn() -> None:
    settings = resolve({"environment": "CartPole-v1", "step_delay": "constant:20ms"})
    spec = environment_spec(settings.run)
    spans = asynchronous_spans(spec, policy_spec(spec, settings.ppo), 1, slots=2, seconds=0.3)
    assert {span.slot for span in spans} == {0, 1}
    for span in spans:
        assert span.over - span.began == pytest.approx(0.02) and span.seen >= span.over


def test_the_longest_pause_is_shown() -> None:
    spans = [Span(0, t, t + 0.01, t + 0.02) for t in (0, 0.02, 0.04, 0.5, 0.52, 0.54, 0.9)]
    assert [span.began for span in around_an_update(spans, 0.09)] == [0.02, 0.04]


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    settings = resolve({"environment": "CartPole-v1", "total_episodes": 4, "episodes_per_update": 4})
    broken = replace(settings, launch=replace(settings.launch, allow_env=("no_such_module",)))
    with pytest.raises(FleetError, match="no_such_module"):
        record(broken, tmp_path, "broken")


def test_compare_end_to_end(fleet: Fleet) -> None:
    options: list[Argument] = [
        "--env",
        "CartPole-v1",
        "--n-envs",
        4,
        "--episodes",
        24,
        "--repetitions",
        1,
        "--slots",
        2,
    ]
    options += ["--workers", 2, "--step-delay", "exponential:4ms", "--folder", "out"]
    plain = fleet.json("compare", *options)
    assert 0 < plain["sync"]["efficiency"] < plain["async"]["efficiency"] < 1.1
    assert plain["sync"]["barrier_seconds"] > 0.9 * plain["sync"]["theory"]["barrier_seconds"]
    assert plain["async"]["lag_max"] > 0 == plain["sync"]["lag_max"]
    assert plain["async"]["barriers_per_episode"] == 0 < plain["sync"]["barriers_per_episode"]
    assert plain["async"]["messages_per_episode"] >= 1
    assert all(0 < plain["blocking"][mode]["efficiency"] < 1.1 for mode in ("async", "sync"))
    out = fleet.folder / "out"
    assert "| Efficiency (1) |" in (out / "comparison.md").read_text()
    for picture in ("timelines.png", "returns.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for arguments, told in (
        (["--step-delay", "constant:1ms,blocking"], "leave ,blocking out"),
        (["--folder", str(tmp_path)], "is not empty"),
        (
            ["--n-envs", "10", "--workers", "3", "--slots", "2", "--folder", str(tmp_path / "new")],
            "6 environ",
        ),
    ):
        assert run_command(["compare", *arguments]) == 2
        printed = capsys.readouterr().err
        assert told in printed and printed.count("\n") == 1


def test_timelines_are_small(tmp_path: Path) -> None:
    spans = [
        Span(slot, step / 100, step / 100 + 0.008, step / 100 + 0.01)
        for slot in range(SLOTS)
        for step in range(100)
    ]
    draw_timelines({"async": spans, "sync": spans}, 100, 1.0, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size < 150_000
