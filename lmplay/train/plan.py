"""Training plans: JSON to typed stages. Every mistake is named with its place in the file and the nearest valid key.

Three forms load:
    {"STAGE": {"dataset": "wikipedia", "epochs": 1}, ...}
    {"seed": 0, "datasets": {...}, "tokenizer": {...}, "stages": {"STAGE": {...}, ...}}
    {"datasets": {...}, "steps": [{"step_name": "STAGE", "datasets": ["a", "b"], "epochs": 1.0}, ...]}   (the original lmplay's)
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..data.sources import NAMED, check_spec
from ..errors import PlanError, unknown

Positive = Field(None, gt=0)
MOST_SECONDS = 1e9  # 31 years
LENGTHS = ('epochs', 'tokens', 'steps', 'seconds')  # how long a stage trains: one of these
Beta = Annotated[float, Field(ge=0, lt=1)]


class Stage(BaseModel):
    """A stage of a plan with every setting resolved. Intervals are in samples (rows); sizes in rows or tokens as said."""

    model_config = ConfigDict(extra='forbid', allow_inf_nan=False)

    name: str = ''
    # data
    dataset: str | None = None
    mix: dict[str, float] | None = None  # dataset -> share of the samples
    exhaust: Literal['first_exhausted', 'all_exhausted'] = 'first_exhausted'  # what ends an epoch of a mix
    row_length: int | None = Field(None, ge=2)  # tokens of a row; the model's max_len if not given
    packing: Literal['pack', 'pad'] = 'pack'  # documents joined, or one document per row
    long_documents: Literal['split', 'cut'] = 'split'  # of 'pad': continue in further rows, or drop the rest
    include_prompts: bool = True  # score the prompts of prompt/answer rows
    score_padding: bool = False  # of 'pad': predict the padding too, as some published code does
    validation_bytes: int = Field(
        131_072, gt=0
    )  # size of the held-out text that is evaluated, all domains together
    # budget
    epochs: float | None = Positive
    tokens: int | None = Positive
    steps: int | None = Positive
    seconds: float | None = Field(
        None, gt=0, le=MOST_SECONDS
    )  # of training, without evaluation and saving; the schedule fits itself to them
    drop_last: bool = False  # drop an incomplete last batch instead of training on it
    # model
    init_from: str = 'previous'  # previous, scratch, stage:NAME, pretrained:NAME, a path
    exp: str | None = None
    model: dict[str, Any] = {}
    # optimization
    batch_size: int = Field(50, gt=0)
    mini_batch_size: int | Literal['auto'] = 4
    optimizer: Literal['adamw', 'adam', 'adagrad', 'sgd', 'rmsprop', 'muon'] = 'adamw'
    lr: float = Field(6e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal['constant', 'cosine', 'linear', 'wsd'] = 'cosine'
    warmup: float = Field(0.02, ge=0)  # below 1 a fraction of the stage's steps, from 1 on a number of steps
    final_lr: float = Field(0.0, ge=0, le=1)  # where cosine, linear and wsd end, as a fraction of lr
    clip: float | None = Field(1.0, ge=0)  # largest gradient norm; 0 or null: no clipping
    # watching
    validation_interval: int | None = Positive  # 20 times a stage if not given
    save_interval: int | None = Positive  # as validation_interval if not given
    on_nan: Literal['skip', 'stop'] = 'skip'  # a step whose gradient is not finite: skip it, or stop the run
    on_collapse: Literal['warn', 'stop', 'snapshot'] = (
        'warn'  # when one expert takes over (models that report expert_load)
    )

    @field_validator('*', mode='before')
    @classmethod
    def _no_booleans_for_numbers(cls, value, info):
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError('must be no true or false')
        return value

    @field_validator('mini_batch_size')
    @classmethod
    def _mini_batch(cls, value):
        if isinstance(value, int) and value < 1:
            raise ValueError('must be a positive whole number or "auto"')
        return value

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
        budgets = [k for k in LENGTHS if getattr(self, k) is not None]
        if len(budgets) > 1:
            raise ValueError(f'a stage takes one of {", ".join(LENGTHS)}; given: {" and ".join(budgets)}')
        if not budgets:
            self.epochs = 1.0
        if self.packing == 'pack' and self.score_padding:
            raise ValueError('"score_padding" needs "packing": "pad"')
        return self

    @property
    def datasets(self) -> dict[str, float]:
        return self.mix if self.mix is not None else {str(self.dataset): 1.0}


STAGE_KEYS = [k for k in Stage.model_fields if k != 'name']
PLAN_KEYS = [
    'description',
    'cost',
    'seed',
    'exp',
    'datasets',
    'tokenizer',
    'model',
    'validation_fraction',
    'stages',
]


class Plan:
    """A plan as it was read: settings of all stages, and each stage's own keys, unresolved.

    `stage(i, defaults, overrides)` resolves one: stage defaults < the version's < the plan's < the command line's.
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

    def stage(self, index: int, version: dict | None = None, overrides: dict | None = None) -> Stage:
        """Stage `index` with everything resolved. A budget replaces a budget, a dataset replaces a mix."""
        name = list(self.stages)[index]
        merged: dict[str, Any] = {}
        for layer in (version or {}, self.stages[name], overrides or {}):
            if any(layer.get(k) is not None for k in LENGTHS):
                merged = {k: v for k, v in merged.items() if k not in LENGTHS}
            merged |= layer
        try:
            return Stage.model_validate(merged | {'name': name})
        except ValidationError as error:
            raise PlanError(_sentence(error, f'{self.where}, stage "{name}"')) from None

    def use_dataset(self, name: str) -> None:
        """Every stage trains on this dataset instead of its own. Raises PlanError for a name that is none."""
        check_dataset(name, self, '--dataset')
        self.stages = {
            stage: {k: v for k, v in keys.items() if k not in ('dataset', 'mix')} | {'dataset': name}
            for stage, keys in self.stages.items()
        }
        self.raw = self.raw | {'stages': self.stages}

    def source_spec(self, name: str) -> dict | None:
        """The plan's definition of a dataset; None where it is a named one or a path."""
        return self.datasets.get(name)


def _sentence(error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    path = '.'.join(
        str(p) for p in first['loc'] if not str(p).startswith(('constrained', 'literal', 'int', 'function'))
    )
    if first['type'] == 'extra_forbidden':
        return f'{where}: {unknown("key", path, STAGE_KEYS)}'
    if first['type'] == 'literal_error':
        return f'{where}: ' + unknown(
            path, str(first['input']), re.findall(r"'([^']*)'", first.get('ctx', {})['expected'])
        )
    message = first['msg'].removeprefix('Value error, ')
    given = '' if not path else f'; given: {json.dumps(first["input"], default=str)}'
    return f'{where}{": " + path if path else ""}: {message}{given}.'


def shipped_plans() -> dict[str, Path]:
    """Name -> file of the plans that come with lmplay."""
    beside = Path(__file__).resolve().parent.parent.parent / 'plans'  # a checkout
    installed = Path(__file__).resolve().parent.parent / 'plans'  # an installed package
    folder = installed if installed.is_dir() else beside
    return {f.stem: f for f in sorted(folder.glob('*.json'))}


def load_plan(given: str) -> Plan:
    """The plan of a path or of a shipped name.

    Raises PlanError for a file that is missing, no JSON, of no known form, or has a key, value or dataset that is not allowed.
    """
    path = Path(given)
    if path.suffix != '.json' and not path.is_file():
        plans = shipped_plans()
        if given not in plans:
            raise PlanError(unknown('plan', given, plans) + ' A path of a JSON file serves too.')
        path = plans[given]
    try:
        text = path.read_text(encoding='utf-8-sig')  # some editors begin a file with a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(
            f"Can't read the plan '{given}': {getattr(error, 'strerror', None) or error}."
        ) from error
    if not text.strip():
        raise PlanError(f"The plan '{given}' is empty.")
    try:
        raw = json.loads(text, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        raise PlanError(
            f"The plan '{given}' is no JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except RecursionError:
        raise PlanError(f"The plan '{given}' is nested too deeply.") from None
    return parse_plan(raw, name=path.stem, where=str(given))


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
    for key in raw:
        if key not in PLAN_KEYS:
            raise PlanError(f'{where}: {unknown("key", key, PLAN_KEYS)}')
    stages = raw['stages']
    if not isinstance(stages, dict) or not stages:
        raise PlanError(
            f'{where}: a plan needs at least one stage: {{"NAME": {{"dataset": "embedded", "epochs": 1}}}}.'
        )
    for key, kind, what in (
        ('seed', int, 'a whole number'),
        ('datasets', dict, 'an object'),
        ('model', dict, 'an object'),
        ('validation_fraction', (int, float), 'a number'),
        ('exp', str, 'a string'),
        ('tokenizer', (dict, str), 'a name or an object'),
        ('description', str, 'a string'),
        ('cost', str, 'a string'),
    ):
        if key in raw and (not isinstance(raw[key], kind) or isinstance(raw[key], bool)):
            raise PlanError(f'{where}: "{key}" must be {what}; given: {json.dumps(raw[key])}.')
    if not 0 <= raw.get('seed', 0) < 2**32:
        raise PlanError(f'{where}: "seed" must be at least 0 and below 2^32; given: {raw["seed"]}.')
    if not 0 <= raw.get('validation_fraction', 0) < 1:
        raise PlanError(
            f'{where}: "validation_fraction" must be at least 0 and below 1; given: {raw["validation_fraction"]}.'
        )
    for stage_name, stage in stages.items():
        if not isinstance(stage, dict):
            raise PlanError(f'{where}, stage "{stage_name}": must be an object; given: {json.dumps(stage)}.')
        if (
            not stage_name
            or stage_name != stage_name.strip()
            or any(c in stage_name for c in '/\\\0\n')
            or len(stage_name.encode()) > 200
        ):
            raise PlanError(
                f'{where}: a stage name may not be empty, long, or contain slashes; given: {json.dumps(stage_name)}.'
            )
    plan = Plan(raw, name=name, where=where)
    for dataset, spec in plan.datasets.items():
        check_spec(dataset, spec)
    names = list(stages)
    for i, stage_name in enumerate(names):
        stage = plan.stage(i)
        for dataset in stage.datasets:
            check_dataset(dataset, plan, f'{where}, stage "{stage_name}"')
        target = stage.init_from.removeprefix('stage:')
        if stage.init_from.startswith('stage:') and target not in names[:i]:
            raise PlanError(
                f'{where}, stage "{stage_name}": init_from: ' + unknown('earlier stage', target, names[:i])
            )
    return plan


def check_dataset(name: str, plan: Plan, where: str) -> None:
    """Raises PlanError unless the name is of the plan, a named dataset, a hub id (with a slash), or an existing path."""
    if name not in plan.datasets and name not in NAMED and '/' not in name and not Path(name).suffix:
        raise PlanError(
            f'{where}: '
            + unknown('dataset', name, [*plan.datasets, *NAMED])
            + ' A hub dataset (owner/name) or the path of a local file serves too.'
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
