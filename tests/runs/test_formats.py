"""What of a run's files is refused, whatever is in them."""

import io
import json
import random

import numpy as np
import pytest

from lmplay.errors import DataError
from lmplay.files import from_json
from lmplay.runs import formats
from lmplay.runs.recorder import read_metrics
from tests.faults.mutate import ODD, TEXTS, npz_shape, reshape, to_bytes

FACTS = {
    'exp': 'a',
    'model': 'a_1',
    'hyperparameters': {'num_blocks': 1},
    'tokenizer': 'bytes',
    'total_parameters': 3,
    'trainable_parameters': 3,
    'active_parameters': 3,
    'row_length': 8,
    'fingerprints': {name: 'x' for name in ('data', 'tokenizer', 'evaluation', 'text')},
}
STAGE = {'name': 's', 'dataset': 'mine', 'mix': None, 'init_from': 'previous', 'row_length': None}
FILES = {
    'stages.json': (formats.STAGES_FILE, {'s': FACTS}),
    'settings.json': (formats.RunSettings, {'seed': 0, 'exp': 'a', 'stages': [STAGE]}),
    'summary.json': (formats.Summary, {'seed': 0, 'tokens': 5, 'contract': {'broken': []}}),
    'environment.json': (formats.Environment, {'devices': [], 'git': {'lmplay': None}}),
    'plan.json': (formats.KeptPlan, {'datasets': {'mine': {}}, 'stages': {'s': {}}}),
}


@pytest.mark.parametrize('name', FILES)
def test_what_is_written_is_read(tmp_path, name):
    form, content = FILES[name]
    (tmp_path / name).write_text(
        json.dumps(content | {'of a later version': 1} if name != 'stages.json' else content)
    )
    assert formats.read(tmp_path / name, form).items() >= content.items()


@pytest.mark.parametrize('name', FILES)
def test_any_other_file_is_refused_in_one_line(tmp_path, name):
    """Each of the damages is one of the campaign's; none raises anything but ValueError."""
    form, content = FILES[name]
    file, refused = tmp_path / name, 0
    for seed in range(300):
        rng = random.Random(seed)
        data = to_bytes(content)
        data = rng.choice(TEXTS)(data, rng) if seed % 3 else to_bytes(reshape(content, rng))
        file.write_bytes(data)
        try:
            assert isinstance(formats.read(file, form), dict)
        except ValueError as error:
            assert name in str(error) and '\n' not in str(error), seed
            refused += 1
    assert refused > 100


@pytest.mark.parametrize('missing', ['exp', 'tokenizer', 'row_length', 'fingerprints'])
def test_a_stage_without_what_readers_ask_for_is_not_written(missing):
    with pytest.raises(ValueError, match=missing):
        formats.checked(formats.StageFacts, {k: v for k, v in FACTS.items() if k != missing})


def test_json_that_nothing_could_work_with_is_none():
    for text in ('[' * 100_000, '9' * 5000, '1' + '0' * 30, '{', b'\xff', '{"a": ' * 50_000):
        with pytest.raises(ValueError):
            from_json(text)
    assert from_json(str(2**64 - 1)) == 2**64 - 1 and from_json('-5') == -5


@pytest.mark.parametrize('odd', [v for v in ODD if not isinstance(v, str)], ids=repr)
@pytest.mark.parametrize('key', ['kind', 'step', 'tokens', 'loss', 'domains', 'stage', 'message'])
def test_a_line_of_metrics_is_a_record_or_refused(tmp_path, key, odd):
    record = {'kind': 'train', 'stage': 's', 'step': 1, 'samples': 4, 'tokens': 9, 'loss': 1.5}
    (tmp_path / 'metrics.jsonl').write_text(
        json.dumps(record) + '\n' + json.dumps(record | {key: odd}) + '\n'
    )
    try:
        assert read_metrics(tmp_path)[0] == record
    except DataError as error:
        assert 'line 2' in str(error)


def test_columns_of_held_out_documents_fit_each_other():
    whole = {name: np.ones(3) for name in formats.DOCUMENT_COLUMNS}
    whole |= {'hash': np.arange(3, dtype=np.uint64), 'domain': np.array(['a', 'b', 'a'])}
    assert formats.checked_documents(whole) is whole
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **whole)
    changed = 0
    for seed in range(60):
        with np.load(io.BytesIO(npz_shape(out.getvalue(), random.Random(seed)))) as arrays:
            try:
                formats.checked_documents(dict(arrays))
            except ValueError:
                changed += 1
    assert changed > 30
