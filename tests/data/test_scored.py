import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmplay.base.base_model import LMBase
from lmplay.data.held_out import HeldOut
from lmplay.data.rows import IGNORE, PackedRows, make_rows
from lmplay.data.scored import scored_spans, token_bytes
from lmplay.data.sources import open_source
from lmplay.data.store import open_store
from lmplay.device import Compute
from lmplay.tokenizers import BPETokenizer, get_tokenizer
from lmplay.train.evaluate import Evaluator
from lmplay.train.objective import Objective
from tests.helpers import Memory

BPE = BPETokenizer.train(['the cat sat on the mat. ünïcödé 木\n'] * 9, vocab_size=290)
TOKENIZERS = {'bytes': get_tokenizer('bytes'), 'gpt2': get_tokenizer('gpt2'), 'bpe': BPE}
TEXT = st.text('the cat.\nü木🙂', min_size=1, max_size=60).filter(lambda text: not text.isspace())
PAIRS = st.lists(st.tuples(st.one_of(st.just(''), TEXT), TEXT), min_size=1, max_size=5)
ANY = st.fixed_dictionaries(
    {
        'packing': st.sampled_from(['pack', 'pad']),
        'include_prompts': st.booleans(),
        'long_documents': st.sampled_from(['split', 'cut']),
        'score_padding': st.booleans(),
    }
)
files = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Uniform(LMBase):
    """All tokens are equally probable."""

    def __init__(self, tokenizer):
        super().__init__('uniform', max_len=64)
        self.tokenizer, self.fc = tokenizer, torch.nn.Linear(1, tokenizer.n_vocab)
        torch.nn.init.zeros_(self.fc.weight)
        torch.nn.init.zeros_(self.fc.bias)

    def features(self, x):
        return x[..., None].float()


def spelled(tokenizer, ids):
    """The bytes of these tokens, by the tokenizers' own tables."""
    ids = [i for i in ids if i != tokenizer.eot_token]
    if tokenizer.name == 'bytes':
        return len(ids)
    if tokenizer.name == 'gpt2':
        return len(tokenizer.encoding.decode_bytes(ids))
    return sum(len(BPE.backend.id_to_token(i)) for i in ids)


def held_out(pairs, tokenizer, tmp_path, *, length, document_bytes=None, **shape):
    file = tmp_path / 'pairs.jsonl'
    file.write_text('\n'.join(json.dumps({'q': q, 'a': a}) for q, a in pairs))
    source = open_source('pairs', {'loader': 'json', 'path': str(file), 'prompt': 'q', 'text': 'a'})
    store = open_store(source, tokenizer, progress=lambda line: None)
    return HeldOut(
        [(store, np.arange(len(pairs)))],
        make_rows=lambda s, d: make_rows(s, d, length=length, tokenizer=tokenizer, **shape),
        tokenizer=tokenizer,
        length=length,
        max_bytes=10**6,
        document_bytes=document_bytes,
        include_prompts=shape['include_prompts'],
    )


@files
@given(pairs=PAIRS, name=st.sampled_from(sorted(TOKENIZERS)), length=st.integers(2, 40), shape=ANY)
def test_a_uniform_model_has_the_bits_per_byte_of_exactly_what_is_scored(
    pairs, name, length, shape, tmp_path, cache
):
    tokenizer = TOKENIZERS[name]
    held = held_out(pairs, tokenizer, tmp_path, length=length, **shape)
    found = Evaluator(held, Compute(torch.device('cpu')), shape['score_padding']).evaluate(
        Objective(Uniform(tokenizer))
    )
    scored = [
        int(t) for b in held.batches(4) for row, n in zip(b.y, b.lengths) for t in row[:n] if t != IGNORE
    ]
    assert found.metrics['tokens'] == len(scored)
    size = spelled(tokenizer, scored)
    if not size:
        assert found.metrics['bits_per_byte'] is None
        return
    expected = np.log2(tokenizer.n_vocab) * len(scored) / size
    assert found.metrics['bits_per_byte'] == pytest.approx(expected, rel=1e-5)
    assert found.metrics['accuracy'] == pytest.approx(1 / tokenizer.n_vocab, rel=1e-4)


@files
@given(pairs=PAIRS, name=st.sampled_from(sorted(TOKENIZERS)), most=st.integers(4, 80), shape=ANY)
def test_of_a_long_document_its_head_is_scored_and_counted(pairs, name, most, shape, tmp_path, cache):
    tokenizer = TOKENIZERS[name]
    shape |= {'long_documents': 'split', 'score_padding': False}
    whole = held_out(pairs, tokenizer, tmp_path, length=16, **shape)
    heads = held_out(pairs, tokenizer, tmp_path, length=16, document_bytes=most, **shape)
    for cut, full in zip(heads.documents, whole.documents, strict=True):
        assert cut['hash'] == full['hash']
        if full['bytes'] <= most:
            assert cut == full
        else:
            assert most - 4 <= cut['bytes'] <= most and cut['scored'] < full['scored']
    tokens = [int(t) for b in heads.batches(4) for row in b.y for t in row if t != IGNORE]
    assert spelled(tokenizer, tokens) == sum(d['bytes'] for d in heads.documents)


@files
@given(
    pairs=PAIRS,
    name=st.sampled_from(sorted(TOKENIZERS)),
    length=st.integers(2, 40),
    include_prompts=st.booleans(),
)
def test_packed_and_padded_text_score_the_same(pairs, name, length, include_prompts, tmp_path, cache):
    shape = {'include_prompts': include_prompts, 'long_documents': 'split', 'score_padding': False}
    packed, padded = (
        held_out(pairs, TOKENIZERS[name], tmp_path, length=length, packing=packing, **shape).documents
        for packing in ('pack', 'pad')
    )
    assert packed == padded
    assert all(d['bytes'] > 0 for d in packed)


def test_text_that_tokens_do_not_spell_counts_in_proportion():
    lower = BPETokenizer.train(['the cat'] * 3, vocab_size=270, normalizer='NFKC')
    text = 'ﬁ' * 10  # one ligature of three bytes, which NFKC makes two letters
    store = Memory([list(lower.encode(text))])
    store.tokens[-1], store.text_bytes = lower.eot_token, np.array([[0, 30]])
    rows = PackedRows(store, np.arange(1), length=10, tokenizer=lower)
    found = scored_spans(rows, 1)
    assert found.tokens.tolist() == [10] and found.bytes.tolist() == [15]


@pytest.mark.parametrize('name', sorted(TOKENIZERS))
def test_tokens_that_are_parts_of_a_character_have_their_bytes(name):
    tokenizer = TOKENIZERS[name]
    ids = np.array([*tokenizer.encode('木🙂 ü'), tokenizer.eot_token])
    assert token_bytes(tokenizer, ids) == len('木🙂 ü'.encode())
    assert sum(token_bytes(tokenizer, ids[i : i + 1]) for i in range(len(ids))) == len('木🙂 ü'.encode())
