"""`fleet doctor`: why this host cannot play for a learner, or that it can."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from deploy.access import KeyFile, read_key
from deploy.exits import Exit
from deploy.live import find_learner
from deploy.zmtp import Listener, Unreachable, greet
from protocol import VERSION
from protocol.errors import UserError

_PATIENCE_SECONDS = 3.0
_CLOCK_SECONDS = 2.0
_ROLES = {"control": "ROUTER", "weights": "PUB", "episodes": "PULL", "step": "ROUTER"}
_STYLES = {"good": typer.colors.GREEN, "note": typer.colors.YELLOW, "bad": typer.colors.RED}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: `bad` keeps workers of this host from playing, a `note` does not."""

    grade: Literal["good", "note", "bad"]
    text: str


def doctor(
    learner: Annotated[
        str, typer.Argument(metavar="[RUN|HOST:PORT]", help="Which learner; without it, the newest run's.")
    ] = "",
    ports: Annotated[
        str | None,
        typer.Option("--ports", metavar="N,N,N,N", help="All four ports through a tunnel, as for workers."),
    ] = None,
    key: KeyFile = None,
) -> Exit:
    """Examine the way from this host to a learner, as a worker would go it; exit status 1 if one cannot.

    Run it on the workers' host, with the options that workers get.
    """
    from protocol.addresses import Ports, parse_address

    host, port = parse_address(find_learner(learner))
    four = Ports.parse(ports) if ports else Ports.from_base(port)
    failed = False
    for finding in examine(host, {name: getattr(four, name) for name in _ROLES}, key):
        typer.echo(typer.style(f"{finding.grade:<5}", fg=_STYLES[finding.grade]) + finding.text)
        failed |= finding.grade == "bad"
    return Exit.FAILED if failed else Exit.OK


def examine(host: str, ports: Mapping[str, int], key: KeyFile) -> Iterator[Finding]:
    """Yield what there is to say of the ports by role, the key, and then of the learner that answers."""
    with ThreadPoolExecutor(len(ports)) as pool:
        tried = {role: pool.submit(greet, host, port, _PATIENCE_SECONDS) for role, port in ports.items()}
    found: dict[str, Listener] = {}
    for role, attempt in tried.items():
        where = f"{role} port {ports[role]}"
        try:
            found[role] = attempt.result()
        except Unreachable as error:
            yield Finding("bad", f"{where}: {error}")
            continue
        kind, wanted = found[role].kind, _ROLES[role]
        if kind and kind != wanted:
            yield Finding("bad", f"{where}: a {kind} listens there, {role} needs a {wanted}: mixed-up ports?")
        else:
            yield Finding("good", f"{where}: reachable" + (f", a {kind}" if kind else ""))
    if "control" in found:
        yield from _examine_access(found["control"], host, ports["control"], key)


def _examine_access(control: Listener, host: str, port: int, key: KeyFile) -> Iterator[Finding]:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        given = read_key(key, address)
    except UserError as error:
        yield Finding("bad", f"key: {error}")
        return
    encrypted = control.mechanism == "CURVE"
    if encrypted and not given:
        yield Finding(
            "bad", "key: the learner lets in who has a key: give --key FILE, as fleet keys new makes"
        )
        return
    if given and not encrypted:
        yield Finding("bad", "key: the learner speaks in the clear: leave --key and FLEET_KEY out")
        return
    from deploy.query import Line

    try:
        with Line(address, key) as line:
            line.ask(_status())
            began, sent = time.time(), time.monotonic()
            report = line.ask(_status())
            seconds = time.monotonic() - sent
    except UserError as error:
        yield Finding("bad", f"{'key' if encrypted else 'answer'}: {error}")
        return
    if given:
        yield Finding("good", f"key: {given.name} is let in, as {given.role}")
    else:
        yield Finding("note", "key: none is asked for, and nothing is encrypted")
    yield Finding(
        "good", f"answer: run {report['run']}, update {report['version']:,}, in {1000 * seconds:.1f} ms"
    )
    yield _version(str(report.get("software", "")))
    yield _clock(float(report.get("clock", began)) - (began + seconds / 2))
    yield _processor(report)


def _status() -> Any:
    from protocol.messages import Query

    return Query("status")


def _version(theirs: str) -> Finding:
    if theirs == VERSION:
        return Finding("good", f"version: both have {VERSION}")
    if theirs.split(".")[0] == VERSION.split(".")[0]:
        return Finding("note", f"version: {VERSION} here, {theirs} there: they understand each other")
    return Finding("bad", f"version: {VERSION} here, {theirs} there: install the same release")


def _clock(ahead_seconds: float) -> Finding:
    text = f"clock: the learner's is {abs(ahead_seconds):.1f} s {'ahead' if ahead_seconds > 0 else 'behind'}"
    if abs(ahead_seconds) < _CLOCK_SECONDS:
        return Finding("good", text)
    return Finding("note", f"{text}: only the times in logs depend on it")


def _processor(report: Mapping[str, Any]) -> Finding:
    from rollout_worker.probe import processor

    reference = dict(report.get("probe") or {})
    ours, theirs = processor(), reference.get("processor", "")
    if not theirs:
        return Finding("note", "processor: no worker has joined yet, so there is none to compare with")
    if ours == theirs:
        return Finding("good", f"processor: the first worker's, too, is {ours}")
    matters = (
        "exact mode refuses it if it computes other bits" if report.get("exact") else "exact mode may care"
    )
    return Finding("note", f"processor: {ours} here, the first worker's is {theirs}: {matters}")
