"""Training plans: JSON to typed stages. A mistake is named with its place and the nearest valid key.

Three forms load:
    {"STAGE": {"dataset": "wikipedia", "epochs": 1}, ...}
    {"seed": 0, "datasets": {...}, "tokenizer": {...}, "stages": {"STAGE": {...}, ...}}
    {"datasets": {...}, "steps": [{"step_name": "STAGE", "datasets": ["a", "b"], "epochs": 1.0}, ...]}
The last is the original lmplay's.
"""

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

from ..base.runner_list import find_entry
from ..data.local import loader_of, looks_like_a_path, plain_name
from ..data.named import NAMED
from ..data.specs import check_spec
from ..errors import PlanError, unknown
from ..files import from_json, user_path
from .original_plans import original_plan
from .stage_keys import (
    LENGTHS,
    MOST_SECONDS,
    SETTABLE,
    STAGE_KEYS,
    Stage,
    StageKeys,
    allowed_values,
    key_kind,
    read_stage,
    stage_help,
    stage_table,
    stage_value,
    write_stage_table,
)

__all__ = [  # also for those who ask for a key of a stage here
    'LENGTHS',
    'MOST_SECONDS',
    'SETTABLE',
    'STAGE_KEYS',
    'Plan',
    'Stage',
    'StageKeys',
    'allowed_values',
    'check_dataset',
    'default_plan',
    'key_kind',
    'load_plan',
    'parse_plan',
    'shipped_plans',
    'stage_help',
    'stage_table',
    'stage_value',
    'write_stage_table',
]

DEFAULT_EXPERIMENT = 'gpt2ish'  # where neither the command line nor the plan names one
PARALLEL = ('ddp', 'fsdp', 'fsdp_all')  # how the processes of a run share its work
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

    @property
    def first_exp(self) -> str | None:
        """The experiment that the plan itself names for its first stage."""
        return next(iter(self.stages.values())).get('exp') or self.exp

    def experiment(self, given: str | None = None) -> str:
        """The experiment to train first: the one given, else the plan's, else the default.

        Raises ExperimentError where a plan names a file of code that was not named by the user.
        """
        if given or not self.first_exp:
            return given or DEFAULT_EXPERIMENT
        find_entry(self.first_exp, written_in=self.where)
        return self.first_exp

    def stage(self, index: int, version: dict | None = None, overrides: dict | None = None) -> Stage:
        """Stage `index` with everything resolved. A length replaces one of another kind. Raises PlanError."""
        name = list(self.stages)[index]
        where = f'{self.where}, stage "{name}"'
        merged: dict[str, Any] = {}
        for layer in (version or {}, self.stages[name], overrides or {}):
            if any(layer.get(k) is not None for k in LENGTHS):
                merged = {k: v for k, v in merged.items() if k not in LENGTHS}
            merged |= layer
        stage = read_stage(name, merged, where)
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
    is_file = loader_of(dataset) is not None or user_path(dataset).is_file()
    name = Path(plain_name(dataset)).stem if is_file else Path(dataset).name
    return re.sub(r'[^\w.+-]+', '_', name).strip('_.')[:60] or 'dataset'


def default_plan(exp: str | None) -> str:
    """The plan where none is named: one of minutes, or for an experiment that was chosen a neutral one."""
    return 'quickstart' if exp is None else 'default'


def shipped_plans() -> dict[str, Path]:
    """Name -> file of the plans that come with lmplay."""
    beside = Path(__file__).resolve().parent.parent.parent / 'plans'  # a checkout
    installed = Path(__file__).resolve().parent.parent / 'plans'  # an installed package
    folder = installed if installed.is_dir() else beside
    return {f.stem: f for f in sorted(folder.glob('*.json'))}


def load_plan(given: str) -> Plan:
    """The plan of a path, of a shipped name, or of a name of the original lmplay's.

    Raises PlanError for a file that is missing, not JSON, of no known form, or has a key, value or dataset
    that is not allowed.
    """
    path = user_path(given)
    if path.suffix != '.json' and not path.is_file():
        plans = shipped_plans()
        if given not in plans:
            if original := original_plan(given):
                return parse_plan(original, name=given, where=given)
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
        return from_json(text, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        raise PlanError(
            f"The plan '{given}' is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except PlanError:
        raise
    except ValueError as error:
        raise PlanError(f"The plan '{given}' can't be used: {error}.") from None


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
    raw = _with_datasets_of_stages(raw, where)
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


def _with_datasets_of_stages(raw: dict, where: str) -> dict:
    """A plan in which what a stage defines as its dataset is one of the plan's, of the stage's name."""
    stages = raw['stages'] if isinstance(raw['stages'], dict) else {}
    inside = {
        name: stage['dataset']
        for name, stage in stages.items()
        if isinstance(stage, dict) and isinstance(stage.get('dataset'), dict)
    }
    datasets = raw.get('datasets', {})
    if not inside or not isinstance(datasets, dict):
        return raw
    for name in inside:
        if name in datasets:
            raise PlanError(
                f'{where}, stage "{name}": its dataset is defined here and in the plan, too. Rename one.'
            )
    named = {name: stage | {'dataset': name} if name in inside else stage for name, stage in stages.items()}
    return raw | {'datasets': datasets | inside, 'stages': named}


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
    known = name in plan.datasets or name in NAMED or '/' in name or Path(name).suffix
    if not known and not looks_like_a_path(name) and not user_path(name).exists():
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
