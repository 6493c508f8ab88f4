"""The contract of an experiment: `LMBase` is what a model is, `BasicModelRunner` is how a version of it is declared.

B rows, T positions, D width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExperimentError
from ..tokenizers import Tokenizer, as_tokenizer, provide_gpt2
from .parameters import model_parameters, typed_parameters

provide_gpt2()  # a model may call tiktoken.get_encoding('gpt2') itself; it must not need a network


@dataclass
class LMOutput:
    """What a model returns when it has more to say than logits.

    logits    (B, T, V); None where `features` is given
    features  (B, T, D), from `LMBase.features` only: what the head `fc` turns into logits
    losses    auxiliary losses, name -> (unweighted scalar, weight); weight * scalar joins the objective, the unweighted
              scalar is logged under its name. Each is a mean over this micro-batch's tokens; the trainer weighs
              micro-batches by their tokens.
    metrics   detached tensors to log, of any shape; averaged over micro-batches. Convention: `expert_load` (layers, E),
              fractions of assignments, is watched for collapse.
    """

    logits: Tensor | None = None
    features: Tensor | None = None
    losses: dict[str, tuple[Tensor, float]] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class StepContext:
    """Where training stands, at `before_step` and `after_step`.

    step counts optimizer steps of the stage from 0; total_steps is the stage's number of them; tokens are those trained
    on so far in the run. `stepped` is False in after_step where the update was skipped because it was not finite.
    """

    stage: str
    step: int
    total_steps: int
    tokens: int
    stepped: bool | Tensor = True


@dataclass(frozen=True)
class RoutedLayer:
    """What one routed layer did with a batch; from `LMBase.routing`.

    name         what reports call it, e.g. 'block 8'
    num_experts  E
    expert_ids   (B, T, K) int64: the experts that serve a token
    weights      (B, T, K) their gate weights
    entropy      (B, T) of the clean router's distribution over the experts, in nats
    """

    name: str
    num_experts: int
    expert_ids: Tensor
    weights: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class Experts:
    """What the experts of one routed layer have become, whatever the text; from `LMBase.experts`, in the order of `routing`.

    weights  their trained parameters, each stacked (E, ...); empty where experts are frozen
    keys     (E, D) where each expert sits, if the router knows places
    usage    (E,) running usage, in any unit, if the model keeps it
    """

    weights: tuple[Tensor, ...] = ()
    keys: Tensor | None = None
    usage: Tensor | None = None


class LMBase(nn.Module):
    """Base class of every language model here.

    A subclass calls `super().__init__(name, max_len=..., **hyperparameters)`, sets `self.tokenizer`, and defines `forward`.
    Hyperparameters are recorded, saved with checkpoints and shown. All state that must survive a save is a parameter or a
    persistent buffer; large state that follows from a seed is not saved, its seed and digest are.

    Optional, each found by its presence:
    - `features(x)` and an output head `fc`: training and evaluation then take fc(features(x)) in place of `forward`, head and loss
      fused, so that logits are never all in memory. Both must be the same model, which is checked before training; what
      `forward` would report in an LMOutput, `features` returns as LMOutput(features=..., losses=..., metrics=...).
    - a keyword `mask` in `forward` / `features`: receives (B, T) bool, True at real tokens, False at padding.
    - `import_pretrained(source)`: warm start from another model's weights. `source` is 'pretrained:NAME', the path of a
      folder, or an LMBase that was trained before; returns a list of lines for the log.
    - `routing(x)` and `experts()`: lists with a RoutedLayer and an Experts per routed layer, for `lmp_routing`; called in
      evaluation mode, x (B, T) with any padding at the end of rows.
    """

    def __init__(self, name: str, *, max_len: int, **hyperparameters: Any):
        super().__init__()
        self.name = name
        self.max_len = max_len
        self.hyperparameters = {'max_len': max_len, **hyperparameters}
        self._tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self):
        """The tokenizer as the model set it: a tiktoken.Encoding or a Tokenizer of lmplay.tokenizers."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer):
        as_tokenizer(tokenizer)  # fail where it is set, not where it is used
        self._tokenizer = tokenizer

    def forward(self, x: Tensor, cache: list | None = None):
        """Training: x (B, T) int64 to logits (B, T, V), or an LMOutput. Generation, where cache is a list (empty at
        first): (logits (B, 1, V) of the last position, cache), x being what follows the cached positions."""
        raise NotImplementedError(f'{type(self).__name__} defines no forward')

    def before_step(self, ctx: StepContext) -> None:
        """Runs before the micro-batches of each optimizer step."""

    def after_step(self, ctx: StepContext) -> None:
        """Runs after each optimizer step, skipped ones included (`ctx.stepped`)."""

    def param_groups(self, weight_decay: float) -> list[dict]:
        """Parameter groups for the optimizer: no decay for biases, norms (anything below two dimensions), embeddings, and
        parameters with `skip_weight_decay = True`. Frozen parameters are left out."""
        embeddings = {
            id(p) for m in self.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)
        }
        decay, no_decay = [], []
        for name, p in self.named_parameters():
            if p.requires_grad:
                skip = (
                    getattr(p, 'skip_weight_decay', False)
                    or p.ndim < 2
                    or id(p) in embeddings
                    or 'embed' in name.rsplit('.', 1)[-1]
                )
                (no_decay if skip else decay).append(p)
        groups = [{'params': decay, 'weight_decay': weight_decay}, {'params': no_decay, 'weight_decay': 0.0}]
        return [g for g in groups if g['params']]

    def total_parameters(self) -> int:
        """Parameters of the model, trained or not; a model whose frozen ones are buffers adds those."""
        return sum(p.numel() for p in self.parameters())

    def active_parameters(self) -> int:
        """Parameters that take part in computing one token; a routed model counts only the chosen experts."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, length: int) -> float:
        """Forward floating-point operations per token in rows of `length`, multiply and add counted as two, attention
        counted in full (not halved for causality). Counted on the meta device; a model with routed products adds its own."""
        from torch.utils.flop_counter import FlopCounterMode

        counter = FlopCounterMode(display=False)
        device = next(self.parameters()).device
        training = self.training
        self.eval()
        try:
            with torch.no_grad(), counter:
                self(torch.zeros(1, length, dtype=torch.int64, device=device))
        finally:
            self.train(training)
        return counter.get_total_flops() / length

    def training_flops_per_token(self, length: int) -> float:
        """Of forward and backward together: three times the forward pass's, less where weights get no gradient."""
        return 3 * self.flops_per_token(length)


class BasicModelRunner:
    """One version of an experiment: a model class, what it overrides of the defaults, and what is asked for.

    model_class   a subclass of LMBase
    overrides     this version's model parameters
    training      this version's defaults for a plan's stage keys (lr, on_collapse, ...)
    parameters    model parameters from the plan and the command line; they win over `overrides`

    given         `overrides` and `parameters` joined, each value typed by the model's declared default
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
        self.given = typed_parameters({**(overrides or {}), **parameters}, self.declared, name)
        self.parameters = self.declared | {k: v for k, v in self.given.items() if k != 'version'}

    def build(self, device: str | torch.device = 'cpu') -> LMBase:
        """The model with fresh weights. Raises ExperimentError where it breaks the contract."""
        with torch.device(device):
            model = self.model_class(**self.given)
        if not isinstance(model, LMBase):
            raise ExperimentError(
                f'{self.model_class.__name__} must be a subclass of lmplay.base.base_model.LMBase.'
            )
        if model.tokenizer is None:
            raise ExperimentError(
                f"{self.model_class.__name__} sets no tokenizer: self.tokenizer = tiktoken.get_encoding('gpt2') "
                f'is the usual one.'
            )
        return model
