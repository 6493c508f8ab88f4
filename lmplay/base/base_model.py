"""The contract of an experiment: `LMBase` is what a model is, `BasicModelRunner` is how a version of it is
declared.

B sequences, T positions, D width, V vocabulary. docs/contract.md explains it by examples.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import ExperimentError
from ..tokenizers import Tokenizer, as_tokenizer, provide_gpt2
from .lazy_dynamo import NoRandomInit, spare_dynamo
from .parameters import heads_follow_width, model_parameters, typed_parameters
from .roles import parameter_roles

spare_dynamo()
provide_gpt2()  # a model may call tiktoken.get_encoding('gpt2') itself; it must not need a network


@dataclass
class LMOutput:
    """What a model returns when it has more to say than logits.

    logits    (B, T, V); None where `features` is given
    features  (B, T, D), from `LMBase.features` only: what the head `fc` turns into logits
    losses    auxiliary losses, name -> (unweighted scalar, weight); weight * scalar joins the objective. Each
              is a mean over this micro-batch's tokens; the trainer weighs micro-batches by their tokens.
    metrics   detached tensors to log, of any shape, averaged over micro-batches. By convention `expert_load`
              (layers, E), fractions of assignments, is watched for collapse; the hyperparameter `top_k`
              says how many experts serve a token, 1 by default.

    Losses (unweighted) and metrics are logged as `model/NAME`, apart from what the trainer measures itself.
    """

    logits: Tensor | None = None
    features: Tensor | None = None
    losses: dict[str, tuple[Tensor, float]] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)

    def reported(self) -> dict[str, Tensor]:
        """What is logged of it: unweighted losses and metrics."""
        return {name: value for name, (value, _) in self.losses.items()} | self.metrics


@dataclass(frozen=True)
class StepContext:
    """Where training stands, at `before_step` and `after_step`.

    stage        name of the stage
    step         optimizer steps of the stage so far, from 0
    total_steps  of the stage
    tokens       trained on so far in the run
    stepped      False in `after_step` where the update was skipped because the gradient was not finite; a
                 tensor where the device decides, so that nothing waits for it
    """

    stage: str
    step: int
    total_steps: int
    tokens: int
    stepped: bool | Tensor = True


def _optional(method: Callable) -> frozenset[str]:
    """Which of the optional keywords `cache` and `mask` a method names."""
    return frozenset({'cache', 'mask'} & inspect.signature(method).parameters.keys())


class LMBase(nn.Module):
    """Base class of every language model here.

    A subclass calls `super().__init__(name, max_len=...)`, sets `self.tokenizer`, and defines either

    - `features(x)` and an output head `self.fc`. `forward` is then fc(features(x)). Where the head is a plain
    `nn.Linear`,
      head and loss are computed together, so that the logits of a batch are never all in memory; or
    - its own `forward(x)`, through which it is trained, evaluated and sampled.

    Either may take two optional keywords:

    - `cache`: a list, empty at first, in which the model keeps what it needs of earlier positions; `x` then
    holds the
      positions that follow the cached ones. A model that takes none generates without one, slower.
    - `mask` (B, T) bool: True at real tokens, False at padding, which stands at the end of sequences.

    All state that must survive a save is a parameter or a persistent buffer. Large state that follows from a
    seed need not be saved if its seed and a digest are.

    Class attributes declare what is otherwise refused: `causal = False` of a model whose positions see later
    ones (it trains, and is never ranked against models that predict the next token), `batch_dependent = True`
    of one whose sequences depend on what else is in their batch.
    """

    causal = True
    batch_dependent = False
    previews = False
    # formats of others that `lmp_export` can write: name -> function(model, folder, facts) -> files
    exports: ClassVar[dict[str, Callable[[Any, Path, dict[str, Any]], list[Path]]]] = {}
    # model parameters of rung i of `lmp_compare --ladder`, from 0; None: width, depth and heads are scaled
    rung: ClassVar[Callable[[int], dict[str, Any]] | None] = None
    fc: Any  # the head
    features_takes: frozenset[str] = frozenset()
    forward_takes: frozenset[str] = frozenset({'cache', 'mask'})

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.features_takes, cls.forward_takes = _optional(cls.features), _optional(cls.forward)

    def __init__(self, name: str, *, max_len: int, **hyperparameters: Any):
        super().__init__()
        self.name = name
        self.max_len = max_len
        # BasicModelRunner.build adds every parameter of the version; a model passes only what it derives
        # itself.
        self.hyperparameters = {'max_len': max_len, **hyperparameters}
        self._tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer as the model set it: a tiktoken.Encoding or a Tokenizer of lmplay.tokenizers."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer):
        as_tokenizer(tokenizer)  # fail where it is set, not where it is used
        self._tokenizer = tokenizer

    def features(self, x: Tensor) -> Tensor | LMOutput:
        """(B, T) token ids to (B, T, D), ready for the head `fc`; or an LMOutput with them,
        losses and metrics."""
        raise NotImplementedError(f'{type(self).__name__} defines neither features nor forward')

    def forward(self, x: Tensor, cache: list | None = None, mask: Tensor | None = None):
        """fc(features(x)), over the vocabulary of the tokenizer where the head is padded beyond it.

        Training: x (B, T) int64 to logits (B, T, V), or an LMOutput where `features` gives one. Generation,
        with a cache: (logits (B, 1, V) of the last position, cache), x being what follows the cached
        positions; logits alone from a model whose `features` takes no cache.
        """
        optional = {'cache': cache, 'mask': mask}
        out = self.features(x, **{k: optional[k] for k in self.features_takes})
        output = out if isinstance(out, LMOutput) else LMOutput(features=out)
        features = output.features
        assert features is not None
        n_vocab = self.tokenizer.n_vocab
        if cache is not None and 'cache' in self.features_takes:
            return self.fc(features[:, -1:])[..., :n_vocab], cache
        logits = self.fc(features)[..., :n_vocab]
        if output is not out:
            return logits
        return LMOutput(logits=logits, losses=output.losses, metrics=output.metrics)

    @property
    def takes_cache(self) -> bool:
        """Whether `forward` can be given a cache."""
        inherited = type(self).forward is LMBase.forward
        return 'cache' in (self.features_takes if inherited else self.forward_takes)

    def import_pretrained(self, source: 'str | LMBase') -> list[str]:
        """Warm start from another model's weights; returns lines for the log.

        source: 'pretrained:NAME', the path of a folder, or an LMBase trained before. This default takes
        weights and tokenizer of a model of the same class and shapes. Raises ExperimentError for any other
        source.
        """
        if not isinstance(source, LMBase) or not self.is_like(source):
            name = source.name if isinstance(source, LMBase) else source
            raise ExperimentError(
                f'{self.name} cannot start from {name}: its model defines no import_pretrained, and the '
                'architectures differ.'
            )
        from .pretrained import take_tokenizer

        self.load_state_dict(source.state_dict())
        return take_tokenizer(self, as_tokenizer(source.tokenizer), source.name)

    def as_transformers(self) -> Any | None:
        """A model of transformers' own class that computes the same logits in evaluation mode, for export;
        None where there is none."""
        return None

    @classmethod
    def reads(cls, path: Path) -> bool:
        """Whether `path` is in a format of others that `read_foreign`, and `import_pretrained`, can read."""
        return False

    @classmethod
    def read_foreign(cls, path: Path) -> 'tuple[LMBase, dict[str, Any]]':
        """(model, facts) of a path that it `reads`; facts: 'step', of the run that wrote it."""
        raise NotImplementedError(f'{cls.__name__} reads no format of others')

    def can_start_from(self, source: 'LMBase') -> bool:
        """Whether `import_pretrained` may take this model, as far as can be told without its weights."""
        return type(self).import_pretrained is not LMBase.import_pretrained or self.is_like(source)

    def is_like(self, other: 'LMBase') -> bool:
        """Whether the other is of the same class, with tensors of the same names and shapes."""
        ours, theirs = ({k: v.shape for k, v in m.state_dict().items()} for m in (self, other))
        return type(self) is type(other) and ours == theirs

    def before_step(self, ctx: StepContext) -> None:
        """Runs before the micro-batches of each optimizer step."""

    def preview(self, x: Tensor, mask: Tensor) -> None:
        """Where `previews` is True: called with each micro-batch of a step (B, T) before the first one is
        trained on, if there are several; in training mode, with the random numbers that training will have,
        without gradients. What it costs is the model's own affair."""

    def after_step(self, ctx: StepContext) -> None:
        """Runs after each optimizer step, skipped ones included (`ctx.stepped`)."""

    def param_groups(self, weight_decay: float) -> list[dict]:
        """Parameter groups for the optimizer: no decay for biases, norms (anything below two dimensions),
        embeddings and other tables, and parameters with `skip_weight_decay = True`. Frozen parameters are
        left out."""
        roles = parameter_roles(self)
        decay, no_decay = [], []
        for name, p in self.named_parameters():
            if p.requires_grad:
                spared = p.ndim < 2 or roles[name] in ('embedding', 'table')
                (no_decay if spared or getattr(p, 'skip_weight_decay', False) else decay).append(p)
        groups = [{'params': decay, 'weight_decay': weight_decay}, {'params': no_decay, 'weight_decay': 0.0}]
        return [g for g in groups if g['params']]

    def total_parameters(self) -> int:
        """Parameters of the model, trained or not; a model whose frozen ones are buffers adds those."""
        return sum(p.numel() for p in self.parameters())

    def active_parameters(self) -> int:
        """Parameters that take part in computing one token; a routed model counts only the chosen experts."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, length: int) -> float:
        """Forward floating-point operations per token in sequences of `length`.

        Multiply and add count as two, attention counts in full (not halved for causality). A model with
        routed products computes its own.
        """
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        counter = FlopCounterMode(display=False)
        device = next(self.parameters()).device
        training = self.training
        self.eval()
        try:
            # the counter can't see into the CPU's fused attention
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
                self(torch.zeros(1, length, dtype=torch.int64, device=device))
        finally:
            self.train(training)
        return counter.get_total_flops() / length

    def training_flops_per_token(self, length: int) -> float:
        """Of forward and backward together: three times the forward pass's,
        less where weights get no gradient."""
        return 3 * self.flops_per_token(length)


class BasicModelRunner:
    """One version of an experiment: a model class, what it overrides of the defaults, and what is asked for.

    model_class   a subclass of LMBase
    overrides     this version's model parameters
    training      this version's defaults for a plan's stage keys (lr, on_collapse, ...)
    parameters    model parameters from the plan and the command line; they win over `overrides`

    given         `overrides` and `parameters` joined, each value typed by the model's declared default; where
                  they change `embed_dim` and leave `num_heads`, the heads follow the width
    declared      what the model's __init__ takes, with its defaults

    Raises ExperimentError for a parameter that the model does not declare, and for a value of another type.
    """

    def __init__(
        self,
        model_class: Callable[..., LMBase],
        *,
        overrides: dict | None = None,
        training: dict | None = None,
        **parameters,
    ):
        self.model_class = model_class
        self.training = dict(training or {})
        self.declared = model_parameters(model_class, until=LMBase)
        name = getattr(model_class, '__name__', '')
        own, asked = (typed_parameters(given, self.declared, name) for given in (overrides or {}, parameters))
        self.given = own | asked | heads_follow_width(self.declared, own, asked)
        self.parameters = self.declared | {k: v for k, v in self.given.items() if k != 'version'}

    def build(self, device: str | torch.device = 'cpu') -> LMBase:
        """The model with fresh weights, its hyperparameters recorded.

        Raises ExperimentError where it breaks the contract.
        """
        with torch.device(device), NoRandomInit():
            model = self.model_class(**self.given)
        if not isinstance(model, LMBase):
            raise ExperimentError(
                f'{self.model_class.__name__} must be a subclass of lmplay.base.base_model.LMBase.'
            )
        if model.tokenizer is None:
            raise ExperimentError(
                f'{self.model_class.__name__} sets no tokenizer: self.tokenizer = '
                "tiktoken.get_encoding('gpt2') is the usual one."
            )
        own = {k: v for k, v in self.parameters.items() if k != 'tokenizer'}
        model.hyperparameters = own | model.hyperparameters
        return model


def __getattr__(name: str) -> Any:
    """RoutedLayer and Experts live in routed.py; older experiments import them from here."""
    if name in ('Experts', 'RoutedLayer'):
        from . import routed

        return getattr(routed, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
