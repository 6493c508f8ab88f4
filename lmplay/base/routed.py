"""The contract of a routed model: what `lmp_routing` asks a mixture of experts.

B sequences, T positions, D width, E experts, K choices per token.
"""

from dataclasses import dataclass

from torch import Tensor

from .base_model import LMBase


def layer_name(block: int) -> str:
    """What pages, tables and alarms call the routed layer in a block."""
    return f'layer {block}'


@dataclass(frozen=True)
class RoutedLayer:
    """What one routed layer decided about a batch.

    name         what reports call it, see `layer_name`
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
    """Input-independent state of the experts of one routed layer.

    weights  their trained parameters, each stacked (E, ...); empty where experts are frozen
    keys     (E, D) where each expert sits, if the router knows places
    usage    (E,) running usage, in any unit, if the model keeps it
    """

    weights: tuple[Tensor, ...] = ()
    keys: Tensor | None = None
    usage: Tensor | None = None


class RoutedLM(LMBase):
    """A language model that can say which expert serves which token.

    All lists have one entry per routed layer.
    """

    def routing(self, x: Tensor) -> list[RoutedLayer]:
        """What each routed layer decides about the tokens x (B, T); called in evaluation mode,
        without gradients."""
        raise NotImplementedError(f'{type(self).__name__} defines no routing')

    def layer_names(self) -> list[str]:
        """The names of the layers as in `routing`, by which alarms call them; their numbers by default."""
        return []

    def experts(self) -> list[Experts]:
        """The state of the experts, layer by layer in the order of `routing`."""
        raise NotImplementedError(f'{type(self).__name__} defines no experts')
