"""What is compared, made fair before anything is trained: one plan, one budget, one row length, the same held-out tokens."""

import copy
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..base.parameters import read_parameters, split_items
from ..base.runner_list import find_entry, find_runner
from ..device import find_device
from ..errors import PlanError, UserError, unknown
from ..runs.fingerprints import fingerprints
from ..tokenizers import as_tokenizer
from ..train.console import View
from ..train.plan import LENGTHS, MOST_SECONDS, SETTABLE, Plan, parse_plan, stage_value
from ..train.stage_data import open_data, open_tokenizer
from ..train.stages import Run, Settings

BUDGETS = ('tokens', 'flops', 'seconds')
CODE = ('base', 'modules', 'data', 'train')  # of the package: what trains a model
PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Spec:
    """An experiment as it was asked for: EXP, or EXP,key=value,... with model parameters and stage keys of its own."""

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
                f"'{item}': how long all train is for --budget or the plan to say, so that it is the same for all."
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
        raise UserError(unknown('budget', kind, BUDGETS) + ' Example: --budget tokens=20M.')
    match = re.fullmatch(r'(\d+(?:\.\d+)?(?:e[+-]?\d+)?)([kKMGT]?)', amount)
    value = (
        float(match[1]) * {'': 1, 'k': 1e3, 'K': 1e3, 'M': 1e6, 'G': 1e9, 'T': 1e12}[match[2]] if match else 0
    )
    if not 0 < value < (MOST_SECONDS if kind == 'seconds' else 1e30):
        raise UserError(f"--budget {kind} takes a number above 0, such as 20M or 1e15; given: '{amount}'.")
    return Budget(kind, value)


@dataclass
class Prepared:
    """An experiment ready to be trained. plan: complete, with budget and row length filled in.

    lengths: planned, by stage, in `unit`, 'tokens' or 'seconds'; flops_per_token: of training, by stage; digest: of all that
    decides what a run does, but its seed.
    """

    spec: Spec
    plan: dict
    unit: str
    lengths: list[float]
    flops_per_token: list[float]
    fingerprints: dict[str, str]
    device_kind: str
    amp: bool
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


def _open(spec: Spec, plan: Plan, *, device: str, amp: bool, progress) -> tuple[Run, list, list]:
    """(run, stages, models on the meta device) of an experiment under a plan."""
    run = Run(plan, Settings(exp=spec.exp, device=device, amp=amp, model=spec.model), view=View(quiet=True))
    tokenizer = open_tokenizer(plan, progress)
    return run, [run.stage(i) for i in range(len(plan.stages))], run.check_stages(tokenizer)


def _check_different(specs: list[Spec], opened: list[tuple[Run, list, list]]) -> None:
    """Raises UserError where two experiments are one model trained alike, e.g. two versions whose differences the plan overrides."""
    seen: dict[str, Spec] = {}
    for spec, (run, stages, models) in zip(specs, opened):
        key = repr(
            [
                (
                    type(model),
                    model.hyperparameters,
                    as_tokenizer(model.tokenizer).fingerprint,
                    stage.model_dump(exclude={'model'}),
                )
                for stage, model in zip(stages, models)
            ]
        )
        if key in seen:
            lost = ', '.join(sorted({name for i in range(len(stages)) for name in run.overridden(i)}))
            why = f' It sets what the versions set: {lost}.' if lost else ''
            raise UserError(
                f'{spec.label} and {seen[key].label} are the same model, trained the same way, under plan {run.plan.name}.{why}'
            )
        seen[key] = spec


def prepare(
    specs: list[Spec], plan: Plan, *, device: str, amp: bool, progress: Callable[[str], None]
) -> list[Prepared]:
    """Each experiment under the plan, with rows of equal length, its data tokenized.

    Raises UserError where an experiment can't be trained by the plan.
    """
    if all('exp' in stage for stage in plan.stages.values()):
        raise PlanError(
            f'{plan.where}: every stage names its own "exp"; a plan for a comparison leaves the experiment open.'
        )
    raw = {k: v for k, v in plan.raw.items() if k not in ('exp', 'seed', 'description', 'cost')}
    kind = find_device(device).type
    plans = [with_stages(raw, lambda *_, own=spec.stage: own) for spec in specs]
    opened = [
        _open(spec, parse_plan(p, name=plan.name, where=plan.where), device=kind, amp=amp, progress=progress)
        for spec, p in zip(specs, plans)
    ]
    _check_different(specs, opened)
    lengths = {}  # the rows of all are as long as those of the model that can take least
    for _, stages, models in opened:
        for stage, model in zip(stages, models):
            lengths[stage.name] = min(lengths.get(stage.name, 1 << 40), stage.row_length or model.max_len)
    plans = [
        with_stages(p, lambda name, stage: {'row_length': stage.get('row_length') or lengths[name]})
        for p in plans
    ]
    prepared = []
    for spec, p, (_, stages, models) in zip(specs, plans, opened):
        parsed = parse_plan(p, name=plan.name, where=plan.where)
        lengths, flops, prints = [], [], []
        timed = {bool(stage.seconds) for stage in stages}
        if len(timed) > 1:
            raise PlanError(
                f'{plan.where}: some stages have a length in seconds and some have not; a comparison needs all or none.'
            )
        for stage, model in zip(stages, models):
            stage = stage.model_copy(update={'row_length': p['stages'][stage.name]['row_length']})
            tokenizer = as_tokenizer(model.tokenizer)
            data = open_data(stage, parsed, tokenizer, max_len=model.max_len, seed=0, progress=progress)
            lengths.append(stage.seconds or data.samples * data.mixture.tokens_per_row)
            flops.append(model.training_flops_per_token(data.row_length))
            prints.append(fingerprints(stage, data, tokenizer))
        joined = {k: ' '.join(f[k] for f in prints) for k in ('data', 'tokenizer')} | {
            k: prints[-1][k] for k in ('evaluation', 'text')
        }
        prepared.append(
            Prepared(spec, p, 'seconds' if timed == {True} else 'tokens', lengths, flops, joined, kind, amp)
        )
    return prepared


def apply_budget(prepared: Prepared, budget: Budget | None) -> None:
    """Cuts the plan to the budget and sets the digest. A plan's stages keep their shares; FLOPs become tokens."""
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
    plan = parse_plan(prepared.plan)
    version = find_runner(prepared.spec.exp).function().training
    rates = {plan.stage(i, version).name: plan.stage(i, version).lr for i in range(len(plan.stages))}
    prepared.plan = with_stages(prepared.plan, lambda name, _: {'lr': float(f'{rates[name] * factor:.6g}')})
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
    """Of the source of an experiment's folder and of the parts of lmplay that train it: an edited model is another experiment."""
    folder = Path(find_entry(exp).file).resolve().parent
    files = (
        {f for part in CODE for f in (PACKAGE / part).rglob('*.py')}
        | {PACKAGE / 'utils.py'}
        | set(folder.rglob('*.py'))
    )
    whole = hashlib.sha256()
    for file in sorted(files):
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()
