"""The template of docs/gpt2ish.md trains as it stands, by the recommended comparison."""

import json
import re

import pytest

from lmplay.checks import check_contract
from lmplay.runs.finished import read_run
from tests.helpers import ROOT

PAGE = ROOT / 'docs' / 'gpt2ish.md'


def prose(text: str) -> list[str]:
    """Lines outside code, without marks of deletion."""
    return re.sub(r'</?del>', '', re.sub(r'```.*?```', '', text, flags=re.S)).splitlines()


def test_the_words_that_the_page_began_with_are_kept(shared_data):
    """Each line of them stands in the page, in order; what is wrong in it is struck out, not removed."""
    documents = [*(shared_data.parent / 'seeds').glob('003_*.txt'), PAGE]
    if len(documents) < 2:
        pytest.skip('the document is not here')
    wanted, page = (prose(file.read_text(encoding='utf-8')) for file in documents)
    at = -1
    for line in filter(str.strip, wanted):
        found = [i for i in range(at + 1, len(page)) if line in page[i]]
        assert found, f'not kept, or not in its place: {line}'
        at = found[0]


@pytest.fixture
def experiment(tmp_path):
    """The files of steps 2 and 3, each as the page names it, in a folder of their own."""
    folder = tmp_path / 'my_experiment'
    folder.mkdir()
    for name in ('model', 'versions'):
        pattern = rf'```python\n(# lmplay/exp/my_experiment/{name}\.py\n.*?)```'
        (code,) = re.findall(pattern, PAGE.read_text(encoding='utf-8'), re.S)
        (folder / f'{name}.py').write_text(code)
    return folder


def test_the_template_trains_by_the_recommended_comparison(experiment, command, tmp_path):
    options = ['--plan', 'quickstart', '--device', 'cpu', '--seeds', '1', '--budget', 'tokens=8000']
    sizes = ['--set', 'num_blocks=1', '--set', 'embed_dim=48', '--set', 'validation_bytes=2000']
    out = tmp_path / 'out'
    versions = experiment / 'versions.py'
    done = command('compare', 'gpt2ish', versions, *options, *sizes, '--out', out, timeout=300)
    assert done.returncode == 0, done.stderr
    (file,) = out.rglob('my_experiment*/seed-0/summary.json')
    run = read_run(file.parent)
    assert set(run.summary['not_applied']['embedded']) == {'attn_dropout', 'ff_dropout', 'embed_dropout'}
    assert run.broken_contract == [] and set(run.source) >= {'model.py', 'versions.py'}
    assert [f.problem for f in check_contract(run.model(exp=str(versions))) if f.problem] == []
    findings = json.loads((out / 'results.json').read_text())
    told = [w for w in findings['warnings'] if 'lacks model parameters' in w]
    assert len(told) == 1 and 'attn_dropout, embed_dropout, ff_dropout' in told[0]
