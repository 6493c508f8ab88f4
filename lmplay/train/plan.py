"""Training plans: JSON to typed stages. A mistake is named with its place and the nearest valid key.

Three forms load:
    {"STAGE": {"dataset": "wikipedia", "epochs": 1}, ...}
    {"seed": 0, "datasets": {...}, "tokenizer": {...}, "stages": {"STAGE": {...}, ...}}
    {"datasets": {...}, "steps": [{"step_name": "STAGE", "datasets": ["a", "b"], "epochs": 1.0}, ...]}
The last is the original lmplay's.

A setting of a stage is written once, in `StageKeys`: its flag, its help, its checks in plans, configs and
lmp_compare, and its line in docs/plans.md follow from there.
"""

import functools
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..base.runner_list import find_entry
from ..data.local import loader_of
from ..data.sources import NAMED, check_spec
from ..errors import PlanError, nearest, unknown

MOST_SECONDS = 1e9  # 31 years
DEFAULT_EXPERIMENT = 'gpt2ish'  # where neither the command line nor the plan names one
LENGTHS = ('epochs', 'tokens', 'steps', 'seconds')  # how long a stage trains: one of these
Beta = Annotated[float, Field(ge=0, lt=1)]


class StageKeys(BaseModel):
    """The settings of a stage, each valid by itself. Intervals are in sequences."""

    model_config = ConfigDict(extra='forbid', allow_inf_nan=False)

    dataset: str | None = Field(
        None,
        description='dataset: defined in the plan, a named one, a hub name (owner/name), or a file',
    )
    mix: dict[str, float] | None = Field(
        None, description='several datasets and their shares of the sequences, instead of `dataset`'
    )
    exhaust: Literal['first_exhausted', 'all_exhausted'] = Field(
        'first_exhausted', description='what ends an epoch of a mix: the end of its first dataset, or of all'
    )
    row_length: int | None = Field(
        None, ge=2, description="tokens of a sequence; the model's max_len if not given"
    )
    packing: Literal['pack', 'pad'] = Field(
        'pack',
        description='pack: documents joined by end-of-text tokens, nothing lost; pad: one per sequence',
    )
    long_documents: Literal['split', 'cut'] = Field(
        'split',
        description='with packing pad: split a long document at sentence ends into sequences, or cut it',
    )
    include_prompts: bool = Field(True, description='score the prompts of prompt/answer pairs')
    score_padding: bool = Field(
        False,
        description='with packing pad: predict the padding too, as published code does; adds `loss_with_pad`',
    )
    validation_bytes: int = Field(
        131_072,
        gt=0,
        description='size of the held-out text that is evaluated, in equal shares of its domains',
    )
    epochs: float | None = Field(
        None, gt=0, description='length: passes over the data; 1 if no length is given'
    )
    tokens: int | None = Field(None, gt=0, description='length: tokens to train on')
    steps: int | None = Field(None, gt=0, description='length: optimizer steps')
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
    batch_size: int = Field(50, gt=0, description='sequences per optimizer step')
    mini_batch_size: Annotated[int, Field(ge=1)] | Literal['auto'] = Field(
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
    weight_decay: float = Field(0.01, ge=0, description='weight decay; never on biases, norms and embeddings')
    schedule: Literal['constant', 'cosine', 'linear', 'wsd'] = Field(
        'cosine',
        description='learning rate after warm-up; wsd stays constant and decays linearly in the last fifth',
    )
    warmup: float = Field(
        0.02, ge=0, description='warm-up: below 1 a fraction of the steps, from 1 on a number of steps'
    )
    final_lr: float = Field(
        0.0, ge=0, le=1, description='where cosine, linear and wsd end, as a fraction of the learning rate'
    )
    clip: float | None = Field(1.0, ge=0, description='largest gradient norm; 0: no clipping')
    validation_interval: int | None = Field(
        None, gt=0, description='sequences between evaluations; 20 evaluations per stage if not given'
    )
    save_interval: int | None = Field(
        None, gt=0, description='sequences between checkpoints; as validation_interval if not given'
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
        return self

    @property
    def datasets(self) -> dict[str, float]:
        return self.mix if self.mix is not None else {str(self.dataset): 1.0}


STAGE_KEYS = list(StageKeys.model_fields)
# flags of lmp_trainer and keys of lmp_compare
SETTABLE = [k for k in STAGE_KEYS if k not in ('dataset', 'mix', 'exp', 'model')]
PLAN_KEYS = {  # key -> type and its name
    'description': (str, 'a string'),
    'cost': (str, 'a string'),
    'seed': (int, 'a whole number'),
    'exp': (str, 'a string'),
    'datasets': (dict, 'an object'),
    'tokenizer': ((dict, str), 'a name or an object'),
    'model': (dict, 'an object'),
    'validation_fraction': ((int, float), 'a number'),
    'stages': (dict, 'an object'),
}


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
        raise PlanError(_refusal(key, given, label)) from None


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


def _refusal(key: str, given: Any, label: str) -> str:
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


# ---- plans


class Plan:
    """A plan as it was read: settings of all stages, and each stage's own keys, unresolved.

    `stage(i, version, overrides)` resolves one: defaults < the version's < the plan's < the command line's.
    """

    def __init__(self, raw: dict, *, name: str, where: str):
        self.name, self.where, self.raw = name, where, raw
        self.description: str = raw.get('description', '')
        self.cost: str = raw.get('cost', '')
        self.seed: int = raw.get('seed', 0)
        self.exp: str | None = raw.get('exp')
        self.tokenizer: dict | str | None = raw.get('tokenizer')
        self.model: dict = raw.get('model', {})
        self.validation_fraction: float = raw.get('validation_fraction', 0.02)
        self.datasets: dict[str, dict | None] = raw.get('datasets', {})
        self.stages: dict[str, dict] = raw['stages']

    def experiment(self, given: str | None = None) -> str:
        """The experiment to train: the one given, else the plan's, else the default.

        Raises ExperimentError where a plan names a file of code that was not named by the user.
        """
        if given or not self.exp:
            return given or DEFAULT_EXPERIMENT
        find_entry(self.exp, written_in=self.where)
        return self.exp

    def stage(self, index: int, version: dict | None = None, overrides: dict | None = None) -> Stage:
        """Stage `index` with everything resolved. A length replaces one of another kind. Raises PlanError."""
        name = list(self.stages)[index]
        where = f'{self.where}, stage "{name}"'
        merged: dict[str, Any] = {}
        for layer in (version or {}, self.stages[name], overrides or {}):
            if any(layer.get(k) is not None for k in LENGTHS):
                merged = {k: v for k, v in merged.items() if k not in LENGTHS}
            merged |= layer
        try:
            stage = Stage.model_validate(merged | {'name': name})
        except ValidationError as error:
            raise PlanError(_sentence(error, where, merged)) from None
        earlier = list(self.stages)[:index]
        target = stage.init_from.removeprefix('stage:')
        if stage.init_from.startswith('stage:') and target not in earlier:
            raise PlanError(f'{where}: init_from: {unknown("earlier stage", target, earlier)}')
        return stage

    def use_dataset(self, dataset: str) -> None:
        """Every stage trains on this dataset instead of its own. One that is named after its own is renamed.

        Raises PlanError for an unknown name.
        """
        check_dataset(dataset, self, '--dataset')
        names = self._renamed(_stage_name(dataset))
        stages = {}
        for old, new in names.items():
            keys = {k: v for k, v in self.stages[old].items() if k not in ('dataset', 'mix')}
            start = str(keys.get('init_from', ''))
            if start.startswith('stage:'):
                keys['init_from'] = f'stage:{names[start.removeprefix("stage:")]}'
            stages[new] = keys | {'dataset': dataset}
        self.stages = stages
        self.raw = self.raw | {'stages': stages}

    def _renamed(self, new: str) -> dict[str, str]:
        """Old -> new names of stages: those named after a dataset of theirs become `new`, `new_2`, ..."""
        after_dataset = [
            s for s, keys in self.stages.items() if s in (keys.get('mix') or [keys.get('dataset')])
        ]
        taken = self.stages.keys() - set(after_dataset)
        numbered = (new if i == 1 else f'{new}_{i}' for i in itertools.count(1))
        free = (name for name in numbered if name not in taken)
        return {stage: next(free) if stage in after_dataset else stage for stage in self.stages}

    def source_spec(self, name: str) -> dict | None:
        """The plan's definition of a dataset; None where it is a named one or a path."""
        return self.datasets.get(name)


def _stage_name(dataset: str) -> str:
    """'data/my file.jsonl' -> 'my_file', 'owner/corpus-v1.5' -> 'corpus-v1.5'"""
    is_file = loader_of(dataset) is not None or Path(dataset).expanduser().is_file()
    name = Path(dataset.removesuffix('.gz')).stem if is_file else Path(dataset).name
    return re.sub(r'[^\w.+-]+', '_', name).strip('_.')[:60] or 'dataset'


def _sentence(error: ValidationError, where: str, given: dict) -> str:
    """What is wrong with a stage; `given`: its keys."""
    first = error.errors()[0]
    if not first['loc']:  # keys that don't go together
        return f'{where}: {first["msg"].removeprefix("Value error, ")}.'
    key = str(first['loc'][0])
    if first['type'] == 'extra_forbidden':
        return f'{where}: {unknown("key", key, STAGE_KEYS)}'
    return _refusal(key, given[key], f'{where}: {key}')


def shipped_plans() -> dict[str, Path]:
    """Name -> file of the plans that come with lmplay."""
    beside = Path(__file__).resolve().parent.parent.parent / 'plans'  # a checkout
    installed = Path(__file__).resolve().parent.parent / 'plans'  # an installed package
    folder = installed if installed.is_dir() else beside
    return {f.stem: f for f in sorted(folder.glob('*.json'))}


def load_plan(given: str) -> Plan:
    """The plan of a path or of a shipped name.

    Raises PlanError for a file that is missing, not JSON, of no known form, or has a key, value or dataset
    that is not allowed.
    """
    path = Path(given)
    if path.suffix != '.json' and not path.is_file():
        plans = shipped_plans()
        if given not in plans:
            raise PlanError(unknown('plan', given, plans) + ' The path of a JSON file is accepted too.')
        path = plans[given]
    return parse_plan(_read(path, given), name=path.stem, where=str(given))


def _read(path: Path, given: str) -> Any:
    try:
        text = path.read_text(encoding='utf-8-sig')  # some editors begin a file with a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(
            f"Can't read the plan '{given}': {getattr(error, 'strerror', None) or error}."
        ) from error
    if not text.strip():
        raise PlanError(f"The plan '{given}' is empty.")
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        raise PlanError(
            f"The plan '{given}' is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except RecursionError:
        raise PlanError(f"The plan '{given}' is nested too deeply.") from None


def _no_duplicates(pairs: list) -> dict:
    seen = {}
    for key, value in pairs:
        if key in seen:
            raise PlanError(
                f'The plan names "{key}" twice in one object; the second would silently replace the first.'
            )
        seen[key] = value
    return seen


def parse_plan(raw: Any, *, name: str = 'plan', where: str = 'plan') -> Plan:
    """A Plan from decoded JSON; see load_plan."""
    if not isinstance(raw, dict):
        raise PlanError(f'{where}: a plan is a JSON object; given: {type(raw).__name__}.')
    if isinstance(raw.get('steps'), list):
        raw = _from_original(raw, where)
    elif 'stages' not in raw:
        if raw.keys() & {'datasets', 'tokenizer'}:
            raise PlanError(f'{where}: "stages" is missing: {{"stages": {{"NAME": {{"dataset": ...}}}}}}.')
        raw = {'stages': raw}
    _check_plan_keys(raw, where)
    for stage_name, stage in raw['stages'].items():
        _check_stage_name(stage_name, where)
        if not isinstance(stage, dict):
            raise PlanError(f'{where}, stage "{stage_name}": must be an object; given: {json.dumps(stage)}.')
    plan = Plan(raw, name=name, where=where)
    for dataset, spec in plan.datasets.items():
        check_spec(dataset, spec)
    for i, stage_name in enumerate(plan.stages):
        for dataset in plan.stage(i).datasets:
            check_dataset(dataset, plan, f'{where}, stage "{stage_name}"')
    return plan


def _check_plan_keys(raw: dict, where: str) -> None:
    for key, value in raw.items():
        if key not in PLAN_KEYS:
            raise PlanError(f'{where}: {unknown("key", key, PLAN_KEYS)}')
        kind, what = PLAN_KEYS[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise PlanError(f'{where}: "{key}" must be {what}; given: {json.dumps(value)}.')
    if not raw['stages']:
        raise PlanError(
            f'{where}: a plan needs at least one stage: {{"NAME": {{"dataset": "embedded", "epochs": 1}}}}.'
        )
    seed, fraction = raw.get('seed', 0), raw.get('validation_fraction', 0)
    if not 0 <= seed < 2**32:
        raise PlanError(f'{where}: "seed" must be at least 0 and below 2^32; given: {seed}.')
    if not 0 <= fraction < 1:
        raise PlanError(f'{where}: "validation_fraction" must be at least 0 and below 1; given: {fraction}.')


def _check_stage_name(name: str, where: str) -> None:
    """A stage's name is part of the names of files."""
    too_long = len(name.encode()) > 200
    if not name or name != name.strip() or too_long or any(c in name for c in '/\\\0\n'):
        raise PlanError(
            f'{where}: a stage name may not be empty, longer than 200 bytes, contain slashes or line breaks, '
            f'or begin or end with a space; given: {json.dumps(name)}.'
        )


def check_dataset(name: str, plan: Plan, where: str) -> None:
    """Raises PlanError unless the name is the plan's, a named dataset, or looks like a hub name or a path."""
    if name not in plan.datasets and name not in NAMED and '/' not in name and not Path(name).suffix:
        raise PlanError(
            f'{where}: '
            + unknown('dataset', name, [*plan.datasets, *NAMED])
            + ' A hub dataset (owner/name) and the path of a local file are accepted too.'
        )


def _from_original(raw: dict, where: str) -> dict:
    """The original lmplay's form as ours."""
    for key in raw:
        if key not in ('datasets', 'steps', 'seed', 'description', 'cost'):
            raise PlanError(f'{where}: {unknown("key", key, ["datasets", "steps", "seed"])}')
    stages = {}
    for i, step in enumerate(raw['steps']):
        if not isinstance(step, dict) or 'datasets' not in step:
            raise PlanError(f'{where}: steps[{i}] needs "datasets", a name or a list of names.')
        names = step['datasets'] if isinstance(step['datasets'], list) else [step['datasets']]
        rest = {
            k: v for k, v in step.items() if k not in ('step_name', 'datasets', 'interleve_stopping_strategy')
        }
        if 'interleve_stopping_strategy' in step:  # spelt so in the original
            rest['exhaust'] = step['interleve_stopping_strategy']
        name = str(step.get('step_name', i))
        if name in stages:
            raise PlanError(f'{where}: two steps are named "{name}".')
        stages[name] = ({'dataset': names[0]} if len(names) == 1 else {'mix': {n: 1.0 for n in names}}) | rest
    return {k: v for k, v in raw.items() if k != 'steps'} | {'stages': stages}


if __name__ == '__main__':
    write_stage_table(Path(sys.argv[1]))
