import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmplay import tokenizers as tk
from lmplay.errors import DataError
from lmplay.tokenizers import protocol

TEXT = st.text(max_size=300)


@pytest.fixture(scope='module')
def bpe():
    rng = random.Random(0)
    return tk.BPETokenizer.train(
        (
            ' '.join(rng.choice(['low', 'lower', 'newest', 'widest', 'é', '12']) for _ in range(50))
            for _ in range(50)
        ),
        vocab_size=300,
    )


def test_gpt2_needs_no_network_also_when_a_model_asks_tiktoken_itself(tmp_path):
    code = (
        "import lmplay.base.base_model, tiktoken; e = tiktoken.get_encoding('gpt2'); "
        "print(e.encode('Hello world'), e.n_vocab, e.decode([15496, 995]))"
    )
    env = {'TIKTOKEN_CACHE_DIR': str(tmp_path / 'none'), 'PATH': '', 'HTTPS_PROXY': 'http://127.0.0.1:9'}
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
    assert out.stdout.strip() == '[15496, 995] 50257 Hello world', out.stderr
    assert not (tmp_path / 'none').exists()


def test_the_vocabulary_is_the_one_tiktoken_expects(shared_data, monkeypatch, tmp_path):
    """tiktoken's own loader, given OpenAI's files, makes the same encoding."""
    import shutil

    import tiktoken
    from tiktoken_ext.openai_public import gpt2

    for name, source in (
        ('6d1cbeee0f20b3d9449abfede4726ed8212e3aee', 'vocab.bpe'),
        ('6c7ea1a7e38e3a7f062df639a5b80947f075ffe6', 'encoder.json'),
    ):
        shutil.copy(shared_data / 'gpt2_bpe' / source, tmp_path / name)
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(tmp_path))
    theirs = tiktoken.Encoding(**gpt2())
    ours = tk.get_tokenizer('gpt2').encoding
    assert (
        theirs._mergeable_ranks == ours._mergeable_ranks
        and theirs._special_tokens == ours._special_tokens
        and theirs._pat_str == ours._pat_str
    )


@settings(deadline=None)
@given(TEXT)
def test_encoding_loses_nothing(bpe, text):
    for tokenizer in (tk.get_tokenizer('gpt2'), tk.get_tokenizer('bytes'), bpe):
        ids = list(tokenizer.encode(text))
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.n_vocab for i in ids)
        assert list(tokenizer.encode_batch([text, 'x'])[0]) == ids


def test_special_tokens_in_the_text_are_text():
    for tokenizer in (tk.get_tokenizer('gpt2'), tk.get_tokenizer('bytes')):
        assert tokenizer.eot_token not in list(tokenizer.encode('a<|endoftext|>b'))


def test_long_texts_are_cut_where_the_encoding_does_not_change(monkeypatch):
    gpt2 = tk.get_tokenizer('gpt2')
    text = ' '.join(
        random.Random(1).choice(['the', 'quick', 'brown,', 'fox\n\n', '12', '  jumps']) for _ in range(3000)
    )
    whole = gpt2.encoding.encode_ordinary(text)
    monkeypatch.setattr(protocol, 'PIECE', 500)
    assert gpt2.encode(text) == whole
    assert gpt2.decode(gpt2.encode('x' * 1700)) == 'x' * 1700  # nowhere to cut


def test_a_bpe_is_what_its_options_say(tmp_path):
    texts = ['The Cat sat. The cat sat!'] * 20
    t = tk.BPETokenizer.train(
        texts,
        vocab_size=60,
        special_tokens=['[UNK]', '[PAD]', '[EOS]'],
        pre_tokenizer='whitespace',
        normalizer='lowercase',
    )
    assert (t.backend.token_to_id('[PAD]'), t.backend.token_to_id('[EOS]')) == (
        t.pad_token,
        t.eot_token,
    ) and t.pad_token != t.eot_token
    assert t.decode(t.encode('The cat sat.')) == 'the cat sat.'
    assert t.backend.token_to_id('[UNK]') in t.encode('€')
    t.save(tmp_path)
    again = tk.load_tokenizer('bpe', tmp_path)
    assert again.fingerprint == t.fingerprint and again.encode('the cat') == t.encode('the cat')
    assert (
        tk.BPETokenizer.train(
            texts, vocab_size=61, special_tokens=['[UNK]', '[PAD]', '[EOS]'], pre_tokenizer='whitespace'
        ).fingerprint
        != t.fingerprint
    )


@pytest.mark.parametrize(
    'options, message',
    [
        ({'vocab_sise': 300}, "Did you mean 'vocab_size'"),
        ({'pre_tokenizer': 'whitespaces'}, "Did you mean 'whitespace'"),
        ({'normalizer': 'lower'}, "Did you mean 'lowercase'"),
        ({'vocab_size': 100}, 'above 257'),
        ({'special_tokens': ['[UNK]']}, 'end-of-text token'),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(DataError, match=message):
        tk.BPETokenizer.train(['abc'], **options)


def test_bad_names_and_files_are_named(tmp_path):
    with pytest.raises(DataError, match="Did you mean 'gpt2'"):
        tk.get_tokenizer('gpt-2')
    with pytest.raises(DataError, match='No tokenizer file'):
        tk.get_tokenizer(tmp_path / 'none.json')
    (tmp_path / 'tokenizer.json').write_text('{}')
    with pytest.raises(DataError, match='is not a tokenizer file'):
        tk.get_tokenizer(tmp_path)


@settings(deadline=None)
@given(TEXT)
def test_the_first_entries_of_gpt2_are_an_encoding_of_their_own(text):
    small, whole = tk.get_tokenizer('gpt2_8192'), tk.get_tokenizer('gpt2')
    ids = small.encode(text)
    assert small.n_vocab == 8192 and small.eot_token == small.pad_token == 8191
    assert max(ids, default=0) < 8191 and small.decode(ids) == whole.decode(whole.encode(text))
    assert whole.decode(ids) == small.decode(ids)  # an id means the same in both
