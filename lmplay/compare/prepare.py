"""What is compared, made fair before anything is trained: one plan, one budget, one row length,
the same held-out tokens."""

import copy
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..base.parameters import read_parameters, split_items
from ..base.runner_list import find_entry, find_runner
from ..checks import require_experiment
from ..device import Compute
from ..errors import PlanError, UserError, unknown
from ..runs.fingerprints import fingerprints
from ..tokenizers import as_tokenizer
from ..train.cost import needed_memory
from ..train.length import SampleLength, stage_length
from ..train.plan import LENGTHS, MOST_SECONDS, SETTABLE, Plan, parse_plan, stage_value
from ..train.readiness import check_stages
from ..train.resolve import ResolvedStage, Settings, resolve
from ..train.stage_data import open_data, open_tokenizer

BUDGETS = ('tokens', 'flops', 'seconds')
# packages that train no model
NOT_TRAINING = ('exp', 'generate', 'plots', 'routing', 'evaluation', 'compare', 'new')
PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Spec:
    """An experiment as it was asked for: EXP, or EXP,KEY=VALUE,..., with model parameters and stage keys of
    its own."""

    label: str
    exp: str
    model: dict = field(default_factory=dict)
    stage: dict = field(default_factory=dict)


def parse_spec(text: str, common: list[str]) -> Spec:
    """The experiment of EXP,KEY=VALUE,...; common: KEY=VALUE for every experiment (--set).

    Raises UserError for an unknown experiment or key, and for a value that is not allowed.
    """
    exp, *own = split_items(text)
    entry = find_entry(exp)
    runner = find_runner(exp).function()
    texts, stage = {}, {}
    for item in [*common, *own]:
        key, equals, value = item.partition('=')
        key = key.strip().replace('-', '_')
        if not equals:
            raise UserError(
                f"--set takes KEY=VALUE; given: '{item}'."
                if item in common
                else f"'{text}': after the experiment come KEY=VALUE pairs; given: '{item}'."
            )
        if key in LENGTHS:
            raise UserError(
                f"'{item}': the length of training is set by --budget or the plan, the same for all "
                'experiments.'
            )
        if key in runner.declared:
            texts[key] = value
        elif key in SETTABLE:
            stage[key] = stage_value(key, value, f"'{item}': {key}")
        else:
            allowed = [*runner.declared, *(key for key in SETTABLE if key not in LENGTHS)]
            raise UserError(unknown('model parameter or training option', key, allowed, entry.name))
    model = read_parameters(texts.items(), runner.declared, entry.name)
    return Spec(','.join([entry.name, *own]), exp, model, stage)


def safe(label: str) -> str:
    """A label as part of a file's name."""
    return re.sub(r'[^\w.=,+-]', '_', label)


@dataclass(frozen=True)
class Budget:
    kind: str  # one of BUDGETS
    amount: float

    def __str__(self) -> str:
        return f'{self.kind}={self.amount:g}'


def parse_budget(text: str) -> Budget:
    """'tokens=20M', 'flops=1e15', 'seconds=600'; k, M, G, T are thousands, millions, ..."""
    kind, _, amount = text.partition('=')
    if kind not in BUDGETS:
        raise UserError(unknown('budget', kind, BUDGETS, '--budget') + ' Example: --budget tokens=20M.')
    match = re.fullmatch(r'(\d+(?:\.\d+)?(?:e[+-]?\d+)?)([kKMGT]?)', amount)
    value = (
        float(match[1]) * {'': 1, 'k': 1e3, 'K': 1e3, 'M': 1e6, 'G': 1e9, 'T': 1e12}[match[2]] if match else 0
    )
    most = MOST_SECONDS if kind == 'seconds' else 1e30
    if not 0 < value < most:
        raise UserError(
            f'--budget {kind} takes a number above 0 and below {most:g}, such as '
            f"{ {'tokens': '20M', 'flops': '1e15', 'seconds': '600'}[kind] }; given: '{amount}'."
        )
    return Budget(kind, value)


@dataclass
class Prepared:
    """An experiment ready to be trained. plan: complete, with budget and row length filled in.

    lengths: planned, by stage, in `unit`, 'tokens' or 'seconds'; flops_per_token: of training, by stage;
    documents: name -> (documents,) of those held out at the end: domain, hash, tokens;
    memory: bytes that a run needs on a CPU, by estimate;
    digest: of all that decides what a run does, but its seed.
    """

    spec: Spec
    plan: dict
    unit: str
    lengths: list[float]
    flops_per_token: list[float]
    fingerprints: dict[str, str]
    device_kind: str
    amp: bool
    documents: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    memory: int = 0
    digest: str = ''

    @property
    def folder(self) -> str:
        return f'{safe(self.spec.label)}-{self.digest}'


def with_stages(plan: dict, change: Callable[[str, dict], dict]) -> dict:
    """A copy of a plan's JSON with each stage's keys updated by `change(name, stage)`."""
    plan = copy.deepcopy(plan)
    plan['stages'] = {name: stage | change(name, stage) for name, stage in plan['stages'].items()}
    return plan


def with_lengths(plan: dict, unit: str, lengths: list[float]) -> dict:
    """A plan whose stages train on that many tokens, or for that many seconds, each."""
    amounts = iter(lengths)
    bare = {
        name: {k: v for k, v in stage.items() if k not in LENGTHS} for name, stage in plan['stages'].items()
    }
    return with_stages(
        plan | {'stages': bare},
        lambda *_: {unit: max(1, round(next(amounts))) if unit == 'tokens' else next(amounts)},
    )


def _resolve(spec: Spec, plan: Plan, *, device: str, amp: bool, progress) -> list[ResolvedStage]:
    """The stages of an experiment under a plan."""
    settings = Settings(exp=spec.exp, device=device, amp=amp, model=spec.model)
    stages = resolve(plan, settings, open_tokenizer(plan, progress))
    check_stages(stages)
    return stages


def _check_different(specs: list[Spec], plan: Plan, resolved: list[list[ResolvedStage]]) -> None:
    """Raises UserError where two experiments are one model trained alike, such as two versions whose
    differences the plan overrides."""
    seen: dict[str, Spec] = {}
    for spec, stages in zip(specs, resolved):
        key = repr([_trained(stage) for stage in stages])
        if key in seen:
            lost = ', '.join(sorted({name for stage in stages for name in stage.overridden}))
            why = f' The plan overrides what the versions set: {lost}.' if lost else ''
            raise UserError(
                f'{spec.label} and {seen[key].label} are the same model, trained the same way, under plan '
                f'{plan.name}.{why}'
            )
        seen[key] = spec


def _trained(stage: ResolvedStage) -> tuple:
    """All that tells one stage's training from another's."""
    model = stage.skeleton
    tokenizer = as_tokenizer(model.tokenizer).fingerprint
    settings = {key: value for key, value in vars(stage.settings).items() if key != 'model'}
    return type(model), model.hyperparameters, tokenizer, settings


def prepare(
    specs: list[Spec], plan: Plan, *, device: str, amp: bool, progress: Callable[[str], None]
) -> list[Prepared]:
    """Each experiment under the plan, with sequences of equal length, its data tokenized.

    Raises UserError where an experiment can't be trained by the plan.
    """
    if all('exp' in stage for stage in plan.stages.values()):
        raise PlanError(
            f'{plan.where}: every stage names its own "exp"; in a plan for a comparison, at least one stage '
            'names none.'
        )
    raw = {k: v for k, v in plan.raw.items() if k not in ('exp', 'seed', 'description', 'cost')}
    where: dict[str, Any] = dict(device=device.split(':')[0], amp=amp, progress=progress)
    plans = [with_stages(raw, lambda *_, own=spec.stage: own) for spec in specs]

    def resolved(spec: Spec, plan_of_spec: dict) -> list[ResolvedStage]:
        return _resolve(spec, parse_plan(plan_of_spec, name=plan.name, where=plan.where), **where)

    experiments = [resolved(*pair) for pair in zip(specs, plans)]
    _check_different(specs, plan, experiments)
    for stages in experiments:
        first, model = stages[0], stages[0].runner.build()
        # before the baseline trains
        require_experiment(model, first.exp, first.runner, document_mask=first.settings.document_mask)
    # sequences are as long as those of the model that can take least
    lengths = {
        name: min(stage.row_length for stages in experiments for stage in stages if stage.name == name)
        for name in plan.stages
    }
    plans = [
        with_stages(p, lambda name, stage: {'row_length': stage.get('row_length') or lengths[name]})
        for p in plans
    ]
    return [_prepared(spec, p, resolved(spec, p), **where) for spec, p in zip(specs, plans)]


def _prepared(
    spec: Spec,
    plan: dict,
    stages: list[ResolvedStage],
    *,
    device: str,
    amp: bool,
    progress: Callable[[str], None],
) -> Prepared:
    timed = {stage.settings.seconds is not None for stage in stages}
    if len(timed) > 1:
        raise PlanError(
            f'{spec.label}: some stages have a length in seconds and others do not; a comparison needs all '
            'or none of them to have one.'
        )
    lengths, prints = [], []
    for stage in stages:
        tokenizer = as_tokenizer(stage.skeleton.tokenizer)
        data = open_data(stage, tokenizer, seed=0, progress=progress)
        length = stage_length(stage.settings, data.mixture)
        counted = isinstance(length, SampleLength)
        lengths.append(length.samples * data.mixture.tokens_per_row if counted else length.seconds)
        prints.append(fingerprints(stage.name, data.mixture, data.held_out, tokenizer))
    joined = {k: ' '.join(f[k] for f in prints) for k in ('data', 'tokenizer')}
    joined |= {k: prints[-1][k] for k in ('evaluation', 'text')}
    flops = [stage.flops_per_token for stage in stages]
    unit = 'seconds' if timed == {True} else 'tokens'
    entries = data.held_out.documents
    documents = {
        'domain': np.array([d['domain'] for d in entries], str),
        'hash': np.array([d['hash'] for d in entries], np.uint64),
        'tokens': np.array([d.get('scored', d['tokens']) for d in entries], np.int64),
    }
    memory = needed_memory(stages, Compute.of(device, amp=amp), amp=amp) if device == 'cpu' else 0
    return Prepared(spec, plan, unit, lengths, flops, joined, device, amp, documents, memory)


def apply_budget(prepared: Prepared, budget: Budget | None) -> None:
    """Cuts the plan to the budget and sets the digest.

    A plan's stages keep their shares; FLOPs become tokens.
    """
    if budget is not None:
        if budget.kind == 'flops':
            whole = sum(n * f for n, f in zip(prepared.lengths, prepared.flops_per_token))
        else:
            whole = sum(prepared.lengths)
        prepared.unit = 'seconds' if budget.kind == 'seconds' else 'tokens'
        prepared.lengths = [n * budget.amount / whole for n in prepared.lengths]
        prepared.plan = with_lengths(prepared.plan, prepared.unit, prepared.lengths)
    prepared.digest = digest(prepared)


def scale_lr(prepared: Prepared, factor: float) -> None:
    """Multiplies the learning rate of every stage."""
    set_keys(prepared, {'lr': factor})


def set_keys(prepared: Prepared, keys: Mapping[str, float]) -> None:
    """Gives every stage these settings; lr is a factor of the stage's own."""
    others = {key: value for key, value in keys.items() if key != 'lr'}
    plan = parse_plan(prepared.plan)
    version = find_runner(prepared.spec.exp).function().training
    rates = {plan.stage(i, version).name: plan.stage(i, version).lr for i in range(len(plan.stages))}
    prepared.plan = with_stages(
        prepared.plan,
        lambda name, _: others | ({'lr': float(f'{rates[name] * keys["lr"]:.6g}')} if 'lr' in keys else {}),
    )
    prepared.digest = digest(prepared)


def digest(prepared: Prepared) -> str:
    """Changes whenever a run would train something else: plan, parameters, data, kind of device, code."""
    content = [
        prepared.plan,
        find_entry(prepared.spec.exp).name,
        prepared.spec.model,
        prepared.fingerprints,
        prepared.device_kind,
        prepared.amp,
        importlib.metadata.version('torch'),
        code_digest(prepared.spec.exp),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:10]


def code_digest(exp: str) -> str:
    """Of the source of an experiment's folder and of what trains it in lmplay:
    an edited model is another experiment."""
    return _digest({*_trainer_files(), *Path(find_entry(exp).file).resolve().parent.rglob('*.py')})


def trainer_digest() -> str:
    """Of the source of lmplay that trains, whatever the experiment."""
    return _digest(_trainer_files())


def _trainer_files() -> set[Path]:
    return {f for f in PACKAGE.rglob('*.py') if f.relative_to(PACKAGE).parts[0] not in NOT_TRAINING}


def _digest(files: set[Path]) -> str:
    whole = hashlib.sha256()
    for file in sorted(files):
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()
