import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from learner.checkpoints import Checkpoint, any_in, checkpoint_folder, content_hash, load, prune, save
from protocol.errors import UserError


def make_checkpoint(update: int = 3) -> Checkpoint:
    random = np.random.default_rng(update)
    arrays: dict[str, NDArray[Any]] = {
        "weights/actor/logits/weight": random.standard_normal((4, 3)).astype(np.float32),
        "optimiser/steps": np.array([7 * update]),
        "normalisation/mean": random.standard_normal(4),
    }
    ledger = {"train": {"consumed": ((0, 40 * update), (300, 301))}, "evaluate": {"consumed": ()}}
    policies: list[NDArray[Any]] = [np.ones((2, 2), np.float32), np.eye(2)]
    versions = {update - 1: {"logits/weight": policies[0]}, update: {"logits/weight": policies[1]}}
    return Checkpoint(update, arrays, ledger, {"lineage": [[1, update]], "learning_rate": 0.1}, versions)


def save_all(run: Path, *updates: int) -> list[Path]:
    folders = [checkpoint_folder(run / "checkpoints", update) for update in updates]
    for folder, update in zip(folders, updates, strict=True):
        save(folder, make_checkpoint(update))
    return folders


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = make_checkpoint()
    save(tmp_path / "update-00003", saved)
    loaded = load(tmp_path / "update-00003")
    assert loaded.update == 3
    assert loaded.arrays.keys() == saved.arrays.keys()
    for name, array in saved.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
        assert loaded.arrays[name].dtype == array.dtype
    assert loaded.versions.keys() == {2, 3}
    np.testing.assert_array_equal(loaded.versions[3]["logits/weight"], np.eye(2))
    assert loaded.ledger == json.loads(json.dumps(saved.ledger)) and loaded.state == saved.state
    assert content_hash(loaded) == content_hash(saved)
    assert [entry.name for entry in tmp_path.iterdir()] == ["update-00003"]


def test_views_are_saved_as_they_look(tmp_path: Path) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    save(tmp_path / "update-1", Checkpoint(1, {"part": whole[:, 2:4].T}, {}))
    np.testing.assert_array_equal(load(tmp_path / "update-1").arrays["part"], whole[:, 2:4].T)


def test_a_run_is_its_newest_checkpoint(tmp_path: Path) -> None:
    save_all(tmp_path, 25, 100_000, 50)
    assert load(tmp_path).update == 100_000


def test_an_older_checkpoint_of_the_same_update_is_replaced(tmp_path: Path) -> None:
    (folder,) = save_all(tmp_path, 5)
    save(folder, replace(make_checkpoint(5), state={"lineage": "new"}))
    assert load(folder).state == {"lineage": "new"}
    assert [entry.name for entry in folder.parent.iterdir()] == ["update-00005"]


def test_prune_keeps_the_newest_and_clears_leftovers(tmp_path: Path) -> None:
    save_all(tmp_path, 1, 2, 30, 4)
    (tmp_path / "checkpoints" / ".update-00031.draft").mkdir()
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    prune(tmp_path / "checkpoints", 2, update=30)
    left = sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir())
    assert left == ["notes.txt", "update-00004", "update-00030"]


def test_prune_keeps_what_is_named_besides(tmp_path: Path) -> None:
    save_all(tmp_path, 1, 2, 3, 4)
    prune(tmp_path / "checkpoints", 1, update=4, also={2, 9})
    left = sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir())
    assert left == ["update-00002", "update-00004"]


def test_prune_removes_what_the_run_went_back_from(tmp_path: Path) -> None:
    """The newest is damaged, the run went on from the one before and has written another."""
    save_all(tmp_path, 20, 30)
    (tmp_path / "checkpoints" / "update-00030" / "state.json").write_text("{}")
    assert load(tmp_path).update == 20
    save_all(tmp_path, 23)
    prune(tmp_path / "checkpoints", 1, update=23)
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["update-00023"]


# Damage


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_became_of_the_newest_the_run_goes_on(tmp_path: Path, data: st.DataObject) -> None:
    """Each file of it is flipped, cut, lengthened, emptied, removed or made a folder, anywhere."""
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    _, newest = save_all(run, 2, 3)
    file = newest / data.draw(st.sampled_from(sorted(entry.name for entry in newest.iterdir())))
    content = file.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "lengthen", "remove", "folder", "unreadable"])):
        case "flip":
            flip = data.draw(st.integers(1, 255))
            file.write_bytes(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :])
        case "cut":
            os.truncate(file, place)
        case "lengthen":
            file.write_bytes(content + data.draw(st.binary(min_size=1, max_size=9)))
        case "remove":
            file.unlink()
        case "folder":
            file.unlink()
            file.mkdir()
        case "unreadable":
            file.unlink()
            file.symlink_to(file)
    loaded = load(run)
    sound = make_checkpoint(2 if loaded.update == 2 else 3)  # white space of the JSON may be what was changed
    assert loaded.update == 2 or file.name == "state.json"
    assert content_hash(loaded) == content_hash(sound) and loaded.versions.keys() == sound.versions.keys()
    shutil.rmtree(newest)
    assert load(run).update == 2


@pytest.mark.parametrize("file", ["arrays.safetensors", "state.json"])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.99])
def test_a_changed_byte_is_found(tmp_path: Path, file: str, place: float) -> None:
    (folder,) = save_all(tmp_path, 3)
    data = bytearray((folder / file).read_bytes())
    data[int(place * len(data))] ^= 0x01
    (folder / file).write_bytes(data)
    with pytest.raises(UserError, match="update-00003") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["arrays.safetensors", "state.json"])
@pytest.mark.parametrize("size", [0, 1, 40])
def test_a_truncated_file_is_found(tmp_path: Path, file: str, size: int) -> None:
    (folder,) = save_all(tmp_path, 3)
    os.truncate(folder / file, size)
    with pytest.raises(UserError, match=rf"{file}.* use another checkpoint"):
        load(folder)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{}", b'{"state_sha256": 3}', b"\xff\x00", b"[" * 9999]
)
def test_a_foreign_state_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(UserError, match=r"state\.json"):
        load(tmp_path)


def test_another_format_version_is_named(tmp_path: Path) -> None:
    (folder,) = save_all(tmp_path, 3)
    state = json.loads((folder / "state.json").read_text()) | {"format_version": 9}
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"version 9, this program reads .* version 1"):
        load(folder)


@pytest.mark.parametrize("missing", ["nowhere", "."])
def test_where_there_is_none_one_is_asked_for(tmp_path: Path, missing: str) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        load(tmp_path / missing)


def test_a_damaged_newest_falls_back_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = save_all(tmp_path, 1, 2, 3)
    (folders[2] / "arrays.safetensors").unlink()
    os.truncate(folders[1] / "state.json", 100)
    assert load(tmp_path).update == 1
    assert "update-00003" in caplog.text and "update-00002" in caplog.text
    os.truncate(folders[0] / "state.json", 100)
    with pytest.raises(UserError, match="all checkpoints"):
        load(tmp_path)


_SAVE_FOREVER = """
import sys
from pathlib import Path
import numpy as np
from learner.checkpoints import Checkpoint, any_in, checkpoint_folder, content_hash, load, prune, save
checkpoints, update = Path(sys.argv[1]), 0
while True:
    update += 1
    arrays = {str(i): np.full((50, 50), float(update)) for i in range(20)}
    save(checkpoint_folder(checkpoints, update), Checkpoint(update, arrays, {"update": update}))
    save(checkpoint_folder(checkpoints, 1), Checkpoint(1, arrays, {"update": update}))
    prune(checkpoints, 2, update)
    print(update, flush=True)
"""


def test_kill_9_at_any_moment_leaves_a_sound_newest_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    random = np.random.default_rng(0)
    for life in range(4):
        run = tmp_path / str(life)
        command = [sys.executable, "-c", _SAVE_FOREVER, str(run / "checkpoints")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert [int(process.stdout.readline()) for _ in range(3)] == [1, 2, 3]
            time.sleep(random.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            announced = [int(line) for line in process.stdout.read().split()] or [3]
        loaded = load(run)
        assert loaded.update >= announced[-1]
        assert loaded.ledger == {"update": loaded.update}
        assert all((array == loaded.update).all() for array in loaded.arrays.values())
        assert not caplog.records  # no half checkpoint was ever seen under its name
        prune(run / "checkpoints", 1, loaded.update)
        assert [entry.name for entry in (run / "checkpoints").iterdir()] == [f"update-{loaded.update:05d}"]


# The content hash


def test_the_hash_is_of_the_training_alone() -> None:
    checkpoint = make_checkpoint()
    same = [
        replace(checkpoint, state={"incarnation": 5}),
        replace(checkpoint, versions={}),
        replace(checkpoint, arrays=dict(reversed(list(checkpoint.arrays.items())))),
        replace(checkpoint, arrays={n: np.asfortranarray(a) for n, a in checkpoint.arrays.items()}),
        replace(
            checkpoint, arrays={n: a.astype(a.dtype.newbyteorder(">")) for n, a in checkpoint.arrays.items()}
        ),
        replace(
            checkpoint, ledger={"train": {"consumed": [[300, 301], [0, 60], [60, 120]]}, "rolled_back": 4}
        ),
    ]
    assert {content_hash(each) for each in same} == {content_hash(checkpoint)}


def test_the_hash_sees_each_of_its_parts() -> None:
    checkpoint = make_checkpoint()
    arrays = dict(checkpoint.arrays)
    others = [
        checkpoint,
        replace(checkpoint, update=4),
        replace(checkpoint, ledger={"train": {"consumed": [[0, 119], [300, 301]]}}),
        replace(checkpoint, arrays=arrays | {"optimiser/steps": np.array([22])}),
        replace(checkpoint, arrays=arrays | {"optimiser/steps": np.array([21], np.int32)}),
        replace(
            checkpoint, arrays=arrays | {"normalisation/mean": arrays["normalisation/mean"].reshape(2, 2)}
        ),
        replace(
            checkpoint, arrays=arrays | {"normalisation/mean": np.nextafter(arrays["normalisation/mean"], 9)}
        ),
        replace(checkpoint, arrays={name: arrays[name] for name in list(arrays)[1:]}),
    ]
    assert len({content_hash(each) for each in others}) == len(others)


# Forged ones, and one killed while it is written again


def test_a_checkpoint_being_written_again_is_there_at_any_moment(tmp_path: Path) -> None:
    """1. killed between the two renames: the older one is loaded, and put back; 2. killed after them."""
    (folder,) = save_all(tmp_path, 3)
    aside = folder.with_name(".update-00003.old")
    folder.rename(aside)
    assert any_in(tmp_path) and load(tmp_path).update == 3
    prune(tmp_path / "checkpoints", 1, update=3)
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["update-00003"]

    shutil.copytree(folder, aside)
    save(folder, replace(make_checkpoint(), state={"newer": True}))
    shutil.copytree(folder, aside)
    assert load(tmp_path).state == {"newer": True}
    save_all(tmp_path, 2)
    prune(tmp_path / "checkpoints", 2, update=3)
    assert {e.name for e in (tmp_path / "checkpoints").iterdir()} == {"update-00003", "update-00002"}


def test_a_draft_alone_is_no_checkpoint(tmp_path: Path) -> None:
    assert not any_in(tmp_path)
    (tmp_path / "checkpoints" / ".update-00001.draft").mkdir(parents=True)
    assert not any_in(tmp_path)


def test_right_hashes_do_not_make_a_checkpoint(tmp_path: Path) -> None:
    """A state without its ledger, and arrays that are none, both with the hashes that belong to them."""
    (folder,) = save_all(tmp_path, 3)
    state = json.loads((folder / "state.json").read_text())

    def write(changed: dict[str, Any]) -> None:
        changed = {key: value for key, value in changed.items() if key != "state_sha256"}
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()
        (folder / "state.json").write_text(json.dumps({**changed, "state_sha256": digest}))

    write({key: value for key, value in state.items() if key != "ledger"})
    with pytest.raises(UserError, match="KeyError"):
        load(folder)
    for data in (b"\xff" * 64, b"\x00" * 8, (2**60).to_bytes(8, "little") + b"{}"):
        (folder / "arrays.safetensors").write_bytes(data)
        write({**state, "arrays_sha256": hashlib.sha256(data).hexdigest()})
        with pytest.raises(UserError, match="SafetensorError"):
            load(folder)
    with pytest.raises(UserError, match="ledger"):
        content_hash(replace(make_checkpoint(), ledger={}))
