"""lmplay: a playground for language-model architectures that gives honest answers.

    import lmplay
    run = lmplay.train('gpt2ish', plan='quickstart', tokens=200_000)
    print(run.loss(), lmplay.generate(run, 'def main('))

Experiments under lmplay/exp/ are found by themselves. One may also be registered by hand with an import line at the end of
this file, e.g. `import lmplay.exp.my_experiment.versions`. Importing lmplay imports no torch. docs/python.md has the rest.
"""

import importlib
from typing import Any

__version__ = '0.1.0'

# name -> the module that has it; None for a package that is itself the function
_PUBLIC = {
    'train': None,
    'compare': None,
    'generate': None,
    'load': 'runs.finished',
    'list_experiments': 'base.runner_list',
    'LMBase': 'base.base_model',
    'LMOutput': 'base.base_model',
    'BasicModelRunner': 'base.base_model',
    'expose_runner': 'base.runner_list',
    'UserError': 'errors',
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module = importlib.import_module(f'.{_PUBLIC[name] or name}', __name__)
    return getattr(module, name) if _PUBLIC[name] else module


def __dir__() -> list[str]:
    return [*globals(), *__all__]
