"""The short form of `python -m tests.faults`."""

import pytest

from tests.faults.__main__ import PARTS, campaign


@pytest.mark.timeout(600)
def test_nothing_is_lost_and_no_fault_ends_in_a_traceback(tmp_path):
    told = []
    parts = [part for part in PARTS if part != 'long']  # which measures time
    tally = campaign(tmp_path, parts, rounds=1, seed=1, tell=told.append)
    assert not tally.bad, '\n'.join(told)
    assert set(tally.counts) == set(parts)
