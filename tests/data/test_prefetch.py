"""Work that threads do ahead of the caller: in order, one batch and no further; no error hides what came before."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from vitral.data.prefetch import in_batches
from vitral.errors import UserError


@pytest.mark.parametrize("count", [0, 1, 4, 5, 13])
@pytest.mark.parametrize("size", [1, 4, 20])
def test_the_results_are_those_of_a_loop(count: int, size: int) -> None:
    def slow_at_first(number: int) -> int:
        time.sleep(0.004 if number % 4 == 0 else 0)
        return number * number

    found = list(in_batches(slow_at_first, range(count), size))
    assert [one for batch in found for one in batch] == [number * number for number in range(count)]
    assert [len(batch) for batch in found] == [min(size, count - start) for start in range(0, count, size)]


def test_the_next_batch_is_made_meanwhile_and_no_other() -> None:
    done, asked = [threading.Event() for _ in range(20)], list[int]()

    def items() -> Iterator[int]:
        for number in range(20):
            asked.append(number)
            yield number

    batches = in_batches(lambda number: done[number].set(), items(), 3)
    next(batches)
    assert all(event.wait(5) for event in done[:6]), "while the caller has the first batch"
    assert asked == [0, 1, 2, 3, 4, 5]
    batches.close()
    assert not any(event.is_set() for event in done[6:])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vitral-decode")]


def test_what_comes_before_an_error_is_not_lost() -> None:
    def fragile(number: int) -> int:
        if number in (7, 8):
            raise UserError("broken", where=str(number))
        return number

    batches = in_batches(fragile, range(20), 3)
    assert [next(batches) for _ in range(3)] == [[0, 1, 2], [3, 4, 5], [6]]
    with pytest.raises(UserError, match="7"):
        next(batches)
