import torch
from hypothesis import given
from hypothesis import strategies as st

from lmplay.train.collapse import CollapseAlarm


def load(share, *, layer=1, expert=2):
    """(3, 4) with `share` at one place and the rest spread evenly."""
    x = torch.full((3, 4), 0.25)
    x[layer] = (1 - share) / 3
    x[layer, expert] = share
    return x


def test_three_warnings_in_a_row_are_a_collapse():
    alarm = CollapseAlarm()
    assert [alarm.update(load(s)).status for s in (0.59, 0.7, 0.7, 0.5, 0.61, 0.7, 0.736, 0.8, 0.3)] == [
        'ok',
        'warning',
        'warning',
        'ok',
        'warning',
        'warning',
        'collapse',
        'collapse',
        'ok',
    ]


def test_the_message_names_layer_expert_and_share():
    alarm = CollapseAlarm(patience=2)
    first, second = alarm.update(load(0.736)), alarm.update(load(0.736, layer=2, expert=0))
    assert (first.layer, first.expert, round(first.share, 3)) == (1, 2, 0.736)
    assert (
        'expert 2 of routed layer 1 (of 3) takes 73.6% of the assignments (warning 1 of 2)' in first.message
    )
    assert second.status == 'collapse' and 'expert 0 of routed layer 2' in second.message
    assert alarm.update(load(0.3)).message == ''


def test_a_single_expert_is_no_collapse():
    assert CollapseAlarm(patience=1).update(torch.ones(2, 1)).status == 'ok'


@given(st.lists(st.sampled_from([0.3, 0.6, 0.65, 0.9]), max_size=12), st.integers(0, 12), st.integers(1, 4))
def test_resumed_alarm_equals_uninterrupted_one(shares, cut, patience):
    whole = CollapseAlarm(patience=patience)
    expected = [whole.update(load(s)) for s in shares]
    first, second = CollapseAlarm(patience=patience), CollapseAlarm(patience=patience)
    found = [first.update(load(s)) for s in shares[:cut]]
    second.load_state_dict(first.state_dict())
    assert found + [second.update(load(s)) for s in shares[cut:]] == expected
