import json

import pytest

from lmplay.data.cache import cache_dir
from lmplay.data.sources import Row
from lmplay.data.trained_bpe import train_bpe
from lmplay.errors import DataError
from tests.helpers import DAMAGES, Listed


def test_a_bpe_is_trained_on_training_documents_only_and_cached():
    rows = [Row(text='aaa bbb ' * 3), Row(text='zzzzzz ' * 9, split='validation')] * 5
    made = [
        train_bpe(
            [Listed(rows, mark='bpe')],
            {'type': 'bpe', 'vocab_size': 270, 'documents': 100},
            validation_fraction=0.0,
        )
        for _ in range(2)
    ]
    assert made[0].fingerprint == made[1].fingerprint
    assert not [t for t in json.loads(made[0].backend.to_str())['model']['vocab'] if 'zz' in t]
    with pytest.raises(DataError, match="'documents' must be a positive"):
        train_bpe([Listed(rows)], {'documents': 0}, validation_fraction=0.0)


@pytest.mark.parametrize('damage', ['flipped', 'truncated', 'empty', 'missing'])
def test_a_damaged_tokenizer_is_trained_again_and_that_is_said(damage):
    options, rows, said = {'vocab_size': 270}, [Row(text='aaa bbb ' * 3)] * 5, []

    def train():
        return train_bpe([Listed(rows, mark=damage)], options, validation_fraction=0.0, progress=said.append)

    before = {f for f in (cache_dir() / 'tokenizers').glob('*')}
    whole = train().fingerprint
    (folder,) = set((cache_dir() / 'tokenizers').glob('*')) - before
    DAMAGES[damage](folder / 'tokenizer.json')
    said.clear()
    assert train().fingerprint == whole and 'is damaged' in said[0] and len(said) == 2
    assert train().fingerprint == whole and len(said) == 2
