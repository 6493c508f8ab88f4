import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmplay.data.named import NAMED
from lmplay.data.sources import open_source
from lmplay.data.specs import COMMON_KEYS, KEYS, check_spec
from lmplay.errors import DataError


def test_what_is_set_over_a_named_dataset_replaces_what_contradicts_it():
    assert 'evaluation_share' in open_source('d', {'loader': 'code', 'total_chars': 1000}).spec
    assert 'evaluation_share' not in open_source('d', {'loader': 'code', 'validation': 'valid'}).spec
    assert 'separator' not in open_source('d', {'loader': 'math', 'messages': 'm'}).spec


def test_every_named_dataset_is_a_valid_spec_with_a_description():
    for name in NAMED:
        check_spec(name, None)
        check_spec('derived', {'loader': name, 'limit': 5})
    assert all(spec['description'] for spec in NAMED.values())
    assert {
        'wikipedia',
        'wikitext',
        'tinystories',
        'openorca',
        'orca_math',
        'smoltalk',
        'cosmopedia_v2',
        'code',
        'math',
        'prose',
        'embedded',
    } == set(NAMED)


def test_derived_specs():
    assert open_source('wiki_es', {'loader': 'wikipedia', 'language': 'es'}).spec['language'] == 'es'
    assert open_source('tinystories', {'limit': 3}).spec == {**NAMED['tinystories'], 'limit': 3}
    assert 'messages' not in open_source('s', {'loader': 'smoltalk', 'text': 'source'}).spec
    assert open_source('some-user/some-data').spec == {'loader': 'hub', 'hub': 'some-user/some-data'}
    assert open_source('data/x.parquet').spec == {'loader': 'parquet', 'path': 'data/x.parquet'}


@pytest.mark.parametrize(
    'given, want',
    [
        ({'ds_loader': 'wiki', 'args': ['es']}, {'loader': 'wikipedia', 'language': 'es'}),
        ({'ds_loader': 'openorca'}, {'loader': 'openorca'}),
        (
            {
                'ds_loader': 'hf',
                'args': ['orcamathword200', 'microsoft/orca-math-word-problems-200k'],
                'kwargs': {'truth_column': 'answer', 'prompt_column': 'question'},
            },
            {'hub': 'microsoft/orca-math-word-problems-200k', 'text': 'answer', 'prompt': 'question'},
        ),
        (
            {
                'ds_loader': 'hf',
                'args': ['smoltalk_all', 'HuggingFaceTB/smoltalk', 'all'],
                'kwargs': {'truth_column': 'messages'},
            },
            {'hub': 'HuggingFaceTB/smoltalk', 'config': 'all', 'messages': 'messages'},
        ),
        (
            {
                'ds_loader': 'hf',
                'args': ['cosmopedia_v2', 'HuggingFaceTB/smollm-corpus', 'cosmopedia-v2'],
                'kwargs': {'text_column': 'text'},
            },
            {'hub': 'HuggingFaceTB/smollm-corpus', 'config': 'cosmopedia-v2', 'text': 'text'},
        ),
    ],
)
def test_the_original_form_of_a_dataset(given, want):
    assert open_source('d', given).spec == open_source('d', want).spec


@pytest.mark.parametrize(
    'spec, words',
    [
        ({'loder': 'json', 'path': 'a'}, ['needs a "loader"']),
        ({'loader': 'jsn', 'path': 'a'}, ["Unknown loader 'jsn'", "Did you mean 'json'"]),
        ({'path': 'a.jsonl', 'txt': 'b'}, ["Unknown key 'txt'", "Did you mean 'text'", 'loader json']),
        ({'path': 'a.txt', 'text': 'b'}, ["Unknown key 'text'", 'loader text']),
        ({'path': 'a.jsonl', 'limit': '5'}, ['"limit" must be a whole number', '"5"']),
        ({'path': 'a.jsonl', 'limit': True}, ['"limit" must be a whole number']),
        ({'path': 'a.jsonl', 'limit': 0}, ['"limit" must be at least 1']),
        ({'path': 'a.jsonl', 'max_bytes': -1}, ['"max_bytes" must be at least 1']),
        ({'path': 'a.jsonl', 'prompt': []}, ['"prompt" must be a string or a list of strings']),
        ({'path': 'a.jsonl', 'prompt': [1]}, ['"prompt" must be']),
        ({'path': 5}, ['needs a "loader"', '"path"']),
        ({'loader': 'json', 'path': 5}, ['"path" must be a string or a list']),
        ({'path': 'a.jsonl', 'text': ''}, ['"text" is empty']),
        ({'loader': 'csv'}, ['loader csv needs "path"']),
        ({'loader': 'hub'}, ['loader hub needs "hub"']),
        ({'path': 'a.unknown'}, ['needs a "loader"']),
        ({'path': 'a.jsonl', 'messages': 'm', 'prompt': 'p'}, ['"messages" holds prompt and text']),
        ({'path': 'a.jsonl', 'prompt': 'p', 'document_start': 'x'}, ['"document_start" joins rows']),
        ({'path': 'a.jsonl', 'document_start': '('}, ['not a regular expression']),
        ({'path': 'a.jsonl', 'validation_limit': 3}, ['"validation_limit" needs "validation"']),
        ({'path': 'a.jsonl', 'min_chars': 9, 'max_chars': 8}, ['"min_chars" 9 is above "max_chars" 8']),
        ({'path': 'a.jsonl', 'evaluation_share': 1}, ['"evaluation_share" must be above 0 and below 1']),
        ({'path': 'a.jsonl', 'evaluation_most': '5 %'}, ['"evaluation_most" must be a number']),
        ({'path': 'a.jsonl', 'evaluation_least': 0}, ['"evaluation_least" must be at least 1']),
        (
            {'path': 'a.jsonl', 'validation': 'b.jsonl', 'evaluation_least': 3},
            ['"evaluation_least" chooses documents to hold out'],
        ),
        ({'path': 'a.jsonl', 'separator': '\n'}, ['"separator" stands between']),
        ({'hub': 'a/b', 'language': 'en'}, ['"language" and "snapshot" go together']),
        (
            {'loader': 'embedded', 'domains': ['code', 'maths']},
            ["Unknown domain 'maths'", "Did you mean 'math'"],
        ),
        ({'loader': 'embedded', 'seed': -1}, ['"seed" must be at least 0']),
        ({'loader': 'embedded', 'path': 'x'}, ["Unknown key 'path'", 'loader embedded']),
        ({'ds_loader': 'h', 'args': []}, ["Unknown ds_loader 'h'", 'openorca']),
        ({'ds_loader': 'hf', 'args': ['x']}, ['a name, a hub id']),
        (
            {'ds_loader': 'hf', 'args': ['x', 'a/b'], 'kwargs': {'prompt': 'q'}},
            ["Unknown key 'prompt'", 'prompt_column'],
        ),
        ({'ds_loader': 'hf', 'args': 'x'}, ['"args" must be a list']),
        ({'ds_loader': 'wiki', 'lang': 'en'}, ["Unknown key 'lang'"]),
        ([], ['expected an object']),
    ],
)
def test_specs_that_are_refused(spec, words):
    with pytest.raises(DataError) as raised:
        check_spec('mine', spec)
    message = str(raised.value)
    assert "dataset 'mine'" in message and '\n' not in message
    for word in words:
        assert word in message, message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3),
    max_leaves=5,
)
EVERY_KEY = sorted(
    {k for keys in KEYS.values() for k in keys} | set(COMMON_KEYS) | {'ds_loader', 'args', 'kwargs'}
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(EVERY_KEY), JSON | st.sampled_from([*KEYS, *NAMED, 'a.jsonl']), max_size=4
    )
)
def test_any_json_as_a_spec_is_taken_or_refused_in_words(spec):
    try:
        check_spec('mine', spec)
    except DataError:
        pass


@pytest.mark.parametrize(
    'name, words',
    [
        ('wikipedai', ["Unknown dataset 'wikipedai'", "Did you mean 'wikipedia'"]),
        ('a/b/c', ["Unknown dataset 'a/b/c'"]),
        ('', ["Unknown dataset ''"]),
        ('nothing/here.jsonl', ["no file 'nothing/here.jsonl'"]),
        ('my_text/', ["no folder 'my_text/' (looked in "]),
        ('./my_text', ["no file or folder './my_text'"]),
        ('~/my_text', ["no file or folder '~/my_text'"]),
        ('my_*', ["no file matches 'my_*'"]),
        ('nothing', ['the folder holds nothing, and no file whose suffix']),
        ('pictures', ['the folder holds 2 .png, and no file whose suffix']),
    ],
)
def test_unknown_names(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, files in {'nothing': (), 'pictures': ('a.png', 'b.png')}.items():
        (tmp_path / folder).mkdir()
        for file in files:
            (tmp_path / folder / file).touch()
    with pytest.raises(DataError) as raised:
        list(open_source(name).rows())
    message = str(raised.value)
    for word in words:
        assert word in message
