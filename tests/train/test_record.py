"""What a checkpoint records of its run, compared with what a resumed run would do."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmplay.device import Compute
from lmplay.errors import CheckpointError
from lmplay.train.record import FIXED, as_trained, changed_settings, changes, require_same, run_record
from lmplay.train.resolve import Settings

PRINTS = {'data': 'd1', 'tokenizer': 't1', 'text': 'x1', 'evaluation': 'e1', 'document_mask': False}
RECORD = {
    'precision': 'float32',
    'device': 'cpu',
    'options': {'compile_model': None, 'default_freeze': False},
    'stages': [{'name': name, 'lr': 0.1, 'betas': [0.9, 0.95]} for name in 'abc'],
    'source': {'mine/model.py': '1', 'mine/versions.py': '2'},
    'reset': False,
    'fingerprints': PRINTS,
    'facts': {'validation_fraction': 0.1, "'mine': documents": 120, 'packing': 'pack'},
}


def changed(**keys) -> dict:
    return copy.deepcopy(RECORD) | keys


def test_what_is_the_same_is_no_change():
    require_same('run', RECORD, changed())
    assert changes(RECORD, changed(), stage=1) == []


@pytest.mark.parametrize('name', FIXED)
def test_what_losses_have_in_common_may_not_change(name):
    now = changed(precision='bfloat16') if name == 'precision' else changed(fingerprints=PRINTS | {name: '9'})
    with pytest.raises(CheckpointError) as error:
        require_same('runs/mine', RECORD, now)
    message = str(error.value)
    assert FIXED[name] in message and '--run-dir' in message and '--reset-history' in message
    assert "'runs/mine'" in message and '\n' not in message
    old, new = ('float32', 'bfloat16') if name == 'precision' else (PRINTS[name], '9')
    assert f'was {old} and is {new}' in message


def test_float32_products_of_less_precision_are_another_precision():
    compute = Compute.of('cpu', amp=False)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision('highest')
        assert run_record([], [], Settings(), compute)['precision'] == 'float32'
        torch.set_float32_matmul_precision('high')  # as an experiment may, in its versions.py
        assert "'high'" in run_record([], [], Settings(), compute)['precision']
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_refusal_gives_what_a_person_would_compare():
    facts = RECORD['facts'] | {'validation_fraction': 0.3, "'mine': documents": 90, "'mine': limit": 90}
    with pytest.raises(CheckpointError) as error:
        require_same('run', RECORD, changed(fingerprints=PRINTS | {'data': 'd2', 'text': 'x2'}, facts=facts))
    message = str(error.value)
    assert 'the training data and the held-out text changed' in message
    assert 'validation_fraction was 0.1 and is 0.3' in message and 'packing' not in message
    assert "'mine': documents was 120 and is 90; 'mine': limit was None and is 90" in message


def test_facts_alone_refuse_nothing():
    """Where a dataset has its own split, validation_fraction changes nothing."""
    require_same('run', RECORD, changed(facts={'validation_fraction': 0.3}))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*RECORD, 'a']), inner),
    max_leaves=4,
)


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from([*RECORD]), ANYTHING))
def test_a_mangled_record_is_refused_in_a_sentence_or_not_compared(record):
    try:
        require_same('run', record, RECORD)
    except CheckpointError as error:
        assert "can't be resumed" in str(error)
    for event, sentence in changes(record, RECORD, stage=1):
        assert event and sentence
    assert len(as_trained(record.get('stages'), RECORD['stages'], first=2)) == 3


def test_an_older_run_is_told_of_once_and_nothing_of_it_is_compared():
    require_same('run', {}, RECORD)
    ((event, sentence),) = changes({}, RECORD, stage=1)
    assert event == 'unrecorded' and 'recorded no fingerprints' in sentence


def test_changes_that_a_run_may_make():
    stages = [stage | {'lr': 0.2} for stage in RECORD['stages'][:2]] + RECORD['stages'][2:]
    source = {'mine/model.py': '9', 'mine/more.py': '3'}
    now = changed(device='cuda', options={'compile_model': True, 'default_freeze': False}, source=source)
    assert changes(RECORD, now | {'stages': stages}, stage=1) == [
        ('settings', 'Stage "a" is over and was not trained with changed settings: lr from 0.1 to 0.2.'),
        ('settings', 'Stage "b" continues with changed settings: lr from 0.1 to 0.2.'),
        ('device', 'The run continues on cuda; before, on cpu.'),
        ('options', 'The run continues with another option: compile_model was None and is True.'),
        (
            'source',
            "The model's source has changed since the last checkpoint: "
            'mine/model.py, mine/more.py, mine/versions.py.',
        ),
    ]


def test_stages_that_are_over_keep_the_settings_they_were_trained_with():
    now = [stage | {'lr': 9} for stage in RECORD['stages']]
    assert [s['lr'] for s in as_trained(RECORD['stages'], now, first=2)] == [0.1, 0.1, 9]
    renamed = [now[0] | {'name': 'other'}, *now[1:]]
    assert [s['lr'] for s in as_trained(RECORD['stages'], renamed, first=1)] == [9, 9, 9]


@pytest.mark.parametrize('before', [None, 3, 'x', {}, [], [None], [[1]], [{'name': 3}], [{'lr': 1}]])
def test_recorded_settings_that_are_mangled_are_passed_over(before):
    assert changed_settings(before, [{'name': 'a', 'lr': 2}], 0) == []
    assert as_trained(before, [{'name': 'a', 'lr': 2}], first=1) == [{'name': 'a', 'lr': 2}]
