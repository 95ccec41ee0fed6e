"""Numbers in boxes: lengths that lead from corner to corner, boxes around rotated ones."""

from __future__ import annotations

from hypothesis import given
from strategies import numbers

from epmvg.data.readers.fields import length


@given(numbers, numbers)
def test_a_length_leads_from_start_to_end(start: float, more: float) -> None:
    assert start + length(start, start + more) == start + more
