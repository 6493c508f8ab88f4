"""lmp_eval over a run: what it prints, what it leaves there, and what it refuses."""

import json
import math
import sys

import numpy as np
import pytest

from lmplay.errors import DataError
from lmplay.evaluation.__main__ import main
from lmplay.evaluation.results import FOLDER, read_result, results_of
from lmplay.runs.finished import read_run
from lmplay.train.api import train
from tests.helpers import flip


@pytest.fixture(scope='module')
def run(tmp_path_factory, cache, corpus):
    """A finished run of two steps."""
    plan = {
        'tokenizer': 'bytes',
        'validation_fraction': 0.1,
        'datasets': {'mine': {'loader': 'json', 'path': str(corpus), 'domain_column': 'kind'}},
        'model': {'num_blocks': 1, 'embed_dim': 16, 'num_heads': 2, 'max_len': 32},
        'stages': {'only': {'dataset': 'mine', 'steps': 2, 'batch_size': 4, 'row_length': 32}},
    }
    folder = tmp_path_factory.mktemp('run') / 'r'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('LMP_DATASETS', str(cache))
        return train('gpt2ish', plan=plan, quiet=True, run_dir=folder, device='cpu')


def test_without_lm_eval_one_sentence_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, 'lm_eval', None)
    assert main([str(tmp_path)]) == 2
    assert "pip install 'lmplay[eval]'" in capsys.readouterr().err


def test_scores_go_into_the_run(run, corpus, capsys):
    pytest.importorskip('lm_eval')
    assert main([str(run.folder), '--tasks', 'agreement,bits_per_byte', '--device', 'cpu']) == 0
    shown = capsys.readouterr().out
    assert 'reflexive' in shown and 'bits_per_byte' in shown
    found, told = results_of(read_run(run.folder))
    assert not told and set(found) == {'agreement', 'bits_per_byte'}
    pairs, bits = found['agreement'].metrics['acc'], found['bits_per_byte'].metrics['bits_per_byte']
    assert pairs.value == pytest.approx(np.mean(pairs.sums)) and len(pairs.sums) == 600
    assert bits.value == pytest.approx(bits.sums.sum() / bits.weights.sum()) and not bits.higher_is_better
    assert bits.error and pairs.value == pytest.approx(0.5, abs=0.02)  # by words alone
    documents = [json.loads(line)['text'] for line in corpus.read_text().splitlines()]
    items = [
        json.loads(line) for line in (run.folder / FOLDER / 'bits_per_byte.jsonl').read_text().splitlines()
    ]
    assert len(items) == len(run.documents['hash']) and all(i['doc']['text'] in documents for i in items)
    assert bits.weights.sum() == sum(len(i['doc']['text'].encode()) for i in items)
    assert bits.value == pytest.approx(run.loss('bits_per_byte'), rel=0.2)  # in other windows


def test_other_text_a_limit_and_damage(run, tmp_path, capsys, monkeypatch):
    pytest.importorskip('lm_eval')
    monkeypatch.chdir(tmp_path)
    book = tmp_path / 'book.txt'
    book.write_text('It was a dark night. ' * 400)
    asked = [str(run.folder / 'checkpoints' / 'last'), '--data', str(book), '--out', str(tmp_path / 'out')]
    assert main([*asked, '--tasks', 'bits_per_byte', '--max-bytes', '5000', '--device', 'cpu']) == 0
    found = read_result(tmp_path / 'out' / 'bits_per_byte.json')
    assert found.metrics['bits_per_byte'].weights.tolist() == [5000] and found.checkpoint.startswith('step-')
    assert (
        math.isfinite(found.metrics['bits_per_byte'].value) and found.metrics['bits_per_byte'].error is None
    )
    assert main([*asked, '--tasks', 'agreement', '--limit', '5', '--device', 'cpu']) == 0
    assert read_result(tmp_path / 'out' / 'agreement.json').items == 5
    flip(tmp_path / 'out' / 'agreement.json', 40)
    with pytest.raises(DataError, match='damaged'):
        read_result(tmp_path / 'out' / 'agreement.json')
    capsys.readouterr()
    for arguments, said in (
        ([*asked, '--tasks', 'cloze'], 'cloze needs 4 documents'),
        ([*asked, '--limit', '0'], '--limit must be at least 1'),
        ([*asked, '--data', 'nowhere.txt'], 'nowhere.txt'),
        ([str(tmp_path / 'none')], 'there is no such path'),
        ([*asked, '--task', 'cloze'], "Did you mean '--tasks'"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err
    assert sorted(f.name for f in (tmp_path / 'out').iterdir()) == [
        f'{task}.{kind}' for task in ('agreement', 'bits_per_byte') for kind in ('json', 'jsonl')
    ]
