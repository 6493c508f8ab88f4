"""Our own tasks, those of files, and what they leave in a run."""

import re
from dataclasses import replace

import numpy as np
import pytest

from lmplay.errors import DataError, UserError
from lmplay.evaluation.agreement import KINDS, agreement_items
from lmplay.evaluation.texts import Head, bits_per_byte_items, cloze_items, heads
from lmplay.tokenizers import BytesTokenizer
from tests.helpers import ROOT, Memory


def test_agreement_pairs_are_balanced_and_repeatable():
    """Whoever goes by words alone, and whoever always takes the first, is right in half of them."""
    items = agreement_items()
    assert items == agreement_items() and items != agreement_items(seed=1)
    assert {item['kind'] for item in items} == set(KINDS)
    assert len({tuple(item['choices']) for item in items}) == len(items)
    assert sum(item['answer'] for item in items) == len(items) / 2
    groups: dict[str, list] = {}
    for item in items:
        groups.setdefault(item['group'], []).append(item)
        assert len(set(item['choices'])) == 2 and '{' not in ''.join(item['choices'])
    for one, twin in groups.values():
        changed = [set(a.split()) ^ set(b.split()) for a, b in (one['choices'], twin['choices'])]
        assert changed[0] == changed[1], 'the same two words are right in one and wrong in the other'
        right = [item['choices'][item['answer']] for item in (one, twin)]
        assert len({word for word in changed[0] if word in right[0].split()} & set(right[1].split())) == 0


def stories(n=30, domain='stories'):
    start = 'Once there was a cat. ' * 6
    return [
        Head(f'{start}It saw number {i}. So it ran {i} times around its house!', domain, str(i), True)
        for i in range(n)
    ]


def test_the_cloze_is_balanced():
    """Four contexts share their four endings, so that a model without a context is right in one of four."""
    items = cloze_items([*stories(), *stories(9, 'others')])
    assert len(items) == 28 + 8
    shared: dict[tuple, list] = {}
    for item in items:
        shared.setdefault((item['domain'], *item['choices']), []).append(item['answer'])
        ending = item['choices'][item['answer']]
        assert ending.startswith(' ') and ending.endswith('!') and not item['context'].endswith(' ')
    assert all(sorted(answers) == [0, 1, 2, 3] for answers in shared.values())
    with pytest.raises(DataError, match='needs 4 documents'):
        cloze_items(stories(3))


def test_a_cut_sentence_is_no_ending():
    text = f'{"Once there was a cat. " * 6}It saw a big dog here. The dog was ve'
    made = [replace(h, text=text.replace('dog', f'dog {h.hash}'), whole=False) for h in stories(4)]
    (ending,) = {item['choices'][0][:15] for item in cloze_items(made)}
    assert ending == ' It saw a big d'


def test_heads_share_the_bytes_among_domains_and_documents():
    store = Memory([list(b'a' * 100), list(b'b' * 10), list('cé'.encode() * 50)], domains=[0, 1, 1])
    chosen = [(store, np.arange(3))]
    found = heads(chosen, BytesTokenizer(), max_bytes=60, least=5)
    sizes = {head.text[0]: len(head.text.encode()) for head in found}
    assert sizes == {'a': 30, 'b': 10, 'c': 15} and [h.whole for h in found if h.text[0] == 'b'] == [True]
    whole = heads(chosen, BytesTokenizer(), max_bytes=10_000, least=5)
    assert all(head.whole for head in whole) and sum(len(h.text.encode()) for h in whole) == 260
    assert {len(h.text) for h in heads(chosen, BytesTokenizer(), max_bytes=999, least=5, most=7)} == {7, 5}
    assert [item['text'] for item in bits_per_byte_items(found)] == [head.text for head in found]
    with pytest.raises(DataError, match='no text'):
        bits_per_byte_items([])


PAGE = (ROOT / 'docs' / 'evaluation.md').read_text()
TASK, ITEM = (re.search(f'```{kind}\n(.*?)```', PAGE, re.S)[1] for kind in ('yaml', 'json'))


def task_file(name):
    """The page's example under another name."""
    return TASK.replace('task: opposites', f'task: {name}')


@pytest.fixture
def task_folder(tmp_path, monkeypatch):
    pytest.importorskip('lm_eval')
    monkeypatch.setattr('datasets.config.HF_DATASETS_CACHE', tmp_path / 'cache')
    folder = tmp_path / 'tasks'
    folder.mkdir()
    (folder / 'opposites.jsonl').write_text(ITEM * 3)
    for name in ('one', 'two'):
        (folder / f'{name}.yaml').write_text(task_file(name))
    return folder


def test_tasks_of_names_files_and_folders(task_folder, tmp_path, monkeypatch):
    """Data stand beside the task file, wherever the command runs."""
    from lmplay.evaluation.tasks import load_tasks

    monkeypatch.chdir(tmp_path)
    shipped = {'agreement': agreement_items}
    for asked, names in (
        (['agreement'], ['agreement']),
        (['tasks/one.yaml'], ['one']),
        (['tasks', 'agreement', 'tasks/one.yaml'], ['one', 'two', 'agreement']),
    ):
        loaded = load_tasks(asked, shipped)
        assert [task.task_name for task in loaded] == names
    (task_folder / 'broken.yaml').write_text('task: [')
    (task_folder / 'asks.yaml').write_text(task_file('asks') + 'unsafe_code: true\n')
    (task_folder / 'gone.yaml').write_text(task_file('gone').replace('opposites.jsonl', 'gone.jsonl'))
    (tmp_path / 'empty').mkdir()
    for asked, said in (
        ('tasks', "broken.yaml' can't be read"),
        ('tasks/asks.yaml', "'asks' runs code that the model writes"),
        ('tasks/gone.yaml', "gone.yaml' can't be loaded: FileNotFoundError"),
        ('tasks/opposites.jsonl', 'is no task: a task is a .yaml file'),
        ('empty', "no task in '.*empty'"),
    ):
        with pytest.raises(UserError, match=said):
            load_tasks([asked], shipped)
