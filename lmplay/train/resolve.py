"""From plan, version and command line to stages in which every setting is decided. Nothing after this asks
the plan again.

Precedence: a model's defaults < its version's < the plan's < the stage's < the command line's.
"""

import difflib
from dataclasses import dataclass, field
from functools import cached_property

from ..base.base_model import BasicModelRunner, LMBase
from ..base.runner_list import find_entry, find_runner
from ..errors import PlanError, UserError
from ..tokenizers import Tokenizer, as_tokenizer
from .plan import Plan, Stage

SLIP = 0.9  # similarity of two names from which one is a slip for the other: num_block, num_blocks


@dataclass(frozen=True)
class Settings:
    """What a run is given in addition to its plan, as settings.json records it.

    compile_model  None: where it pays within the run
    seed           None: the plan's
    overrides      stage keys from the command line, for every stage
    model          model parameters from there
    profile        steps to profile
    yes            train although the memory is estimated not to suffice
    """

    exp: str = 'gpt2ish'
    device: str = 'auto'
    amp: bool = False
    compile_model: bool | None = None
    seed: int | None = None
    run_dir: str = ''
    report_to: list[str] = field(default_factory=list)
    reset_history: bool = False
    initial_model: str | None = None
    ignore_optimizer: bool = False
    default_freeze: bool = False
    check_grads: bool = False
    keep: int = 2
    parallel: str = 'ddp'
    rank_timeout: float = 600.0
    yes: bool = False
    profile: int | None = None
    overrides: dict = field(default_factory=dict)
    model: dict = field(default_factory=dict)


@dataclass(frozen=True)
class ResolvedStage:
    """A stage as it will be trained.

    exp         the experiment as it was named; `entry_name` is what it is registered as
    settings    every key of the stage, decided
    runner      the experiment's version with its parameters
    init_from   where its weights come from: previous, scratch, stage:NAME, pretrained:NAME, a path
    continues   whether it trains the very model of the stage before
    datasets    name -> definition, None for a named dataset or a path
    overridden  what the version sets of its model and the plan sets otherwise: parameter -> (the version's,
                the plan's)
    lacking     parameters that the plan sets and the model lacks, which are left out
    """

    index: int
    exp: str
    settings: Stage
    runner: BasicModelRunner
    init_from: str
    continues: bool
    datasets: dict[str, dict | None]
    validation_fraction: float
    overridden: dict
    lacking: dict

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def entry_name(self) -> str:
        return find_entry(self.exp).name

    @cached_property
    def skeleton(self) -> LMBase:
        """The model on the meta device: its shapes without its weights."""
        return self.runner.build('meta')

    @property
    def notes(self) -> list[str]:
        """A sentence each on what the plan and the experiment set differently, and on what applies not."""
        notes = []
        if self.overridden:
            changes = (f'{k} {v} ({own} in {self.exp})' for k, (own, v) in self.overridden.items())
            notes.append(f'Stage "{self.name}": the plan sets {", ".join(changes)}.')
        if self.lacking:
            left = ', '.join(f'{k} {v}' for k, v in self.lacking.items())
            notes.append(
                f'Stage "{self.name}": the plan sets {left}, which the model of {self.entry_name} lacks; '
                'left out.'
            )
        return notes

    @property
    def row_length(self) -> int:
        """Tokens of a sequence. Raises PlanError where the model takes fewer."""
        length = self.settings.row_length or self.skeleton.max_len
        if length > self.skeleton.max_len:
            raise PlanError(
                f'Stage "{self.name}": sequences of {length} tokens are longer than the model\'s max_len of '
                f'{self.skeleton.max_len}.'
            )
        return length

    @cached_property
    def measurable(self) -> LMBase:
        """A model whose cost can be counted: the skeleton, or one with weights where its forward pass reads
        values."""
        try:
            self.skeleton.flops_per_token(min(8, self.row_length))
        except (NotImplementedError, RuntimeError):
            return self.runner.build()
        return self.skeleton

    @cached_property
    def flops_per_token(self) -> float:
        """Training FLOPs per token."""
        return self.measurable.training_flops_per_token(self.row_length)


def resolve(plan: Plan, settings: Settings, tokenizer: Tokenizer | None) -> list[ResolvedStage]:
    """All stages of a plan.

    tokenizer: the plan's, None where it leaves that to the model. Raises UserError.
    """
    stages: list[ResolvedStage] = []
    exp = settings.exp
    for index, keys in enumerate(plan.stages.values()):
        if keys.get('exp'):
            exp = keys['exp']
            find_entry(exp, written_in=plan.where)
        before = stages[-1] if stages else None
        stages.append(_resolve_stage(plan, settings, tokenizer, index, exp=exp, before=before))
    return stages


def _resolve_stage(
    plan: Plan,
    settings: Settings,
    tokenizer: Tokenizer | None,
    index: int,
    *,
    exp: str,
    before: ResolvedStage | None,
) -> ResolvedStage:
    """Stage number `index`, which trains experiment `exp`; before: the stage before it."""
    version = find_runner(exp).function()
    # where later stages start from is the plan's to decide
    defaults = {k: v for k, v in version.training.items() if index == 0 or k != 'init_from'}
    stage = plan.stage(index, defaults, settings.overrides)
    asked, own = plan.model | stage.model, version.given
    lacking = {} if stage.exp is not None else _lacking(asked, version.declared)
    asked = {k: v for k, v in asked.items() if k not in lacking}
    try:
        runner = _runner(plan, exp, version, asked | settings.model, tokenizer)
    except UserError as error:
        raise type(error)(f'Stage "{stage.name}": {error}') from error
    initial = settings.initial_model if index == 0 else None
    same = before is not None and before.exp == exp and before.runner.given == runner.given
    continues = same and stage.init_from == 'previous'
    different = {k: v for k, v in asked.items() if k in own and own[k] != v}
    return ResolvedStage(
        index=index,
        exp=exp,
        settings=stage,
        runner=runner,
        init_from=initial or stage.init_from,
        continues=continues,
        datasets={name: plan.source_spec(name) for name in stage.datasets},
        validation_fraction=plan.validation_fraction,
        overridden={k: (own[k], v) for k, v in different.items() if k not in settings.model},
        lacking=lacking,
    )


def _lacking(asked: dict, declared: dict) -> dict:
    """What a plan sets for whatever model it trains and this one does not declare.

    A name that is nearly one of the model's is left, to be refused: it is a slip.
    """
    unset = [name for name in declared if name not in asked]
    unknown = {k: v for k, v in asked.items() if k not in declared and k != 'version'}
    return {k: v for k, v in unknown.items() if not difflib.get_close_matches(k, unset, n=1, cutoff=SLIP)}


def _runner(
    plan: Plan, exp: str, version: BasicModelRunner, parameters: dict, tokenizer: Tokenizer | None
) -> BasicModelRunner:
    """A version with its parameters, and the plan's tokenizer where it has a parameter for it."""
    function = find_runner(exp).function
    if tokenizer is None or 'tokenizer' in parameters:
        return function(**parameters)
    if 'tokenizer' in version.declared:
        return function(**parameters, tokenizer=tokenizer)
    own = as_tokenizer(function(**parameters).build('meta').tokenizer)
    if own.fingerprint != tokenizer.fingerprint:
        raise PlanError(
            f"{plan.where}: the plan's tokenizer is {tokenizer.name}, but experiment '{exp}' always uses "
            f"{own.name}: give its model a parameter `tokenizer`, or leave the plan's out."
        )
    return function(**parameters)
