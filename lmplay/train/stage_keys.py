"""The settings of a stage, each written once: its flag, its help, its checks in plans, configs and
lmp_compare, and its line in docs/plans.md follow from here.
"""

import functools
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from ..errors import PlanError, nearest, unknown

MOST_SECONDS = 1e9  # 31 years
MOST = 10**12  # of anything that is counted
LENGTHS = ('epochs', 'tokens', 'steps', 'seconds')  # how long a stage trains: one of these


@dataclass(frozen=True)
class Range:
    """The limits of a number, part of its type: above, at least, below, at most.

    pydantic reads them here when it comes to check a value. Importing it takes longer than all else that
    --help needs, so it is imported then, and not by this module.
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def given(self) -> dict[str, float]:
        return {name: limit for name, limit in asdict(self).items() if limit is not None}

    def __get_pydantic_core_schema__(self, number: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core.core_schema import no_info_before_validator_function

        return no_info_before_validator_function(_no_boolean, handler(number) | self.given())


def _no_boolean(value: Any) -> Any:
    """pydantic would take true for 1."""
    if isinstance(value, bool):
        raise ValueError('must not be a boolean')
    return value


Count = Annotated[int, Range(gt=0, le=MOST)]
Beta = Annotated[float, Range(ge=0, lt=1)]


@dataclass(kw_only=True)
class StageKeys:
    """The settings of a stage, each valid by itself. Intervals are in sequences."""

    __pydantic_config__ = {'extra': 'forbid', 'allow_inf_nan': False}

    dataset: Annotated[
        str | None, 'dataset: defined in the plan, a named one, a hub name (owner/name), a file or a folder'
    ] = None
    mix: Annotated[
        dict[str, float] | None, 'several datasets and their shares of the sequences, instead of `dataset`'
    ] = None
    exhaust: Annotated[
        Literal['first_exhausted', 'all_exhausted'],
        'what ends an epoch of a mix: the end of its first dataset, or of all',
    ] = 'first_exhausted'
    row_length: Annotated[
        Annotated[int, Range(ge=2, le=MOST)] | None, "tokens of a sequence; the model's max_len if not given"
    ] = None
    packing: Annotated[
        Literal['pack', 'pad'],
        'pack: documents joined by end-of-text tokens, nothing lost; pad: one per sequence',
    ] = 'pack'
    long_documents: Annotated[
        Literal['split', 'cut'],
        'with packing pad: split a long document at sentence ends into sequences, or cut it',
    ] = 'split'
    document_mask: Annotated[
        bool,
        "with packing pack: attention sees its own document alone; for models on lmplay.modules' attention",
    ] = False
    include_prompts: Annotated[bool, 'score the prompts of prompt/answer pairs'] = True
    score_padding: Annotated[
        bool, 'with packing pad: predict the padding too, as published code does; adds `loss_with_pad`'
    ] = False
    validation_bytes: Annotated[
        Count, 'size of the held-out text that is evaluated, in equal shares of its domains'
    ] = 131_072
    validation_document_bytes: Annotated[
        int,
        Range(ge=0, le=MOST),
        'how much of each held-out document is evaluated, from its start; 0 for whole documents',
    ] = 2048
    epochs: Annotated[
        Annotated[float, Range(gt=0, le=MOST)] | None, 'length: passes over the data; 1 if no length is given'
    ] = None
    tokens: Annotated[Annotated[int, Range(gt=0, le=1000 * MOST)] | None, 'length: tokens to train on'] = None
    steps: Annotated[Count | None, 'length: optimizer steps'] = None
    seconds: Annotated[
        Annotated[float, Range(gt=0, le=MOST_SECONDS)] | None,
        'length: seconds of training, excluding evaluation and saving; the schedule adapts to it',
    ] = None
    drop_last: Annotated[bool, 'drop an incomplete last batch instead of training on it'] = False
    init_from: Annotated[
        str, 'starting weights: previous (stage), scratch, stage:NAME, pretrained:NAME, or a path'
    ] = 'previous'
    exp: Annotated[
        str | None, "experiment to continue as, by its `import_pretrained`; the previous stage's by default"
    ] = None
    model: Annotated[dict[str, Any], "model parameters of this stage, besides the plan's"] = field(
        default_factory=dict
    )
    batch_size: Annotated[Count, 'sequences per optimizer step'] = 50
    mini_batch_size: Annotated[
        Annotated[int, Range(ge=1, le=MOST)] | Literal['auto'],
        'sequences per forward and backward pass, auto: what fits; the gradient stays the same',
    ] = 4
    optimizer: Annotated[
        Literal['adamw', 'adam', 'adagrad', 'sgd', 'rmsprop', 'muon'],
        'optimizer; muon updates hidden matrices by Muon and the rest by AdamW',
    ] = 'adamw'
    lr: Annotated[float, Range(gt=0), 'learning rate'] = 6e-4
    betas: Annotated[tuple[Beta, Beta], 'decay rates of the moment estimates of Adam and AdamW'] = (0.9, 0.95)
    weight_decay: Annotated[
        float, Range(ge=0), 'weight decay; not on biases, norms and embeddings unless `decay_all`'
    ] = 0.01
    decay_all: Annotated[bool, 'weight decay on every parameter, biases, norms and embeddings included'] = (
        False
    )
    schedule: Annotated[
        Literal['constant', 'cosine', 'linear', 'wsd'],
        'learning rate after warm-up; wsd stays constant and decays linearly in the last fifth',
    ] = 'cosine'
    warmup: Annotated[
        float, Range(ge=0), 'warm-up: below 1 a fraction of the steps, from 1 on a number of steps'
    ] = 0.02
    warmup_from_zero: Annotated[
        bool,
        "the first step's learning rate is 0, as in transformers' schedules, instead of one "
        "warm-up step's share",
    ] = False
    final_lr: Annotated[
        float, Range(ge=0, le=1), 'where cosine, linear and wsd end, as a fraction of the learning rate'
    ] = 0.0
    clip: Annotated[Annotated[float, Range(ge=0)] | None, 'largest gradient norm; 0: no clipping'] = 1.0
    validation_interval: Annotated[
        Count | None, 'sequences between evaluations; 20 evaluations per stage if not given'
    ] = None
    save_interval: Annotated[
        Count | None, 'sequences between checkpoints; as validation_interval if not given'
    ] = None
    on_nan: Annotated[
        Literal['skip', 'stop'],
        'a step whose gradient is not finite: skip it, or stop the run with its state saved',
    ] = 'skip'
    on_collapse: Annotated[
        Literal['warn', 'stop', 'snapshot'],
        'when one expert takes over: warn, stop the run, or save a snapshot',
    ] = 'warn'


@dataclass(kw_only=True)
class Stage(StageKeys):
    """A stage of a plan with every setting resolved."""

    name: str = ''

    def __post_init__(self):
        if (self.dataset is None) == (self.mix is None):
            raise ValueError(
                'a stage needs either "dataset" or "mix"' + ('' if self.dataset is None else ', not both')
            )
        if self.mix is not None and (not self.mix or min(self.mix.values()) <= 0):
            raise ValueError(
                f'"mix" needs at least one dataset, each with a weight above 0; given: {self.mix}'
            )
        lengths = [k for k in LENGTHS if getattr(self, k) is not None]
        if len(lengths) > 1:
            raise ValueError(f'a stage takes one of {", ".join(LENGTHS)}; given: {" and ".join(lengths)}')
        if not lengths:
            self.epochs = 1.0
        if self.packing == 'pack' and self.score_padding:
            raise ValueError('"score_padding" needs "packing": "pad"')
        if self.packing == 'pad' and self.document_mask:
            raise ValueError('"document_mask" needs "packing": "pack"; padded sequences hold one document')

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def datasets(self) -> dict[str, float]:
        return self.mix if self.mix is not None else {str(self.dataset): 1.0}


STAGE_KEYS = [f.name for f in fields(StageKeys)]
# flags of lmp_trainer and keys of lmp_compare
SETTABLE = [k for k in STAGE_KEYS if k not in ('dataset', 'mix', 'exp', 'model')]
_TYPES: dict[str, Any] = {f.name: f.type for f in fields(StageKeys)}
_DEFAULTS = vars(StageKeys())

Keys = TypeVar('Keys', bound=StageKeys)


def read_stage(name: str, given: dict[str, Any], where: str) -> Stage:
    """The stage of a plan that has the keys `given`. Raises PlanError, beginning with `where`."""
    stage, wrong = _validated(Stage, given | {'name': name})
    if stage is not None:
        return stage
    if not wrong['loc']:  # keys that don't go together
        raise PlanError(f'{where}: {wrong["msg"].removeprefix("Value error, ")}.')
    key = str(wrong['loc'][0])
    if key not in STAGE_KEYS:
        raise PlanError(f'{where}: {unknown("key", key, STAGE_KEYS)}')
    raise PlanError(refusal(key, given[key], f'{where}: {key}'))


def _validated(kind: type[Keys], given: dict[str, Any]) -> tuple[Keys | None, Any]:
    """(the keys with their values typed, None), or (None, what pydantic says of the first mistake)."""
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_python(given), None
    except ValidationError as error:
        return None, error.errors()[0]


@functools.cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


# ---- one key of a stage


def stage_value(key: str, given: Any, label: str) -> Any:
    """The value of a stage key by itself, from a flag, a config or KEY=VALUE.

    Text is read as a value: 3e-4, none, or 0.9,0.95.
    Raises PlanError, beginning with `label`, for a value that a plan could not have.
    """
    value = given
    if isinstance(given, str) and key_kind(key) is tuple:
        value = re.split(r'[,\s]+', given.strip(' ()[]'))
    elif isinstance(given, str) and _nullable(key) and given.lower() in ('none', 'null'):
        value = None
    keys, _ = _validated(StageKeys, {key: value})
    if keys is None:
        raise PlanError(refusal(key, given, label))
    return getattr(keys, key)


def key_kind(key: str) -> type:
    """The type of a stage key's values: bool, int, float, str, tuple or dict."""
    kind = _kinds(_TYPES[key])[0][0]
    return str if get_origin(kind) is Literal else get_origin(kind) or kind


def stage_help(key: str) -> str:
    """What a stage key does, what it may be, and its default, in one line."""
    default = _default(key)
    notes = [allowed_values(key)] if allowed_values(key) not in ('a string', 'true or false') else []
    notes += [f'default: {default}'] if default else []
    return f'{_description(key)} ({"; ".join(notes)})'


def allowed_values(key: str) -> str:
    """'a number above 0', 'skip or stop', ..."""
    return _listed([text for kind, limits in _kinds(_TYPES[key]) for text in _values(kind, limits)])


def _kinds(declared: Any) -> list[tuple[Any, Range]]:
    """(type, limits) of each kind of value that a type takes, but for None."""
    limits = Range()
    if get_origin(declared) is Annotated:
        declared, *notes = get_args(declared)
        limits = next((note for note in notes if isinstance(note, Range)), limits)
    if get_origin(declared) in (Union, UnionType):
        return [kind for option in get_args(declared) if option is not NoneType for kind in _kinds(option)]
    return [(declared, limits)]


def _nullable(key: str) -> bool:
    return NoneType in get_args(_TYPES[key].__origin__)


def _description(key: str) -> str:
    return _TYPES[key].__metadata__[-1]


def _default(key: str) -> str:
    """The default as JSON, '' where there is none."""
    default = _DEFAULTS[key]
    return default if isinstance(default, str) else '' if default in (None, {}) else json.dumps(default)


_NOUNS = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'a string', dict: 'an object'}


def _values(kind: Any, limits: Range) -> list[str]:
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return list(parts) if parts[1:] else [f'"{parts[0]}"']
    if origin is tuple:
        return [f'{len(parts)} numbers{_range(_kinds(parts[0])[0][1])}']
    if kind == dict[str, float]:
        return ['an object of numbers']
    return [_NOUNS[origin] + _range(limits)]


def _range(limits: Range) -> str:
    """' above 0', ' from 0 to 1', or '' where there are no limits."""
    if limits.ge is not None and limits.le is not None:
        return f' from {limits.ge:g} to {limits.le:g}'
    words = {'gt': 'above', 'ge': 'of at least', 'lt': 'below', 'le': 'at most'}
    text = ' and '.join(f'{words[name]} {limit:g}' for name, limit in limits.given().items())
    return text and f' {text}'


def _listed(items: list[str]) -> str:
    return ' or '.join(filter(None, [', '.join(items[:-1]), items[-1]]))


def refusal(key: str, given: Any, label: str) -> str:
    """The sentence for a value that a key can't have; it begins with `label`."""
    literals = [get_args(kind) for kind, _ in _kinds(_TYPES[key]) if get_origin(kind) is Literal]
    choices = [choice for choices in literals if len(choices) > 1 for choice in choices]
    hint = nearest(str(given), choices)
    return f'{label} must be {allowed_values(key)}; given: {json.dumps(given, default=str)}.{hint}'


# ---- the table in docs/plans.md


def stage_table() -> str:
    """The stage keys as a table in Markdown."""
    lines = ['| key | values | default | meaning |', '|---|---|---|---|']
    for key in STAGE_KEYS:
        default = f'`{_default(key)}`' if _default(key) else ''
        lines.append(f'| `{key}` | {allowed_values(key)} | {default} | {_description(key)} |')
    return '\n'.join(lines)


def write_stage_table(file: Path) -> None:
    """Puts the table between the two comments that mark its place in a Markdown file."""
    text = file.read_text(encoding='utf-8')
    new, count = re.subn(
        '(<!-- stage keys[^\n]*-->\n).*?(<!-- end of stage keys -->)',
        lambda marks: f'{marks[1]}{stage_table()}\n{marks[2]}',
        text,
        flags=re.DOTALL,
    )
    if not count:
        raise PlanError(f"'{file}' lacks the comments <!-- stage keys --> and <!-- end of stage keys -->.")
    file.write_text(new, encoding='utf-8')
