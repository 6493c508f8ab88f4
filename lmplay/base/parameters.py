"""Model parameters: what a model's `__init__` declares, and values typed by the defaults declared there.

The same rules hold for a flag, `--set`, a plan's "model", a YAML config and `lmp_compare EXP,KEY=VALUE`.
"""

import inspect
import json
import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from ..errors import ExperimentError, unknown

# Whole numbers of at least 1 in every model, and the largest that any machine could hold.
SIZES = {'max_len': 10**9, 'num_blocks': 10**5, 'num_heads': 10**6, 'embed_dim': 10**7}
MOST = 2**53  # of any number: beyond it not every whole number is one
HEAD_SIZE = 64  # of GPT-2's heads in every size
OPENING, CLOSING = '[({', '])}'


class _Loader(yaml.SafeLoader):
    """YAML in which 6e-4 and 1e5 are numbers (YAML 1.1 wants 6.0e-4 and 1.0e+5) and dates are text.

    It has no references, with which a few lines could stand for any amount of data, or for themselves.
    """

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError('references (*name) are not supported here')
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != 'tag:yaml.org,2002:timestamp']
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:float', re.compile(r'[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$'), list('-+.0123456789')
)


def read_yaml(text: str) -> Any:
    """The value of a YAML text, of JSON's types. Raises yaml.YAMLError for any other text."""
    try:
        value = yaml.load(text, Loader=_Loader)
        json.dumps(value)
    except RecursionError:
        raise yaml.YAMLError('it is nested too deeply') from None
    except (ValueError, TypeError, ArithmeticError, AttributeError, LookupError) as error:
        raise yaml.YAMLError(str(error)) from error  # PyYAML lets them through from what it calls
    return value


def read_value(text: str) -> Any:
    """A value from the command line: 3, 6e-4, true, null, a list, or a string."""
    try:
        return read_yaml(text)
    except yaml.YAMLError:
        return text


def split_items(text: str) -> list[str]:
    """EXP,KEY=VALUE,... at its commas, except those inside brackets or quotes."""
    items, depth, quote = [''], 0, ''
    for c in text:
        if quote:
            quote = '' if c == quote else quote
        elif c in '"\'':
            quote = c
        elif c in OPENING:
            depth += 1
        elif c in CLOSING:
            depth = max(0, depth - 1)
        if c == ',' and not depth and not quote:
            items.append('')
        else:
            items[-1] += c
    return text.split(',') if depth or quote else items


def model_parameters(model: Callable, *, until: type) -> dict[str, Any]:
    """Keyword parameters that a model's `__init__` takes, with their defaults (None where there is none).

    Those of its base classes below `until` are included where it passes keywords on. `version`, which names
    the model, is left out.
    """
    found: dict[str, Any] = {}
    for cls in inspect.getmro(model) if inspect.isclass(model) else (model,):
        if cls is until:
            break
        init = vars(cls).get('__init__') if inspect.isclass(cls) else cls
        if init is None:
            continue
        parameters = inspect.signature(init).parameters.values()
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in ('self', 'version'):
                found.setdefault(p.name, None if p.default is p.empty else p.default)
        if not any(p.kind is p.VAR_KEYWORD and p.name != 'ignore' for p in parameters):
            break
    return found


def read_parameters(
    items: Iterable[tuple[str, str]], declared: Mapping[str, Any], model: str
) -> dict[str, Any]:
    """Typed parameters from the command line's names and texts; see `typed_parameters`.

    Where the default is a string, text that YAML reads as a number, a boolean or null is taken literally: 123
    is a name.
    """
    given = {}
    for name, text in items:
        value = read_value(text)
        is_name = isinstance(declared.get(name, ''), str) and not isinstance(value, (str, list, dict))
        given[name] = text if is_name else value
    return typed_parameters(given, declared, model)


def typed_parameters(given: Mapping[str, Any], declared: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The given parameters, each typed by its declared default; `version`, a string, is always allowed.

    Raises ExperimentError for a parameter that the model does not declare, and for a value of another type.
    """
    defaults = {'version': '', **declared}
    for name in given:
        if name not in defaults:
            raise ExperimentError(unknown('model parameter', name, declared, model))
    return {name: typed(name, value, defaults[name]) for name, value in given.items()}


def typed(name: str, value: Any, default: Any) -> Any:
    """`value` as a value of the default's type; as it is where the default is None or of no plain type.

    Raises ExperimentError for a value that is of another type or out of range.
    """
    if isinstance(value, str) and default is not None and not isinstance(default, str):
        value = read_value(value)
    if default is None and isinstance(value, str) and value.lower() in ('none', 'null'):
        value = None
    for kind, what, accepts, convert in _KINDS:
        if isinstance(default, kind):
            if not accepts(value):
                raise _refusal(name, f'{what}, like its default {_shown(default)}', value)
            value = convert(value)
            break
    _check_range(name, value)
    return value


def heads_for(width: int) -> int:
    """How many heads divide `width` so that their size is nearest to 64, by ratio; at least 32 wide."""
    sizes = [size for size in range(min(32, width), width + 1) if width % size == 0]
    return width // min(sizes, key=lambda size: max(size / HEAD_SIZE, HEAD_SIZE / size))


def heads_follow_width(declared: Mapping[str, Any], *given: Mapping[str, Any]) -> dict[str, int]:
    """{'num_heads': n} where a model's width is given and its heads are not; otherwise empty.

    given: a version's parameters, then those that were asked for. Heads that were meant for another width
    need not divide this one. A model whose own default is no number decides for itself.
    """
    width, heads_given = declared.get('embed_dim'), True
    for parameters in given:
        before, width = width, parameters.get('embed_dim', width)
        heads_given = 'num_heads' in parameters or (heads_given and width == before)
    if heads_given or not (isinstance(declared.get('num_heads'), int) and isinstance(width, int)):
        return {}
    return {'num_heads': heads_for(width)}


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


_KINDS: tuple[tuple[type, str, Callable[[Any], bool], Callable[[Any], Any]], ...] = (
    (bool, 'true or false', lambda v: isinstance(v, bool), bool),  # before int: a bool is one
    (int, 'a whole number', lambda v: _is_number(v) and abs(v) < 1e300 and v % 1 == 0, int),
    (float, 'a number', _is_number, float),
    # a list or an object, such as a tokenizer, may stand where the default is a name
    (str, 'a string', lambda v: v is not None and not isinstance(v, numbers.Number), lambda v: v),
    (list, 'a list', lambda v: isinstance(v, (list, tuple)), list),
    (tuple, 'a list', lambda v: isinstance(v, (list, tuple)), tuple),
    (dict, 'a mapping', lambda v: isinstance(v, dict), dict),
)


def _check_range(name: str, value: Any) -> None:
    """What no model can have; narrower ranges are for the model itself to check."""
    if not _is_number(value):
        return
    if name in SIZES and (value < 1 or value % 1):
        raise _refusal(name, 'a whole number of at least 1', value)
    if isinstance(value, int) and abs(value) > (most := SIZES.get(name, MOST)):
        raise _refusal(name, f'at most {most:,}', value)
    if name.endswith('dropout') and not 0 <= value < 1:
        raise _refusal(name, 'at least 0 and below 1', value)


def _refusal(name: str, what: str, value: Any) -> ExperimentError:
    return ExperimentError(f'The model parameter {name} must be {what}; given: {_shown(value)}.')


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)
