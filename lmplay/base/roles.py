"""What a model's parameters are to an optimizer, from the modules that own them and from how they are used.

Use is observed: one pass over a few tokens in which every operation is seen. A name decides nothing.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

log = logging.getLogger(__name__)

Role = Literal['embedding', 'head', 'matrix', 'kernel', 'table', 'vector', 'unknown']
TOKENS = 16  # of the pass that is observed
PRODUCTS = re.compile(
    r'(_?(add|sparse_|grouped_|scaled_|scaled_grouped_|int_|weight_int4pack_)?(b?add)?(mm|bmm|mv)'
    r'|_addmm_activation|v?dot|linear|matmul|einsum|.*attention.*|.*(lstm|gru|rnn).*|.*conv.*)$'
)
LOOKUPS = ('embedding', 'index', 'index_select', 'gather', '_unsafe_index')
BIAS = re.compile(r'b(ias)?\d?(_|$)', re.IGNORECASE)


class _Value(NamedTuple):
    """What a tensor was made of.

    depends  whether on the tokens
    sources  parameters that it is, or was made of without the tokens; or that the tokens select matrices of
    last     parameters of the last products before it
    """

    depends: bool = False
    sources: frozenset[str] = frozenset()
    last: frozenset[str] = frozenset()


class _Uses(TorchDispatchMode):
    """Observes how parameters are used by a pass that begins with the tokens `x`."""

    def __init__(self, parameters: dict[str, nn.Parameter], x: Tensor):
        super().__init__()
        self.parameters = parameters
        self.values: dict[int, _Value] = {_key(x): _Value(depends=True)}
        self.values |= {_key(p): _Value(sources=frozenset({name})) for name, p in parameters.items()}
        self.alive: list[Any] = [x]  # or a new tensor could take the place of an old one
        self.seen: set[str] = set()
        self.multiplied: set[str] = set()
        self.convolved: set[str] = set()
        self.looked_up: set[str] = set()
        self.consumed: set[str] = set()  # parameters whose products go into further products

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled; torch would import a second's worth of modules to make sure."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition('::')
        named = {a.name: value for a, value in zip(func._schema.arguments, args)} | (kwargs or {})
        values = {key: [self._of(t) for t in _tensors(given)] for key, given in named.items()}
        for value in (v for found in values.values() for v in found):
            self.seen |= value.sources
        if namespace not in ('aten', 'prim', 'prims') or PRODUCTS.match(name):
            made = self._product(name, values)
        else:
            made = self._other(name, [v for found in values.values() for v in found])
        self.alive.append(out)
        for tensor in _tensors(out):
            self.values[_key(tensor)] = made
        return out

    def _of(self, tensor: Tensor) -> _Value:
        return self.values.get(_key(tensor), _Value())

    def _product(self, name: str, values: dict[str, list[_Value]]) -> _Value:
        added = [key for key in values if BIAS.match(key) or 'add' in name and key == 'self']
        factors = [v for key, found in values.items() if key not in added for v in found]
        weights = frozenset().union(*(v.sources for v in factors))
        if not any(v.depends for v in factors):
            return _Value(sources=weights)
        last = frozenset().union(*(v.last for v in factors))
        self.consumed |= last
        (self.convolved if 'conv' in name else self.multiplied).update(weights)
        return _Value(depends=True, last=weights or last)

    def _other(self, name: str, values: list[_Value]) -> _Value:
        sources = frozenset().union(*(v.sources for v in values))
        last = frozenset().union(*(v.last for v in values))
        if not any(v.depends for v in values):
            return _Value(sources=sources)
        if name in LOOKUPS and not values[0].depends:
            self.looked_up |= {s for s in sources if self.parameters[s].ndim == 2}
            return _Value(True, frozenset(s for s in sources if self.parameters[s].ndim > 2), last)
        return _Value(True, sources if len(values) == 1 else frozenset(), last)


def parameter_roles(model: Any) -> dict[str, Role]:
    """The role of each parameter of an LMBase, by its name.

    embedding  of an nn.Embedding, or looked up by token ids; also where the head is tied to it
    head       multiplied last before the logits, or last of all and as wide as the vocabulary
    matrix     multiplied with activations: one matrix, or a stack of them in its last two dimensions
    kernel     of a convolution
    table      of two dimensions or more, never multiplied: positions, stacked biases, gains
    vector     below two dimensions, or one row or column
    unknown    not used by the pass, and of no module that says what it is
    """
    parameters = dict(model.named_parameters())
    uses, logits = _observe(model, parameters)
    embeddings = _owned(model, nn.Embedding)
    linear, kernels = _owned(model, nn.Linear), _owned(model, nn.modules.conv._ConvNd)
    fc = getattr(model, 'fc', None)
    heads = {id(p) for p in fc.parameters()} if isinstance(fc, nn.Module) else set()

    def role(name: str, p: nn.Parameter) -> Role:
        used = name in uses.multiplied or id(p) in linear
        last = name not in uses.consumed and model.tokenizer.n_vocab in p.shape[-2:]
        if p.ndim < 2 or min(p.shape[-2:]) == 1 and name not in uses.convolved:
            return 'vector'
        if id(p) in embeddings or name in uses.looked_up:
            return 'embedding'
        if id(p) in heads or name in logits or last and used:
            return 'head'
        if id(p) in kernels or name in uses.convolved:
            return 'kernel'
        if used:
            return 'matrix'
        return 'table' if name in uses.seen else 'unknown'

    return {name: role(name, p) for name, p in parameters.items()}


def _observe(model: Any, parameters: dict[str, nn.Parameter]) -> tuple[_Uses, frozenset[str]]:
    """How a pass uses the parameters, and those of its last products before the logits."""
    device = next(iter(parameters.values())).device if parameters else torch.device('cpu')
    length = min(TOKENS, model.max_len)
    x = torch.arange(length, device=device)[None] % model.tokenizer.n_vocab
    uses, modes = _Uses(parameters, x), [(m, m.training) for m in model.modules()]
    model.eval()
    cuda = [device] if device.type == 'cuda' else []
    try:
        with torch.random.fork_rng(cuda), torch.no_grad(), uses:
            out = model(x)
            logits = getattr(out, 'logits', out)
        return uses, uses._of(logits).last if isinstance(logits, Tensor) else frozenset()
    except Exception as error:  # noqa: BLE001  a model may raise anything; modules still say what they own
        log.warning(
            'How %s uses its parameters could not be observed (%s); module types decide alone.',
            type(model).__name__,
            error,
        )
        return _Uses(parameters, x), frozenset()
    finally:
        for module, training in modes:
            module.training = training


def _owned(model: nn.Module, kind: type | tuple[type, ...]) -> set[int]:
    """Ids of the parameters that modules of a kind hold themselves."""
    return {id(p) for m in model.modules() if isinstance(m, kind) for p in m.parameters(recurse=False)}


def _key(tensor: Tensor) -> int:
    """What a tensor and its views have in common."""
    return tensor.untyped_storage()._cdata


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in _leaves(tree) if isinstance(leaf, Tensor))


def _leaves(tree: Any) -> Iterable[Any]:
    return [tree] if isinstance(tree, Tensor) else tree_leaves(tree)
