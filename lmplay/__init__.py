"""lmplay: a playground for language-model architectures that gives honest answers.

    import lmplay
    run = lmplay.train('gpt2ish', plan='quickstart', tokens=200_000)
    print(run.loss(), lmplay.generate(run, 'def main('))

Experiments under lmplay/exp/ are found by themselves. One may also be registered by hand with an import line
at the end of this file, e.g. `import lmplay.exp.my_experiment.versions`. Importing lmplay imports no torch.
docs/python.md has the rest.
"""

import importlib
from typing import Any

__version__ = '0.1.0'

# name -> (module, name there); None for a package that is itself the function
_PUBLIC: dict[str, tuple[str, str] | None] = {
    'train': None,
    'compare': None,
    'generate': None,
    'compare_at_scale': ('compare.api', 'compare_at_scale'),
    'rehearse': ('compare.api', 'rehearse'),
    'verify': ('compare.api', 'verify'),
    'xray': ('routing.xray', 'xray'),
    'load': ('runs.finished', 'read_run'),
    'list_experiments': ('base.runner_list', 'list_experiments'),
    'LMBase': ('base.base_model', 'LMBase'),
    'LMOutput': ('base.base_model', 'LMOutput'),
    'BasicModelRunner': ('base.base_model', 'BasicModelRunner'),
    'expose_runner': ('base.runner_list', 'expose_runner'),
    'MODEL_RUNNERS': ('base.runner_list', 'MODEL_RUNNERS'),  # experiments for the original lmplay import it
    'UserError': ('errors', 'UserError'),
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module, attribute = _PUBLIC[name] or (name, None)
    imported = importlib.import_module(f'.{module}', __name__)
    return getattr(imported, attribute) if attribute else imported


def __dir__() -> list[str]:
    return [*globals(), *__all__]
