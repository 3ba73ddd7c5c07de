"""Fuzz every decoder: `make fuzz`, or `python tests/fuzz/run.py [--inputs 1000000] [--seed 1]`.

First hypothesis makes messages of each kind and tampers with them; a sample of the sound ones is the corpus
of the second part, in which atheris is guided by coverage and mutates blindly and with knowledge of frames.
A crash is any error but ProtocolError and UserError, or more memory than a constant times the input's size.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2]))

SAY_SECONDS, MOST_BYTES, MOST_MEMORY_BYTES = 5.0, 8192, 2 * 2**30
SHARE_OF_HYPOTHESIS, MUTANTS_OF_ONE, SEEDS = 0.05, 150, 2000
Counts = Counter[str]


def by_hypothesis(inputs: int, seed: int) -> tuple[list[bytes], Counts]:
    """Check so many inputs made of messages of every kind; return sound ones and what became of all."""
    from protocol.codec import encode
    from tests.fuzz.frames import CODEC, OTHER_SEEDS, check, mutate
    from tests.protocol.test_codec import messages

    seeds, counts, draw = list(OTHER_SEEDS), Counter[str](), random.Random(seed)
    prefix = bytes([CODEC])
    sound: list[bytes] = []
    said = time.monotonic()

    @hypothesis_seed(seed)
    @settings(
        max_examples=-(-inputs // (MUTANTS_OF_ONE + 1)),
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(messages, min_size=1, max_size=1))
    def make(made: list[Any]) -> None:
        nonlocal said
        frame = encode(made[0])
        sound.append(frame)
        if len(seeds) < SEEDS:
            seeds.append(prefix + frame)
        for candidate in (frame, *(mutate(frame, draw, sound) for _ in range(MUTANTS_OF_ONE))):
            counts["inputs"] += 1
            counts["decoded"] += check(prefix + candidate) is not None
        if time.monotonic() - said > SAY_SECONDS:
            said = time.monotonic()
            print(f"hypothesis: {counts['inputs']:,} of {inputs:,} inputs", flush=True)

    make()
    return seeds, counts


def by_atheris(folder: Path, inputs: int, seed: int) -> Counts:
    """Let atheris check so many inputs in a process of its own; RuntimeError where one crashes."""
    stats = folder / "stats.json"
    command = [sys.executable, __file__, "--as-target", str(folder), str(inputs), str(seed)]
    with (folder / "atheris.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            time.sleep(SAY_SECONDS if stats.exists() else 0.2)
            if stats.exists() and process.poll() is None:
                done = json.loads(stats.read_text())
                print(
                    f"atheris: {done['inputs']:,} of {inputs:,} inputs, {done['decoded']:,} decoded",
                    flush=True,
                )
    if process.returncode:
        tail = (folder / "atheris.log").read_text(errors="replace")[-4000:]
        raise RuntimeError(f"atheris ended with status {process.returncode}:\n{tail}\nkept in {folder}")
    return Counter(json.loads(stats.read_text()))


def be_target(folder: Path, inputs: int, seed: int) -> None:
    """Run libFuzzer in this process; it ends in here."""
    import atheris

    with atheris.instrument_imports(include=["protocol"]):
        from tests.fuzz.frames import CODEC, check, mutate
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    corpus = folder / "corpus"
    prefix = bytes([CODEC])
    inputs_there = [file.read_bytes() for file in sorted(corpus.iterdir())]
    frames = [data[1:] for data in inputs_there if data[:1] == prefix]
    counts, stats = Counter[str](inputs=0, decoded=0), folder / "stats.json"
    said = 0.0

    def tell() -> None:
        draft = stats.with_suffix(".new")
        draft.write_text(json.dumps(counts))
        draft.replace(stats)

    def one(data: bytes) -> None:
        nonlocal said
        counts["decoded"] += check(data) is not None
        counts["inputs"] += 1
        if time.monotonic() - said > 1.0 or counts["inputs"] == inputs:
            said = time.monotonic()
            tell()
        if counts["inputs"] == inputs:
            os._exit(0)

    def tampered(data: bytes, most_bytes: int, number: int) -> bytes:
        draw = random.Random(number)
        chance = draw.random()
        if chance < 0.4:  # deep into the decoder: from a sound frame
            return (prefix + mutate(draw.choice(frames), draw, frames))[:most_bytes]
        if chance < 0.8 and data and data[0] % 4 == CODEC:
            return (prefix + mutate(data[1:], draw, frames))[:most_bytes]
        return bytes(atheris.Mutate(data, most_bytes))

    arguments = ["fuzz", f"-seed={seed}", f"-max_len={MOST_BYTES}", "-timeout=20", "-rss_limit_mb=2048"]
    arguments += [f"-artifact_prefix={folder}/", "-verbosity=1", str(corpus)]
    atheris.Setup(arguments, one, custom_mutator=tampered)
    atheris.Fuzz()


def main(
    inputs: Annotated[int, typer.Option(help="In all.")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="All follows from it.")] = 1,
    folder: Annotated[Path | None, typer.Option(help="Keep corpus and log here.")] = None,
) -> None:
    """Fuzz, and exit with 1 where an input crashes a decoder."""
    began = time.monotonic()
    where = Path(tempfile.mkdtemp(prefix="fuzz-"))
    (where / "corpus").mkdir()
    seeds, counts = by_hypothesis(int(inputs * SHARE_OF_HYPOTHESIS), seed)
    for number, content in enumerate(seeds):
        (where / "corpus" / f"{number:05d}").write_bytes(content)
    counts += by_atheris(where, inputs - counts["inputs"], seed)
    print(
        f"{counts['inputs']:,} inputs, {counts['decoded']:,} of them messages, in"
        f" {time.monotonic() - began:.0f} s: no crash, and none took more memory than its size allows"
    )
    if folder is not None:
        shutil.copytree(where, folder, dirs_exist_ok=True)
    shutil.rmtree(where)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-target"]:
        be_target(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        typer.run(main)
