"""The rungs of a ladder: the same experiments at several sizes, geometric in compute."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..base.roles import parameter_roles
from ..errors import UserError
from ..train.plan import Plan
from ..train.resolve import ResolvedStage, Settings, resolve
from ..train.stage_data import open_tokenizer
from .prepare import Budget, Prepared, Spec, apply_budget, prepare, scale_lr

SIZES = ('embed_dim', 'num_blocks', 'num_heads')
SPAN, TOKENS_PER_PARAMETER = 64.0, 20.0
STEP = 8  # widths are multiples of it
SHARES = 48  # sizes that are considered
NOT_COUNTED = ('embedding', 'head', 'table')


@dataclass
class Rung:
    """One size of a ladder. model: label -> model parameters that the rung sets; parameters: label -> without
    embeddings, tables of positions and head; tokens: of each run."""

    index: int
    model: dict[str, dict]
    parameters: dict[str, int]
    tokens: float
    prepared: list[Prepared]


def parse_ladder(text: str) -> tuple[int, float]:
    """'RUNGS' or 'RUNGS:SPAN', SPAN being the compute of the last rung over that of the first."""
    count, colon, span = text.partition(':')
    try:
        rungs, ratio = int(count), float(span) if colon else SPAN
    except ValueError:
        rungs, ratio = 0, SPAN
    if not 2 <= rungs <= 12 or not 2 <= ratio <= 1e6:
        raise UserError(
            f'--ladder takes a number of rungs from 2 to 12, and after a colon the span of their compute, '
            f"from 2 to 1e6: 4 or 4:64; given: '{text}'."
        )
    return rungs, ratio


def sized(parameters: dict, share: float) -> dict:
    """Width, depth and heads of a model with about `share` of the parameters of one with `parameters`.

    Width and depth shrink alike; the width is a multiple of 8, the heads divide it and are about as wide as
    they were.
    """
    width, depth, heads = (int(parameters[name]) for name in SIZES)
    if share == 1:
        return {'embed_dim': width, 'num_blocks': depth, 'num_heads': heads}
    blocks = max(1, round(depth * share ** (1 / 3)))
    new = max(STEP, round(width * math.sqrt(share * depth / blocks) / STEP) * STEP)
    wide = width / heads
    dividing = [h for h in range(1, new + 1) if new % h == 0 and new // h % 2 == 0]
    best = min(dividing, key=lambda h: abs(math.log(new / h / wide)))
    return {'embed_dim': new, 'num_blocks': blocks, 'num_heads': best}


class Sizes:
    """Sizes of an experiment under a plan: what each costs."""

    def __init__(self, spec: Spec, plan: Plan, progress: Callable[[str], None]):
        self.spec, self.plan, self.tokenizer = spec, plan, open_tokenizer(plan, progress)
        whole = self.stage({})
        runner, roles = whole.runner, parameter_roles(whole.skeleton)
        self.counted = {_numberless(name) for name, role in roles.items() if role not in NOT_COUNTED}
        self.parameters = runner.parameters
        self.own = getattr(runner.model_class, 'rung', None)
        if self.own is None and not all(isinstance(self.parameters.get(name), int) for name in SIZES):
            raise UserError(
                f'--ladder scales {", ".join(SIZES)}, which the model of {spec.label} does not declare; it '
                'may define rung(i), the model parameters of rung i from 0.'
            )

    def stage(self, model: dict) -> ResolvedStage:
        settings = Settings(exp=self.spec.exp, model=self.spec.model | model)
        return resolve(self.plan, settings, self.tokenizer)[-1]

    def model(self, index: int, share: float) -> dict:
        """The model parameters of rung `index`."""
        return dict(self.own(index)) if self.own else sized(self.parameters, share)

    def count(self, stage: ResolvedStage) -> int:
        """Parameters without embeddings, tables and head, by their roles in the model of the plan's size."""
        named = stage.skeleton.named_parameters()
        return sum(p.numel() for name, p in named if _numberless(name) in self.counted)

    def compute(self, model: dict, tokens_per_parameter: float) -> float:
        """Training FLOPs, with that many tokens for each parameter."""
        stage = self.stage(model)
        return tokens_per_parameter * self.count(stage) * stage.flops_per_token


def _numberless(name: str) -> str:
    """The name of a parameter whichever layer it is of."""
    return re.sub(r'\d+', '*', name)


def shares_of(baseline: Sizes, rungs: int, span: float, tokens_per_parameter: float) -> list[float]:
    """The sizes of the rungs, as shares of the baseline's parameters, geometric in its training FLOPs as
    nearly as widths and depths allow. Raises UserError where it is too small for so many."""
    if baseline.own:
        return [1.0] * rungs
    candidates: dict[tuple, float] = {}
    for share in np.geomspace(1, span**-0.7, SHARES):
        candidates.setdefault(tuple(sized(baseline.parameters, float(share)).items()), float(share))
    costs = {
        s: math.log(baseline.compute(dict(size), tokens_per_parameter)) for size, s in candidates.items()
    }
    top = costs[1.0]
    targets = [top - math.log(span) * (1 - i / (rungs - 1)) for i in range(rungs)]
    found = [min(costs, key=lambda s: abs(costs[s] - target)) for target in targets]
    if len({*found}) < rungs or costs[found[0]] - targets[0] > 0.5 * math.log(span) / (rungs - 1):
        raise UserError(
            f'--ladder: {baseline.spec.label} under plan {baseline.plan.name} is too small for {rungs} rungs '
            f'over a span of {span:g}. Make the model of the plan larger: it is the last rung.'
        )
    return found


def plan_rungs(
    specs: Sequence[Spec],
    plan: Plan,
    *,
    rungs: int,
    span: float,
    tokens_per_parameter: float,
    device: str,
    amp: bool,
    progress: Callable[[str], None],
) -> list[Rung]:
    """The ladder, smallest first; the last rung is the plan's own size.

    All experiments of a rung train on as many tokens, by the parameters of the baseline. The learning rate is
    the plan's times the width of the last rung over that of the rung.
    """
    sizes = [Sizes(spec, plan, progress) for spec in specs]
    ladder = []
    for index, share in enumerate(shares_of(sizes[0], rungs, span, tokens_per_parameter)):
        models = [own.model(index, share) for own in sizes]
        counts = [own.count(own.stage(model)) for own, model in zip(sizes, models)]
        tokens = tokens_per_parameter * counts[0]
        of_rung = [replace(spec, model=spec.model | model) for spec, model in zip(specs, models)]
        prepared = prepare(of_rung, plan, device=device, amp=amp, progress=progress)
        for own, model, p in zip(sizes, models, prepared):
            if 'embed_dim' in model and model['embed_dim'] != own.parameters['embed_dim']:
                scale_lr(p, own.parameters['embed_dim'] / model['embed_dim'])
            apply_budget(p, Budget('tokens', tokens))
        labels = [spec.label for spec in specs]
        ladder.append(Rung(index, dict(zip(labels, models)), dict(zip(labels, counts)), tokens, prepared))
    return ladder
