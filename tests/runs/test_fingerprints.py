import json

from lmplay.data.held_out import HeldOut
from lmplay.data.mixture import Mixture
from lmplay.data.rows import PackedRows, PaddedRows
from lmplay.data.sources import Row
from lmplay.data.store import open_store
from lmplay.runs.directory import RunDirectory
from lmplay.runs.fingerprints import fingerprints, model_facts
from lmplay.tokenizers import get_tokenizer
from tests.helpers import tiny

BYTES, GPT2 = get_tokenizer('bytes'), get_tokenizer('gpt2')


class Texts:
    """A source of 40 short documents."""

    name = 'texts'

    spec: dict = {}

    def __init__(self, mark=''):
        self.mark = mark

    def fingerprint(self):
        return self.mark

    def rows(self):
        return (Row(text=f'{self.mark} document {i} ' * (1 + i % 5)) for i in range(40))


def prints(*, source=None, tokenizer=BYTES, length=16, kind=PackedRows, max_bytes=10**6, stage='s', seed=0):
    store = open_store(source or Texts('a'), tokenizer)
    training, validation = store.split(0.3)

    def rows(store, documents):
        return kind(store, documents, length=length, tokenizer=tokenizer)

    mixture = Mixture([rows(store, training)], [1.0], seed=seed, stage=stage)
    held = HeldOut(
        [(store, validation)],
        make_rows=rows,
        tokenizer=tokenizer,
        length=length,
        max_bytes=max_bytes,
        document_bytes=None,
    )
    return fingerprints(stage, mixture, held, tokenizer)


def changed(**what):
    plain, other = prints(), prints(**what)
    return {name for name in plain if plain[name] != other[name]}


def test_what_is_equal_has_equal_fingerprints():
    assert prints() == prints()
    assert changed(seed=1) == set()  # another order of the same data is what repeated runs are


def test_each_difference_changes_the_fingerprints_that_it_matters_to():
    assert changed(source=Texts('b')) == {'data', 'evaluation', 'text'}
    assert changed(tokenizer=GPT2) == {'data', 'tokenizer', 'evaluation'}  # the held-out text is the same
    assert changed(length=8) == {'data', 'evaluation'}
    assert changed(kind=PaddedRows) == {'data', 'evaluation'}
    assert changed(max_bytes=100) == {'evaluation', 'text'}
    assert changed(stage='t') == {'data'}


class Lower(type(BYTES)):
    """Loses upper case."""

    fingerprint = 'lower'

    def encode(self, text):
        return super().encode(text.lower())

    def encode_batch(self, texts):
        return super().encode_batch([text.lower() for text in texts])


def test_a_tokenizer_that_loses_text_predicts_another_text(caplog):
    assert prints(source=Texts('a'))['text'] == prints(source=Texts('a'), tokenizer=Lower())['text']
    assert 'does not give back' not in caplog.text
    lossy = [
        prints(source=Texts('Ada'), tokenizer=Lower())['text'] for _ in range(2)
    ]  # the second from the cache
    assert lossy[0] == lossy[1] != prints(source=Texts('Ada'))['text']
    assert caplog.text.count('does not give back') == 2


def test_facts_of_stages_add_up_and_a_first_stage_starts_afresh(tmp_path):
    model = tiny()
    facts = model_facts(model, exp='gpt2ish') | {'row_length': 8}
    facts['fingerprints'] = {name: '0' for name in ('data', 'tokenizer', 'evaluation', 'text')}
    assert facts['total_parameters'] == model.total_parameters() and facts['causal'] is True
    for index, name in enumerate(('a', 'b')):
        RunDirectory(tmp_path).record_stage(name, facts, index=index)
    assert json.loads((tmp_path / 'stages.json').read_text()) == {'a': facts, 'b': facts}
    RunDirectory(tmp_path).record_stage('c', facts, index=0)
    assert list(json.loads((tmp_path / 'stages.json').read_text())) == ['c']
