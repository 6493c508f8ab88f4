import json
import re

import pytest

from lmplay.data.rows import PackedRows, PaddedRows
from lmplay.errors import DataError
from lmplay.tokenizers import BytesTokenizer
from lmplay.train.plan import parse_plan
from lmplay.train.resolve import Settings, resolve
from lmplay.train.stage_data import open_data, open_tokenizer, save_datasets
from tests.helpers import EXPERIMENTS

BYTES = BytesTokenizer()


def plan_of(corpus, *, tokenizer=None, fraction=0.1, **keys):
    stage = {'dataset': 'mine', 'steps': 2, 'row_length': 32, 'validation_bytes': 600} | keys
    raw = {'datasets': {'mine': {'loader': 'json', 'path': str(corpus), 'domain_column': 'kind'}}}
    raw |= {'validation_fraction': fraction, 'stages': {'s': stage}}
    return parse_plan(raw | ({'tokenizer': tokenizer} if tokenizer else {}))


def data_of(plan):
    (stage,) = resolve(plan, Settings(exp=f'{EXPERIMENTS}:mean'), None)
    return open_data(stage, BYTES, seed=0)


def test_packed_or_padded_as_the_stage_says(corpus):
    packed, padded = (data_of(plan_of(corpus, packing=packing)) for packing in ('pack', 'pad'))
    for data, kind in ((packed, PackedRows), (padded, PaddedRows)):
        assert {type(rows) for rows in data.mixture.sources} == {kind}
        assert {type(rows) for rows, *_ in data.held_out.rows} == {kind}
        assert data.padding_scored is False
    scored = data_of(plan_of(corpus, packing='pad', score_padding=True))
    assert scored.padding_scored is True


def test_no_document_is_trained_on_and_held_out(corpus):
    data = data_of(plan_of(corpus, packing='pad'))
    (rows,) = data.mixture.sources
    trained = set(rows.store.hashes[rows.table[:, 0]].tolist())
    held_out = {d['hash'] for d in data.held_out.documents}
    assert trained and held_out and not trained & held_out
    assert {d['domain'] for d in data.held_out.documents} == {'a', 'b'}


def test_nothing_held_out_is_refused(corpus):
    with pytest.raises(DataError, match="'mine' has no held-out documents: validation_fraction is 0 "):
        data_of(plan_of(corpus, fraction=0))


@pytest.mark.parametrize(
    'count, told',
    [(1, 'held out are the end of its document, '), (6, 'held out are the ends of 6 of 6 documents, ')],
)
def test_what_is_held_out_of_a_few_documents_is_told(corpus, tmp_path, count, told):
    for i in range(count):
        (tmp_path / f'{i}.txt').write_text(f'{i} A line of some length, told by the fire.\n' * 60)
    plan = plan_of(corpus)
    plan.raw['datasets']['mine'] = plan.datasets['mine'] = {'loader': 'text', 'path': str(tmp_path)}
    (stage,) = resolve(plan, Settings(exp=f'{EXPERIMENTS}:mean'), None)
    lines = []
    open_data(stage, BYTES, seed=0, progress=lines.append)
    assert any(told in line for line in lines) and not any('beginning with' in line for line in lines)


def prompted(folder, *lengths, held_out=None, **keys):
    """A plan on a document per prompt length, whose prompts are not scored; `held_out`: those of a split."""
    data = {'loader': 'json', 'prompt': 'q', 'text': 'a', 'domain_column': 'kind'}
    for key, prompts in (('path', lengths), ('validation', held_out or ())):
        if prompts:
            file = folder / f'{key}.jsonl'
            rows = [
                {'q': f'{i:03}' + 'q' * n, 'a': 'answer', 'kind': 'ab'[i % 2]} for i, n in enumerate(prompts)
            ]
            file.write_text('\n'.join(map(json.dumps, rows)))
            data[key] = str(file)
    stage = {'dataset': 'mine', 'steps': 2, 'row_length': 32, 'include_prompts': False} | keys
    return parse_plan({'datasets': {'mine': data}, 'validation_fraction': 0.5, 'stages': {'s': stage}})


CUT = {'packing': 'pad', 'long_documents': 'cut'}


def test_a_stage_in_which_nothing_is_scored_is_refused(tmp_path):
    """And says of how many sequences and documents."""
    plan = prompted(tmp_path, *[40] * 30, **CUT)
    with pytest.raises(
        DataError, match=r"'mine', training: no target .*\(20 of 20 .* nothing, and 20 documents"
    ):
        data_of(plan)
    assert data_of(prompted(tmp_path, *[40] * 30, packing='pad')).held_out.unscored
    assert data_of(prompted(tmp_path, *[40] * 30, **CUT | {'include_prompts': True})).held_out.unscored == 0


def test_held_out_text_in_which_nothing_is_scored_is_refused(tmp_path):
    plan = prompted(tmp_path, *[0] * 9, held_out=[60] * 5, **CUT)
    with pytest.raises(DataError, match='Held-out text: no target is scored .5 of 5 .* 5 documents'):
        data_of(plan)


def test_sequences_and_domains_that_score_nothing_are_told(tmp_path, caplog):
    plan = prompted(tmp_path, *[40, 0] * 20, **CUT)  # all of domain a, none of b
    data_of(plan)
    told = caplog.text
    assert re.search(r"'mine', training: \d+ of \d+ sequences score nothing, and \d+ documents", told)
    assert 'nothing is scored of the held-out text of a, which has no loss' in told


def test_identical_documents_can_not_be_split(tmp_path):
    file = tmp_path / 'same.jsonl'
    file.write_text('\n'.join(json.dumps({'text': 'x', 'kind': 'a'}) for _ in range(40)))
    with pytest.raises(DataError, match='has no held-out documents: .* all documents are identical'):
        data_of(plan_of(file))


def test_the_plans_tokenizer(corpus):
    assert open_tokenizer(plan_of(corpus)) is None
    assert open_tokenizer(plan_of(corpus, tokenizer='bytes')).name == 'bytes'
    assert open_tokenizer(plan_of(corpus, tokenizer={'type': 'gpt2'})).n_vocab == 50257
    trained = open_tokenizer(plan_of(corpus, tokenizer={'type': 'bpe', 'vocab_size': 300}))
    text = 'Zoë saw 12 nuts.'
    assert trained.n_vocab == 300 and trained.decode(trained.encode(text)) == text


def test_saving_datasets_tells_what_is_ready(corpus, cache):
    told = []
    stages = resolve(plan_of(corpus), Settings(exp=f'{EXPERIMENTS}:mean'), None)
    save_datasets(stages, seed=0, tell=told.append)
    assert any('sequences of 32 tokens are ready' in line for line in told)
    assert f"Tokens are in '{cache}" in told[-1]
