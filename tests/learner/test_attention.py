from learner.attention import Attention


def test_two_empty_turns_running_say_that_everyone_was_heard() -> None:
    attention = Attention(4.0, now=0.0)
    turns = [(True, False), (True, True), (False, False), (True, False), (True, True)]
    for number, (emptied, heard) in enumerate(turns):
        assert attention.heard_everyone(emptied, 0.01 * number) is heard, number


def test_reading_for_long_says_it_too_but_not_after_a_pause() -> None:
    attention = Attention(4.0, now=0.0)
    assert not any(attention.heard_everyone(False, 0.5 * turn) for turn in range(1, 9))
    assert attention.heard_everyone(False, 4.5)
    assert not attention.heard_everyone(False, 5.6)  # it stood still for more than a quarter of 4 s
    assert not any(attention.heard_everyone(False, 5.6 + 0.5 * turn) for turn in range(1, 9))
    assert attention.heard_everyone(False, 10.1)
