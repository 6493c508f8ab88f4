"""Numbers and texts as people read them."""

import re

from hypothesis import given
from hypothesis import strategies as st

from lmplay.compare.numbers import figure_text, number, visible


def test_numbers_for_people():
    shown = {
        None: '–',
        3: '3',
        99_999: '99,999',
        123_456: '123 k',
        1.5e9: '1.5 G',
        0.123456: '0.1235',
        float('nan'): '–',
    }
    assert [number(v) for v in shown] == list(shown.values())
    assert figure_text('memory', 2**29) == '0.50 GiB' and figure_text('seconds', 1234.56) == '1,234.6'


@given(st.text())
def test_control_characters_become_visible(text):
    shown = visible(text)
    assert len(shown) == len(text) and not re.search(r'[\x00-\x08\x0b-\x1f\x7f]', shown)
    assert all(a == b for a, b in zip(text, shown) if a.isprintable() or a in '\n\t')
