"""Tokenizers from files: all of a text is encoded, nothing but the text, and what is lost is told."""

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from lmplay.data.sources import open_source
from lmplay.data.store import open_store
from lmplay.errors import DataError
from lmplay.tokenizers import BPETokenizer, get_tokenizer

TEXTS = ['The cat sat on the mat. Two cats, 34 mats!\n', 'def main():\n    return "ünïcödé"\n'] * 10


def byte_level(**options):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=options.get('special', ['<|endoftext|>', '[PAD]', '[CLS]']),
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def written(backend, folder):
    file = folder / 'tokenizer.json'
    backend.save(str(file))
    return get_tokenizer(str(file))


def truncating(backend):
    backend.enable_truncation(4)
    backend.enable_padding(length=64, pad_id=1, pad_token='[PAD]')


def framing(backend):
    backend.post_processor = processors.TemplateProcessing(
        single='[CLS] $A <|endoftext|>', special_tokens=[('[CLS]', 2), ('<|endoftext|>', 0)]
    )


def ordinary_end(backend):
    backend.add_tokens([AddedToken('</s>', special=False, lstrip=True, rstrip=True)])


@pytest.mark.parametrize('change', [truncating, framing, ordinary_end])
@settings(max_examples=30)
@given(text=st.text('The cat. ü木\n<|endoftext|>[PAD][CLS]</s>', max_size=200))
def test_whatever_a_file_asks_for_the_text_comes_back(change, tmp_path_factory, text):
    backend = byte_level()
    change(backend)
    tokenizer = written(backend, tmp_path_factory.mktemp('t'))
    spelled = f'{text}<|endoftext|>[PAD]</s>'
    ids = tokenizer.encode(spelled)
    assert tokenizer.decode(ids) == spelled
    assert not {tokenizer.eot_token, tokenizer.pad_token} & set(ids)


def test_the_vocabulary_ends_with_the_largest_id(tmp_path):
    settings = json.loads(byte_level().to_str())
    settings['added_tokens'].append(
        {'id': 400, 'content': '<far>', 'special': True, 'single_word': False}
        | {'lstrip': False, 'rstrip': False, 'normalized': False}
    )
    settings['model']['vocab']['<far>'] = 400
    (tmp_path / 'tokenizer.json').write_text(json.dumps(settings))
    assert get_tokenizer(str(tmp_path)).n_vocab == 401


def test_special_tokens_are_text_in_a_trained_bpe_and_its_fingerprint_says_so():
    bpe = BPETokenizer.train(TEXTS, vocab_size=280)
    ids = bpe.encode('one<|endoftext|>two')
    assert bpe.eot_token not in ids and bpe.decode(ids) == 'one<|endoftext|>two'
    assert bpe.fingerprint.startswith('bpe-plain-')  # stores tokenized before are not read again


def test_what_would_be_dropped_in_silence_is_refused(tmp_path):
    with pytest.raises(DataError, match='silently drop'):
        BPETokenizer.train(TEXTS, vocab_size=60, pre_tokenizer='whitespace')
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(special_tokens=['[EOS]'], show_progress=False, vocab_size=60)
    )
    with pytest.raises(DataError, match='silently drop'):
        written(backend, tmp_path)


@pytest.mark.parametrize('kind', ['WordPiece', 'Unigram', 'BPE'])
def test_other_models_load_and_what_they_lose_is_told(kind, tmp_path, cache, caplog):
    special = ['[UNK]', '[EOS]']
    backend = tokenizers.Tokenizer(
        {
            'WordPiece': models.WordPiece(unk_token='[UNK]'),
            'Unigram': models.Unigram(),
            'BPE': models.BPE(unk_token='[UNK]'),
        }[kind]
    )
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = {
        'WordPiece': trainers.WordPieceTrainer(vocab_size=80, special_tokens=special, show_progress=False),
        'Unigram': trainers.UnigramTrainer(
            vocab_size=80, special_tokens=special, unk_token='[UNK]', show_progress=False
        ),
        'BPE': trainers.BpeTrainer(vocab_size=80, special_tokens=special, show_progress=False),
    }[kind]
    backend.train_from_iterator(TEXTS, trainer)
    tokenizer = written(backend, tmp_path)
    for i, text in enumerate(TEXTS[:2]):
        (tmp_path / f'{i}.txt').write_text(text * 30)
    source = open_source('notes', {'loader': 'text', 'path': str(tmp_path / '*.txt'), 'hold_out': 'ends'})
    open_store(source, tokenizer)
    assert 'does not give back' in caplog.text and "'notes'" in caplog.text
    assert "'The" in caplog.text or 'comes back as' in caplog.text


def test_nothing_is_told_of_a_tokenizer_that_loses_nothing(tmp_path, cache, caplog):
    (tmp_path / 'a.txt').write_text('  The  cat\r\n\tsat. ünïcödé <|endoftext|>\n' * 30)
    open_store(
        open_source('notes', {'loader': 'text', 'path': str(tmp_path / 'a.txt')}), get_tokenizer('gpt2')
    )
    assert 'give back' not in caplog.text
