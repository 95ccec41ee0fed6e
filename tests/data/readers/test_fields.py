"""Numbers in boxes: lengths that lead from corner to corner, boxes around rotated ones."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from epmvg.data.readers.fields import length

numbers = st.floats(0, 5000, allow_nan=False) | st.integers(0, 5000)


@given(numbers, numbers)
def test_a_length_leads_from_start_to_end(start: float, more: float) -> None:
    assert start + length(start, start + more) == start + more
