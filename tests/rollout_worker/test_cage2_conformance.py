"""The simulator against recorded steps of the real environment, and the check against damaged records."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rollout_worker.environments.cage2 import tables
from rollout_worker.environments.cage2.conformance import AT_RESET, check_trace, load_trace

ROOT = Path(__file__).parents[2]
RECORDED = ROOT.parent / "shared" / "cage2" / "traces"
COPY = ROOT / "tests" / "data" / "cage2_meander_memory.npz"
TRACES = sorted(RECORDED.glob("*.npz")) or [COPY]
MEMORY = ("meander_exploited", "meander_escalated", "meander_scanned", "meander_mapped", "b_line_counter")
CHOICES = ("red_kind", "red_target", "exploit", "detected", "escalate_pick", "escalate_pick_removable")
INFORMATION = ("blue_action", "blue_policy", "seed", "rules", "initial_obs", "green_kind", "green_target")

INTEGERS = (*CHOICES, "ot_running", "decoys", "b_line_counter", "initial_obs")

Arrays = dict[str, Any]


def part(arrays: Arrays, episodes: int, steps: int) -> Arrays:
    """The first episodes and steps of a trace."""
    shape = arrays["blue_action"].shape
    return {
        name: array[:episodes, :steps].copy() if array.shape[:2] == shape else array[:episodes].copy()
        for name, array in arrays.items()
        if array.ndim
    } | {name: array for name, array in arrays.items() if not array.ndim}


def write(folder: Path, arrays: Arrays) -> Path:
    path = folder / "part.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_every_recorded_step_agrees(path: Path) -> None:
    report = check_trace(path)
    assert report.mismatch is None, str(report)
    assert report.steps_compared == load_trace(path)["obs"].shape[0] * load_trace(path)["obs"].shape[1]
    assert report.rules == ("leaderboard" if path.stem.startswith("leaderboard") else "current")
    assert all(agent in path.stem for agent in report.red_agents)


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 3), (1, 7), (4, 53)])
def test_traces_of_other_shapes_and_without_memory_arrays(
    tmp_path: Path, path: Path, shape: tuple[int, int]
) -> None:
    arrays = {name: array for name, array in part(load_trace(path), *shape).items() if name not in MEMORY}
    report = check_trace(write(tmp_path, arrays))
    assert report.mismatch is None, str(report)
    assert (report.episodes, report.steps_compared) == (shape[0], shape[0] * shape[1])


def flip(array: NDArray[Any], at: tuple[int, ...]) -> None:
    """Change one value: an activity, a mark, one session more, another counter, a reward by a tenth."""
    array[at] = array[at] + 0.1 if array.dtype.kind == "f" else array[at] ^ 1


CHECKED = [name for name in load_trace(COPY) if name not in (*INFORMATION, *CHOICES)]


@pytest.mark.parametrize("field", CHECKED)
@pytest.mark.parametrize("episodes", [1, 3])
def test_one_changed_value_is_found_where_it_is(tmp_path: Path, field: str, episodes: int) -> None:
    rng = np.random.default_rng(0)
    for step in (0, 1, 2, 17, 39):
        arrays = part(load_trace(COPY), episodes, 40)
        at = (episodes - 1, step, *(int(rng.integers(n)) for n in arrays[field].shape[2:]))
        flip(arrays[field], at)
        mismatch = check_trace(write(tmp_path, arrays)).mismatch
        assert mismatch is not None
        assert (mismatch.episode, mismatch.step, mismatch.field) == (*at[:2], field)
        assert mismatch.index == (at[2] if len(at) > 2 else None)
        assert mismatch.expected == pytest.approx(float(arrays[field][at]))
        assert field in str(mismatch)
        assert f"step {step}" in str(mismatch)


def impossible(field: str, arrays: Arrays, at: tuple[int, int]) -> int:
    """A value that the rules do not allow for a choice that was made there."""
    if field == "exploit":
        target = arrays["red_target"][at]
        candidates = int(tables.CANDIDATES[arrays["red_port_memory"][(*at, target)]])
        return next(number for number in range(9) if not candidates >> number & 1)
    if field == "escalate_pick_removable":
        return int(1 - arrays[field][at])
    if field == "red_kind":
        return 1 if arrays[field][at] == 5 else 5
    return {"red_target": 13, "escalate_pick": 1, "detected": -1}[field]


@pytest.mark.parametrize("field", CHOICES)
@pytest.mark.parametrize("alone", [True, False])
def test_an_impossible_choice_is_found_where_it_is(tmp_path: Path, field: str, alone: bool) -> None:
    whole = part(load_trace(COPY), 12, 40)
    made = np.argwhere(whole[field] >= 0)
    for episode, step in made[np.random.default_rng(0).permutation(len(made))[:8]]:
        arrays = {name: array.copy() for name, array in whole.items()}
        arrays[field] = arrays[field].astype(np.int64)
        arrays[field][episode, step] = wrong = impossible(field, whole, (episode, step))
        if alone:
            arrays = {
                name: array[episode : episode + 1] if array.ndim else array for name, array in arrays.items()
            }
        mismatch = check_trace(write(tmp_path, arrays)).mismatch
        assert mismatch is not None
        assert (mismatch.episode, mismatch.step, mismatch.field) == (0 if alone else episode, step, field)
        assert isinstance(mismatch.got, tuple)
        assert wrong not in mismatch.got


@pytest.mark.parametrize("field", ["exploit", "detected", "escalate_pick", "escalate_pick_removable"])
def test_a_choice_where_none_is_made_is_found(tmp_path: Path, field: str) -> None:
    arrays = part(load_trace(COPY), 2, 20)
    step = int(np.flatnonzero(arrays[field][1] == -1)[3])
    arrays[field][1, step] = 0
    mismatch = check_trace(write(tmp_path, arrays)).mismatch
    assert mismatch is not None
    assert (mismatch.episode, mismatch.step, mismatch.field, mismatch.got) == (1, step, field, (-1,))


def test_a_changed_first_observation_is_found_at_the_reset(tmp_path: Path) -> None:
    arrays = part(load_trace(COPY), 3, 5)
    arrays["initial_obs"][2, 47] = 1
    mismatch = check_trace(write(tmp_path, arrays)).mismatch
    assert mismatch is not None
    assert (mismatch.episode, mismatch.step, mismatch.field, mismatch.index) == (
        2,
        AT_RESET,
        "initial_obs",
        47,
    )
    assert "at reset" in str(mismatch)
    assert "User3" in str(mismatch)


def test_wrong_rules_and_wrong_agents_do_not_pass(tmp_path: Path) -> None:
    arrays = part(load_trace(COPY), 60, 100) | {"rules": np.array(1, np.uint8)}
    assert check_trace(write(tmp_path, arrays)).mismatch is not None
    bare = {name: array for name, array in load_trace(COPY).items() if name not in MEMORY}
    report = check_trace(write(tmp_path, bare), red_agent="b_line")
    assert report.mismatch is not None
    assert report.mismatch.field in ("red_kind", "red_target")
    with pytest.raises(ValueError, match="one of sleep, b_line, meander, scripted"):
        check_trace(COPY, red_agent="clever")


def damage(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no traces, each with a word of the sentence that must refuse it."""
    arrays = part(load_trace(COPY), 2, 5)
    content = COPY.read_bytes()
    files = {"cut": content[: len(content) // 2], "text": b"episode,step\n", "empty": b"", "hole": b""}
    middle = len(content) // 3
    files["hole"] = content[:middle] + bytes(64) + content[middle + 64 :]
    for name, data in files.items():
        (folder / f"{name}.npz").write_bytes(data)
    found = {name: (folder / f"{name}.npz", "") for name in files}
    changes: dict[str, tuple[Arrays, str]] = {
        "lacks": ({n: a for n, a in arrays.items() if n != "obs"}, "obs"),
        "shape": (arrays | {"obs": arrays["obs"][..., :51]}, "obs"),
        "steps": (arrays | {"reward": arrays["reward"][:, :3]}, "reward"),
        "action": (arrays | {"blue_action": arrays["blue_action"] * 0 + 145}, "blue_action"),
        "rules": (arrays | {"rules": np.array(3, np.uint8)}, "rules"),
        "words": (arrays | {"red_kind": arrays["red_kind"].astype(str)}, "red_kind"),
        "none": ({n: a[:0] if a.ndim else a for n, a in arrays.items()}, "blue_action"),
        "pickle": (arrays | {"obs": np.array([[None]], object)}, ""),
    }
    for name in INTEGERS:
        beyond = arrays[name].astype(np.uint64)
        beyond[0] = 2**64 - 1  # which is -1, "none", where it wraps around
        changes[f"beyond {name}"] = (arrays | {name: beyond}, name)
    for name, (changed, word) in changes.items():
        found[name] = (folder / f"{name}.npz", word)
        np.savez(found[name][0], **changed)
    np.save(folder / "single.npy", arrays["obs"])
    return found | {
        "single": (folder / "single.npy", ""),
        "missing": (folder / "no.npz", ""),
        "folder": (folder, ""),
    }


def test_files_that_are_no_traces_are_refused_in_one_sentence(tmp_path: Path) -> None:
    for name, (path, word) in damage(tmp_path).items():
        with pytest.raises(ValueError, match="give steps recorded in CybORG, complete") as refusal:
            check_trace(path)
        assert str(path) in str(refusal.value), name
        assert word in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_a_small_file_of_huge_arrays_is_refused_unread_and_unknown_arrays_do_not_matter(
    tmp_path: Path,
) -> None:
    arrays = part(load_trace(COPY), 2, 5)
    path = write(tmp_path, arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("unknown.npy", b"neither read nor checked")
    assert check_trace(path).mismatch is None
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("seed.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(300):
            member.write(bytes(2**20))
    assert path.stat().st_size < 2**22
    with pytest.raises(ValueError, match=r"its arrays take 31\d+ bytes, more than 268435456"):
        load_trace(path)
