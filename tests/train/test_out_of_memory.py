import dataclasses

import pytest

from lmplay.data.rows import Whole
from lmplay.train.out_of_memory import Rehearsed, does_not_fit
from lmplay.train.ranks import ALONE, Ranks
from tests.helpers import ragged


def part(sequences=8, width=24):
    return dataclasses.replace(ragged(), whole=Whole(width, sequences, 1, 0, 1))


def test_ranks_rehearse_again_after_the_first_update_and_where_a_micro_batch_is_larger():
    rehearsed = Rehearsed(Ranks(0, 2))
    assert not rehearsed.covers(part(), 4)
    rehearsed.add(part(), 4)
    assert rehearsed.covers(part(), 4) and not rehearsed.covers(part(width=25), 4)
    rehearsed.updated = True
    assert not rehearsed.covers(part(), 4)
    rehearsed.add(part(), 4)
    assert rehearsed.covers(part(), 2) and rehearsed.covers(part(sequences=3), 4)
    assert rehearsed.covers(part(), 8)  # a rank's share is 4
    assert not rehearsed.covers(part(width=25), 4)


def test_one_process_rehearses_nothing():
    assert Rehearsed(ALONE).covers(ragged(), 10**6)


@pytest.mark.parametrize(
    ('sequences', 'auto', 'advice'),
    [
        (8, False, 'Use --mini-batch-size auto, a smaller one, a shorter --row-length'),
        (8, True, 'Use --mini-batch-size 4, a shorter --row-length'),
        (1, True, 'Use a shorter --row-length'),
    ],
)
def test_it_says_what_is_left_to_do(sequences, auto, advice):
    assert advice in str(does_not_fit(sequences, 24, auto=auto))
