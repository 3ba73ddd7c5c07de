"""Sets of ticket numbers as sorted, disjoint, half-open intervals, in memory and on the wire."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from protocol.messages import Ranges

_MAX_NUMBER = 2**63 - 1


class IntervalSet:
    """A mutable set of integers, cheap where they come in long runs: an addition is one bisection.

    Touching intervals are merged, so equal sets have equal `to_ranges()`.
    """

    __slots__ = ("_starts", "_stops")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in ranges:
            self.add_range(start, stop)

    @classmethod
    def from_ranges(cls, ranges: Ranges) -> IntervalSet:
        """Return the set of all integers in `ranges`."""
        return cls(ranges)

    def to_ranges(self) -> Ranges:
        """Return the intervals: sorted, disjoint, none touching the next."""
        return tuple(zip(self._starts, self._stops, strict=True))

    def copy(self) -> IntervalSet:
        """Return an independent copy."""
        twin = IntervalSet()
        twin._starts, twin._stops = self._starts.copy(), self._stops.copy()
        return twin

    def add(self, number: int) -> None:
        """Add one integer; no effect if present."""
        self.add_range(number, number + 1)

    def add_range(self, start: int, stop: int) -> None:
        """Add start, ..., stop - 1; nothing where stop <= start."""
        if start >= stop:
            return
        first, last = bisect_left(self._stops, start), bisect_right(self._starts, stop)
        if first < last:  # intervals first..last-1 overlap or touch the new one
            start, stop = min(start, self._starts[first]), max(stop, self._stops[last - 1])
        self._starts[first:last], self._stops[first:last] = [start], [stop]

    def discard(self, number: int) -> None:
        """Remove one integer; no effect if absent."""
        self.discard_range(number, number + 1)

    def discard_range(self, start: int, stop: int) -> None:
        """Remove start, ..., stop - 1 where present."""
        first, last = bisect_right(self._stops, start), bisect_left(self._starts, stop)
        if start >= stop or first >= last:
            return
        left, right = self._starts[first], self._stops[last - 1]
        remains = [(a, b) for a, b in ((left, start), (stop, right)) if a < b]
        self._starts[first:last] = [a for a, _ in remains]
        self._stops[first:last] = [b for _, b in remains]

    def __contains__(self, number: int) -> bool:
        index = bisect_right(self._starts, number) - 1
        return index >= 0 and number < self._stops[index]

    def __iter__(self) -> Iterator[int]:
        for start, stop in self.to_ranges():
            yield from range(start, stop)

    def __len__(self) -> int:
        return sum(self._stops) - sum(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and (self._starts, self._stops) == (other._starts, other._stops)

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"IntervalSet({self.to_ranges()})"

    def __ior__(self, other: IntervalSet) -> IntervalSet:
        for start, stop in other.to_ranges():
            self.add_range(start, stop)
        return self

    def __isub__(self, other: IntervalSet) -> IntervalSet:
        for start, stop in other.to_ranges():
            self.discard_range(start, stop)
        return self

    def __iand__(self, other: IntervalSet) -> IntervalSet:
        self -= self - other
        return self

    def __or__(self, other: IntervalSet) -> IntervalSet:
        result = self.copy()
        result |= other
        return result

    def __sub__(self, other: IntervalSet) -> IntervalSet:
        result = self.copy()
        result -= other
        return result

    def __and__(self, other: IntervalSet) -> IntervalSet:
        return self - (self - other)


def to_ranges(numbers: Iterable[int]) -> Ranges:
    """Return the intervals that hold exactly `numbers`, in any order and with repeats."""
    intervals = IntervalSet()
    for number in sorted(numbers):
        intervals.add(number)
    return intervals.to_ranges()


def check_ranges(value: object, limit: int) -> Ranges:
    """Return `value`, a sequence of pairs, as Ranges of at most `limit` integers in all.

    The limit counts integers, not intervals, so that whoever walks through them is safe.
    ValueError says what is wrong: not pairs of integers, negative, empty, unsorted, overlapping, too many.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"ranges must be a list, not {type(value).__name__}")
    ranges: list[tuple[int, int]] = []
    end, count = 0, 0
    for pair in value:
        if not isinstance(pair, list | tuple) or [type(number) for number in pair] != [int, int]:
            raise ValueError("a range must be a pair of integers")
        start, stop = pair
        if start < 0 or stop > _MAX_NUMBER:
            raise ValueError(f"range {start}-{stop} is outside 0 to 2^63 - 1")
        if start >= stop or start < end:
            raise ValueError(f"range {start}-{stop} is empty, unsorted or overlaps the one before")
        end, count = stop, count + stop - start
        if count > limit:
            raise ValueError(f"ranges hold more than {limit:,} numbers")
        ranges.append((start, stop))
    return tuple(ranges)
