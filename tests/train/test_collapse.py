import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmplay.train.collapse import CollapseAlarm

GRID = [(k, E) for k in (1, 2, 3, 4, 8) for E in (2, 3, 4, 8, 9, 16, 64, 128) if k < E]
grid = pytest.mark.parametrize('k, E', GRID)


def load(share, *, layer=1, expert=2, E=8):
    """(3, E) with `share` at one place and the rest spread evenly."""
    x = torch.full((3, E), 1 / E)
    x[layer] = (1 - share) / (E - 1)
    x[layer, expert] = share
    return x


def status(loads, k):
    return CollapseAlarm(k=k).update(loads).status


def test_three_warnings_in_a_row_are_a_collapse():
    alarm = CollapseAlarm()
    found = [
        alarm.update(load(s)) for s in (0.599, 0.7, 0.7, 0.5, 0.601, 0.7, 0.736, 0.8, 0.3, 0.7, 0.7, 0.7)
    ]
    assert [a.status for a in found] == [
        'ok',
        'warning',
        'warning',
        'ok',
        'warning',
        'warning',
        'collapse',
        'collapse',
        'ok',
        'warning',
        'warning',
        'collapse',
    ]
    assert [i for i, a in enumerate(found) if a.onset] == [6, 11]


@grid
def test_total_collapse_is_seen_for_any_k_and_number_of_experts(k, E):
    """All tokens choose the same k experts; or one is among the choices of all, and the rest is even."""
    same = torch.zeros(2, E)
    same[0], same[1, :k] = 1 / E, 1 / k
    assert status(same, k) == 'warning'
    assert status(load(1 / k, E=E, expert=0), k) == 'warning'


@grid
def test_loads_as_uneven_as_two_experts_at_62_percent_are_none(k, E):
    assert status(torch.full((3, E), 1 / E), k) == 'ok'
    mild = min(1.24 / E, 1 / E + 0.24 * (1 / k - 1 / E))
    assert status(load(mild, E=E, expert=0), k) == 'ok'


def test_two_experts_at_62_percent_are_no_collapse():
    assert status(torch.tensor([[0.62, 0.38]]), 1) == 'ok'
    assert status(torch.tensor([[0.95, 0.05]]), 1) == 'warning'


@given(st.data())
def test_the_order_of_experts_does_not_matter(data):
    k, E = data.draw(st.sampled_from(GRID))
    x = torch.tensor(data.draw(st.lists(st.floats(0.01, 1), min_size=E, max_size=E)))
    x = (x / x.sum())[None]
    assert status(x.flip(1), k) == status(x, k)


@pytest.mark.parametrize('k', [1, 2, 8])
def test_where_every_expert_serves_every_token_nothing_can_collapse(k):
    assert CollapseAlarm(k=k, patience=1).update(torch.full((2, k), 1 / k)).status == 'ok'


def test_the_message_names_layer_expert_and_share():
    alarm = CollapseAlarm(patience=2)
    first, second = alarm.update(load(0.736)), alarm.update(load(0.736, layer=2, expert=0))
    assert (first.layer, first.expert, round(first.share, 3)) == (1, 2, 0.736)
    assert (
        'expert 2 of routed layer 1 (of 3) takes 73.6% of the assignments (warning 1 of 2)' in first.message
    )
    assert second.status == 'collapse' and 'expert 0 of routed layer 2' in second.message
    assert alarm.update(load(0.3)).message == ''
    assert 'takes 50.0% of the assignments, of at most 50.0%' in CollapseAlarm(k=2).update(load(0.5)).message


@given(st.lists(st.sampled_from([0.3, 0.6, 0.65, 0.9]), max_size=12), st.integers(0, 12), st.integers(1, 4))
def test_resumed_alarm_equals_uninterrupted_one(shares, cut, patience):
    whole = CollapseAlarm(patience=patience)
    expected = [whole.update(load(s)) for s in shares]
    first, second = CollapseAlarm(patience=patience), CollapseAlarm(patience=patience)
    found = [first.update(load(s)) for s in shares[:cut]]
    second.load_state_dict(first.state_dict())
    assert found + [second.update(load(s)) for s in shares[cut:]] == expected


def test_layers_have_the_names_of_the_pages():
    load = torch.tensor([[0.25] * 4, [0.9, 0.1, 0.0, 0.0]])
    told = CollapseAlarm(names=['layer 8', 'layer 9']).update(load).message
    assert 'expert 0 of layer 9 takes 90.0% of the assignments' in told
