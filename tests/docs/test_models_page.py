"""docs/models.md: its Python runs in order, and its links lead somewhere."""

import re
import sys
import types
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'models.md'


def test_the_examples_run_and_the_heads_follow_the_width(capsys):
    module = types.ModuleType('models_page')
    sys.modules[module.__name__] = module
    code = '\n\n'.join(re.findall(r'```python\n(.*?)```', PAGE.read_text(encoding='utf-8'), re.S))
    exec(compile(code, str(PAGE), 'exec'), vars(module))  # noqa: S102  the page is ours
    assert capsys.readouterr().out.split()[:2] == ['gpt2ish_2_1024', '8']


def test_its_links_lead_somewhere():
    links = re.findall(r'\]\(([^)#]+)\)', PAGE.read_text(encoding='utf-8'))
    assert len(links) >= 5 and all((PAGE.parent / link).exists() for link in links)
