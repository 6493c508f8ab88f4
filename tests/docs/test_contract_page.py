"""Every example of docs/contract.md runs, and keeps the contract that the page explains."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch

from lmplay.base.base_model import BasicModelRunner, LMBase
from lmplay.checks import check_contract

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'contract.md'


@pytest.fixture(scope='module')
def examples():
    """The page's Python, as one module."""
    module = types.ModuleType('contract_page')
    sys.modules[module.__name__] = module
    code = '\n\n'.join(re.findall(r'```python\n(.*?)```', PAGE.read_text(encoding='utf-8'), re.S))
    code = code.replace("'small'", "'page_small'").replace("'small_deep'", "'page_small_deep'")
    exec(compile(code, str(PAGE), 'exec'), vars(module))  # noqa: S102  the page is ours
    return module


NAMES = re.findall(r'^class (\w+)\((?!nn\.)', PAGE.read_text(encoding='utf-8'), re.M)


@pytest.mark.parametrize('name', NAMES)
def test_an_example_keeps_the_contract(examples, name):
    torch.manual_seed(0)
    model_class = getattr(examples, name)
    assert issubclass(model_class, LMBase)
    takes_tokenizer = name != 'Bytes'
    model = BasicModelRunner(model_class, **({'tokenizer': 'bytes'} if takes_tokenizer else {})).build()
    assert [found for found in check_contract(model) if found.problem] == []
    assert model.hyperparameters['embed_dim'] == 64
