"""Tokenizers as transformers loads them from a folder: the same ids of every text, and the text again."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lmplay.tokenizers import BPETokenizer, as_tokenizer, get_tokenizer
from lmplay.tokenizers.fast import as_fast, save_fast

LINES = ['The cat sat on the mat. Two cats, 34 mats!\n', 'def main():\n    return "ünïcödé"\n'] * 10
KINDS = ['bytes', 'gpt2', 'gpt2_8192', 'trained']


@functools.cache
def both(kind, folder):
    """(ours, transformers'), the latter through a folder."""
    ours = BPETokenizer.train(LINES, vocab_size=300) if kind == 'trained' else get_tokenizer(kind)
    assert save_fast(as_tokenizer(ours), folder / kind, max_len=64)
    return ours, AutoTokenizer.from_pretrained(folder / kind)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('tokenizers')


@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=100)
@given(
    text=st.one_of(
        st.text(max_size=60),
        st.text('The cat. ü木\t\r\n<|endoftext|>[PAD]', max_size=120),
        st.text('a=- 0', max_size=120),  # runs of one character, which many entries are
    )
)
def test_every_text_has_the_same_ids_and_comes_back(kind, folder, text):
    ours, fast = both(kind, folder)
    ids = list(ours.encode(text))
    assert fast(text)['input_ids'] == ids
    assert fast.decode(ids) == ours.decode(ids) == text
    assert fast.eos_token_id == ours.eot_token and fast.pad_token_id == ours.pad_token
    assert len(fast) == ours.n_vocab


def test_a_tokenizer_of_the_users_own_has_no_counterpart(tmp_path):
    class Own:
        name, n_vocab, eot_token, pad_token, fingerprint = 'own', 3, 2, 2, 'own'
        encode = encode_batch = decode = save = None

    assert as_fast(Own(), max_len=8) is None and not save_fast(Own(), tmp_path, max_len=8)
