"""The settings of a stage, each written once: its flag, its help, its checks in plans, configs and
lmp_compare, and its line in docs/plans.md follow from here.
"""

import functools
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import PlanError, nearest

MOST_SECONDS = 1e9  # 31 years
MOST = 10**12  # of anything that is counted
LENGTHS = ('epochs', 'tokens', 'steps', 'seconds')  # how long a stage trains: one of these
Beta = Annotated[float, Field(ge=0, lt=1)]


class StageKeys(BaseModel):
    """The settings of a stage, each valid by itself. Intervals are in sequences."""

    model_config = ConfigDict(extra='forbid', allow_inf_nan=False)

    dataset: str | None = Field(
        None,
        description='dataset: defined in the plan, a named one, a hub name (owner/name), a file or a folder',
    )
    mix: dict[str, float] | None = Field(
        None, description='several datasets and their shares of the sequences, instead of `dataset`'
    )
    exhaust: Literal['first_exhausted', 'all_exhausted'] = Field(
        'first_exhausted', description='what ends an epoch of a mix: the end of its first dataset, or of all'
    )
    row_length: int | None = Field(
        None, ge=2, le=MOST, description="tokens of a sequence; the model's max_len if not given"
    )
    packing: Literal['pack', 'pad'] = Field(
        'pack',
        description='pack: documents joined by end-of-text tokens, nothing lost; pad: one per sequence',
    )
    long_documents: Literal['split', 'cut'] = Field(
        'split',
        description='with packing pad: split a long document at sentence ends into sequences, or cut it',
    )
    document_mask: bool = Field(
        False,
        description="with packing pack: attention sees its own document alone; for models on lmplay.modules' "
        'attention',
    )
    include_prompts: bool = Field(True, description='score the prompts of prompt/answer pairs')
    score_padding: bool = Field(
        False,
        description='with packing pad: predict the padding too, as published code does; adds `loss_with_pad`',
    )
    validation_bytes: int = Field(
        131_072,
        gt=0,
        le=MOST,
        description='size of the held-out text that is evaluated, in equal shares of its domains',
    )
    validation_document_bytes: int = Field(
        2048,
        ge=0,
        le=MOST,
        description='how much of each held-out document is evaluated, from its start; 0 for whole documents',
    )
    epochs: float | None = Field(
        None, gt=0, le=MOST, description='length: passes over the data; 1 if no length is given'
    )
    tokens: int | None = Field(None, gt=0, le=1000 * MOST, description='length: tokens to train on')
    steps: int | None = Field(None, gt=0, le=MOST, description='length: optimizer steps')
    seconds: float | None = Field(
        None,
        gt=0,
        le=MOST_SECONDS,
        description='length: seconds of training, excluding evaluation and saving; the schedule adapts to it',
    )
    drop_last: bool = Field(False, description='drop an incomplete last batch instead of training on it')
    init_from: str = Field(
        'previous',
        description='starting weights: previous (stage), scratch, stage:NAME, pretrained:NAME, or a path',
    )
    exp: str | None = Field(
        None,
        description="experiment to continue as, by its `import_pretrained`; the previous stage's by default",
    )
    model: dict[str, Any] = Field({}, description="model parameters of this stage, besides the plan's")
    batch_size: int = Field(50, gt=0, le=MOST, description='sequences per optimizer step')
    mini_batch_size: Annotated[int, Field(ge=1, le=MOST)] | Literal['auto'] = Field(
        4,
        description='sequences per forward and backward pass, auto: what fits; the gradient stays the same',
    )
    optimizer: Literal['adamw', 'adam', 'adagrad', 'sgd', 'rmsprop', 'muon'] = Field(
        'adamw', description='optimizer; muon updates hidden matrices by Muon and the rest by AdamW'
    )
    lr: float = Field(6e-4, gt=0, description='learning rate')
    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.95), description='decay rates of the moment estimates of Adam and AdamW'
    )
    weight_decay: float = Field(
        0.01, ge=0, description='weight decay; not on biases, norms and embeddings unless `decay_all`'
    )
    decay_all: bool = Field(
        False, description='weight decay on every parameter, biases, norms and embeddings included'
    )
    schedule: Literal['constant', 'cosine', 'linear', 'wsd'] = Field(
        'cosine',
        description='learning rate after warm-up; wsd stays constant and decays linearly in the last fifth',
    )
    warmup: float = Field(
        0.02, ge=0, description='warm-up: below 1 a fraction of the steps, from 1 on a number of steps'
    )
    warmup_from_zero: bool = Field(
        False,
        description="the first step's learning rate is 0, as in transformers' schedules, instead of one "
        "warm-up step's share",
    )
    final_lr: float = Field(
        0.0, ge=0, le=1, description='where cosine, linear and wsd end, as a fraction of the learning rate'
    )
    clip: float | None = Field(1.0, ge=0, description='largest gradient norm; 0: no clipping')
    validation_interval: int | None = Field(
        None,
        gt=0,
        le=MOST,
        description='sequences between evaluations; 20 evaluations per stage if not given',
    )
    save_interval: int | None = Field(
        None, gt=0, le=MOST, description='sequences between checkpoints; as validation_interval if not given'
    )
    on_nan: Literal['skip', 'stop'] = Field(
        'skip',
        description='a step whose gradient is not finite: skip it, or stop the run with its state saved',
    )
    on_collapse: Literal['warn', 'stop', 'snapshot'] = Field(
        'warn', description='when one expert takes over: warn, stop the run, or save a snapshot'
    )

    @field_validator('*', mode='before')
    @classmethod
    def _no_booleans_for_numbers(cls, value, info):
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError('must not be a boolean')
        return value


class Stage(StageKeys):
    """A stage of a plan with every setting resolved."""

    name: str = ''

    @model_validator(mode='after')
    def _together(self):
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
        return self

    @property
    def datasets(self) -> dict[str, float]:
        return self.mix if self.mix is not None else {str(self.dataset): 1.0}


STAGE_KEYS = list(StageKeys.model_fields)
# flags of lmp_trainer and keys of lmp_compare
SETTABLE = [k for k in STAGE_KEYS if k not in ('dataset', 'mix', 'exp', 'model')]


# ---- one key of a stage


def stage_value(key: str, given: Any, label: str) -> Any:
    """The value of a stage key by itself, from a flag, a config or KEY=VALUE.

    Text is read as a value: 3e-4, none, or 0.9,0.95.
    Raises PlanError, beginning with `label`, for a value that a plan could not have.
    """
    value = given
    if isinstance(given, str) and key_kind(key) == 'array':
        value = re.split(r'[,\s]+', given.strip(' ()[]'))
    elif isinstance(given, str) and _nullable(key) and given.lower() in ('none', 'null'):
        value = None
    try:
        return getattr(StageKeys.model_validate({key: value}), key)
    except ValidationError:
        raise PlanError(refusal(key, given, label)) from None


def key_kind(key: str) -> str:
    """JSON's name for the type of a stage key's values: integer, number, boolean, string, array or object."""
    return _schemas(key)[0]['type']


def stage_help(key: str) -> str:
    """What a stage key does, what it may be, and its default, in one line."""
    default = _default(key)
    notes = [allowed_values(key)] if allowed_values(key) not in ('a string', 'true or false') else []
    notes += [f'default: {default}'] if default else []
    return f'{_description(key)} ({"; ".join(notes)})'


def allowed_values(key: str) -> str:
    """'a number above 0', 'skip or stop', ..."""
    return _listed([text for schema in _schemas(key) for text in _values(schema)])


@functools.cache
def _schema() -> dict:
    return StageKeys.model_json_schema()['properties']


def _schemas(key: str) -> list[dict]:
    """The JSON schemas of the kinds of values that a key takes, but for null."""
    schema = _schema()[key]
    return [s for s in schema.get('anyOf', [schema]) if s.get('type') != 'null']


def _nullable(key: str) -> bool:
    return {'type': 'null'} in _schema()[key].get('anyOf', ())


def _description(key: str) -> str:
    return _schema()[key]['description']


def _default(key: str) -> str:
    """The default as JSON, '' where there is none."""
    default = StageKeys.model_fields[key].default
    return default if isinstance(default, str) else '' if default in (None, {}) else json.dumps(default)


def _values(schema: dict) -> list[str]:
    if 'enum' in schema:
        return schema['enum']
    if 'const' in schema:
        return [f'"{schema["const"]}"']
    if schema['type'] == 'array':
        items = schema['prefixItems']
        return [f'{len(items)} numbers{_range(items[0])}']
    if schema['type'] == 'object' and isinstance(schema['additionalProperties'], dict):
        return ['an object of numbers']
    nouns = {
        'integer': 'a whole number',
        'number': 'a number',
        'boolean': 'true or false',
        'string': 'a string',
        'object': 'an object',
    }
    return [nouns[schema['type']] + _range(schema)]


def _range(schema: dict) -> str:
    """' above 0', ' from 0 to 1', or '' where there are no limits."""
    if 'minimum' in schema and 'maximum' in schema:
        return f' from {schema["minimum"]:g} to {schema["maximum"]:g}'
    words = {
        'exclusiveMinimum': 'above',
        'minimum': 'of at least',
        'exclusiveMaximum': 'below',
        'maximum': 'at most',
    }
    limits = ' and '.join(f'{word} {schema[limit]:g}' for limit, word in words.items() if limit in schema)
    return limits and f' {limits}'


def _listed(items: list[str]) -> str:
    return ' or '.join(filter(None, [', '.join(items[:-1]), items[-1]]))


def refusal(key: str, given: Any, label: str) -> str:
    """The sentence for a value that a key can't have; it begins with `label`."""
    choices = [c for schema in _schemas(key) for c in schema.get('enum', ())]
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
