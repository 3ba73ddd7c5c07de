"""The accounts of tickets and deliveries: what they count, what they refuse, and what `check` finds."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.ledger import MOST_REASONS, MOST_UNDONE, Account, Delivery, Ledger, Undone

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("issue"), st.integers(0, 5)),
        st.tuples(st.just("consume"), st.integers(0, 9)),
        st.tuples(st.just("discard"), st.integers(0, 9)),
    )
)


def settled_ledger() -> Ledger:
    """Tickets 0-2 consumed, 3 discarded, 4 and 5 outstanding."""
    ledger = Ledger()
    account = ledger.accounts["train"]
    account.issue(6)
    account.consume([2, 0, 1])
    account.discard(3, "stuck")
    for delivery in (*[Delivery.FIRST] * 4, Delivery.DUPLICATE, Delivery.STALE, Delivery.INVALID):
        ledger.deliveries.count(delivery)
    return ledger


@given(ACTIONS)
def test_every_number_is_in_one_place_whatever_happens(actions: list[tuple[str, int]]) -> None:
    account = Account()
    outstanding: list[int] = []
    for action, value in actions:
        if action == "issue":
            outstanding += account.issue(value)
        elif outstanding:
            number = outstanding.pop(value % len(outstanding))
            if action == "consume":
                account.consume([number])
            else:
                account.discard(number, f"reason {value}")
    assert account.check() == []
    assert list(account.outstanding) == sorted(outstanding)
    assert account.issued == len(account.consumed) + account.discards + len(outstanding)
    assert Account.from_plain(json.loads(json.dumps(account.to_plain()))).to_plain() == account.to_plain()


def test_a_number_settles_once() -> None:
    account = settled_ledger().accounts["train"]
    for number in (0, 3, 6):
        with pytest.raises(ValueError, match=f"{number} is not outstanding"):
            account.consume([number])
        with pytest.raises(ValueError, match=f"{number} is not outstanding"):
            account.discard(number, "again")
    assert account.check() == []


def test_reasons_are_bounded() -> None:
    account = Account()
    for number in account.issue(MOST_REASONS + 7):
        account.discard(number, f"error at address {number}")
    assert len(account.discarded) == MOST_REASONS + 1
    assert len(account.discarded["other"]) == 7
    assert account.discards == MOST_REASONS + 7


def test_a_ledger_survives_json() -> None:
    ledger = settled_ledger()
    lives = [Undone(life, (3, 4), ((12, 18), (20, 26))) for life in range(MOST_UNDONE + 5)]
    ledger.roll_back(lives)
    assert ledger.rolled_back == 12 * len(lives) and ledger.undone == tuple(lives[5:])
    again = Ledger.from_plain(json.loads(json.dumps(ledger.to_plain())))
    assert again.to_plain() == ledger.to_plain() and again.undone == ledger.undone
    assert again.accounts["train"].discards == 1
    assert again.check() == []


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (("train", "outstanding"), [[5, 6]], "train: tickets 4 were issued and are nowhere"),
        (("train", "outstanding"), [[2, 6]], "train: tickets 2 stand twice, once as outstanding"),
        (
            ("train", "discarded"),
            {"stuck": [[3, 5]]},
            "train: tickets 4 stand twice, once as discarded (stuck)",
        ),
        (("train", "issued"), 5, "train: tickets 5 were never issued"),
        (("deliveries", "received"), 8, "deliveries: 8 received, but 7 of the four kinds"),
        (("deliveries", "first_copies"), 2, "deliveries: 3 consumed from 2 first copies"),
    ],
)
def test_check_names_the_broken_law(path: tuple[str, str], value: Any, found: str) -> None:
    plain = copy.deepcopy(settled_ledger().to_plain())
    plain[path[0]][path[1]] = value
    assert found in Ledger.from_plain(plain).check()
