"""`fleet ledger`: what became of every ticket, from a run, a checkpoint or a learner at work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.access import KeyFile
from deploy.exits import Exit
from deploy.json_file import JsonFile, write_json
from deploy.live import is_address
from deploy.runs import find_checkpoint
from protocol.errors import UserError

if TYPE_CHECKING:
    from learner.ledger import Ledger, Share


def ledger(
    source: Annotated[
        str, typer.Argument(metavar="RUN|CHECKPOINT|HOST:PORT", help="A port asks a live learner.")
    ],
    key: KeyFile = None,
    json_file: JsonFile = None,
) -> Exit:
    """Print the ledger of tickets and deliveries and check its laws; exit status 1 if one is violated."""
    from deploy.query import ask
    from learner.ledger import Ledger

    plain = ask(source, "ledger", key) if is_address(source) else _read(source)
    try:
        found = Ledger.from_plain(plain)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source} has no ledger that this release understands: {error!r}") from error
    typer.echo(describe(found))
    problems = found.check()
    problems += [problem for problem in plain.get("violations", ()) if problem not in problems]
    for problem in problems:
        typer.secho(f"violated: {problem}", fg=typer.colors.RED)
    write_json(json_file, {**plain, "violations": problems})
    return Exit.FAILED if problems else Exit.OK


def describe(ledger: Ledger) -> str:
    """Return the ledger as the sums that its laws are about, a line each."""
    from learner.ledger import spell_ranges

    lines = []
    for sequence, account in ledger.accounts.items():
        lines.append(
            f"{sequence}: {account.issued:,} issued = {len(account.consumed):,} consumed"
            f" + {account.discards:,} discarded + {len(account.outstanding):,} outstanding"
        )
        lines += [f"  discarded, {reason}: {len(numbers):,}" for reason, numbers in account.discarded.items()]
    counts = ledger.deliveries
    lines.append(
        f"deliveries: {counts.received:,} received = {counts.first_copies:,} first copies"
        f" + {counts.duplicates:,} duplicates + {counts.stale:,} stale + {counts.invalid:,} invalid"
    )
    lines.append(f"rolled back: {ledger.rolled_back:,}")
    lines += [
        f"  incarnation {life.incarnation}, updates {life.updates[0]}-{life.updates[1]}:"
        f" {life.count:,} tickets, {spell_ranges(life.tickets)}"
        for life in ledger.undone
    ]
    shares = ledger.shares.workers if ledger.shares else ()
    lines += [_describe_share(share) for share in shares if share.given or share.deliveries.received]
    return "\n".join(lines)


def _describe_share(share: Share) -> str:
    counts = share.deliveries
    return (
        f"{share.name}: {share.given:,} tickets given = {share.received:,} received"
        f" + {share.taken_back:,} taken back + {share.held:,} held; {counts.received:,} deliveries ="
        f" {counts.first_copies:,} + {counts.duplicates:,} + {counts.stale:,} + {counts.invalid:,}"
    )


def _read(source: str) -> Mapping[str, Any]:
    from learner.checkpoints import any_in, load

    folder = find_checkpoint(source)
    if (address := folder / "address").is_file() and not any_in(folder):
        where = address.read_text().strip()
        raise UserError(f"run {folder.name} has no checkpoint yet: ask its learner, fleet ledger {where}")
    return load(folder).ledger
