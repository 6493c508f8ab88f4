"""The ten checks of an upcycled model, each a list of (passed, what was measured).

B sequences, T positions, V vocabulary, N = B * T tokens, D width, E experts, K choices per token.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lmplay.modules.routing import Routing, expert_load
from lmplay.tokenizers import as_tokenizer

from .pretrained import TEXT, TEXT_TOKENS, parity

Finding = tuple[bool, str]
PARITY = 0.02  # largest relative error of a warm-started layer
MASKING = 1e-4  # largest difference of a logit between a padded batch and a sequence on its own
LEAST_BALANCE = 0.999  # of the load-balance loss, whose minimum is 1 where load follows probability


@dataclass(frozen=True)
class Figure:
    """What was measured of a layer, and whether it is as it should be."""

    text: str
    good: bool


class Checks:
    """The checks of `model`, upcycled from transformers' model `dense`; without `dense`, trained."""

    def __init__(self, model, dense=None):
        self.model, self.dense = model.eval(), dense
        self.tokenizer = as_tokenizer(model.tokenizer)
        self.device = next(model.parameters()).device
        self.layers = model.moe_layers
        self.figures: dict[int, dict[str, Figure]] = {i: {} for i in self.layers}  # block -> name -> figure
        self.notes: dict[str, str] = {}  # what was measured of the whole model
        tokens = self.tokenizer.encode(TEXT)[: min(TEXT_TOKENS, model.max_len)]
        self.x = torch.tensor([tokens], device=self.device)

    def all(self) -> Iterator[tuple[str, Callable[[], list[Finding] | None]]]:
        """(title, check) of each; a check that does not apply returns None."""
        yield from (
            ('Installation', self.installation),
            ('Warm-start parity', self.parity),
            ('Forward pass', self.forward_pass),
            ('Auxiliary outputs', self.auxiliary),
            ('Loss computation', self.losses),
            ('Router gradient (STE)', self.router_gradient),
            ('Noisy routing separation', self.noise),
            ('Generation', self.generation),
            ('Attention masking', self.masking),
            ('Routing coverage', self.coverage),
        )

    def installation(self) -> list[Finding]:
        blocks, D, E = self.model.blocks, self.model.embed_dim, self.model.num_experts
        mlp = self.model.family.mlp_parameters(D, self.model.ff_dim)
        routed = [i for i, block in enumerate(blocks) if hasattr(block.mlp, 'router')]
        total = self.model.total_parameters()
        plain = total - sum(p.numel() for i in routed for p in blocks[i].mlp.parameters()) + len(routed) * mlp
        if self.dense is not None:
            plain = sum(p.numel() for p in self.dense.parameters())
        expected = plain + len(routed) * ((E - 1) * mlp + D * E)
        findings = [
            (routed == list(self.layers) and bool(routed), f'experts in layers {routed} alone'),
            (total == expected, f'{total:,} parameters, expected {expected:,}'),
        ]
        dense = [] if self.dense is None else self.dense.parameters()
        theirs = {p.untyped_storage().data_ptr() for p in dense}
        own = [p.untyped_storage().data_ptr() for layer in self.layers.values() for p in layer.parameters()]
        findings.append((len(set(own)) == len(own) and not theirs & set(own), 'no shared storage'))
        for i, layer in self.layers.items():
            apart = min(
                (float((layer.w1[a] - layer.w1[b]).detach().abs().max()) for a in range(E) for b in range(a)),
                default=1.0,
            )
            findings.append((apart > 0, f'Layer {i} experts differ, by {apart:.2e} at least'))
        return findings

    def parity(self) -> list[Finding] | None:
        if self.dense is None:
            return None
        layers, logits = parity(self.model, self.dense)
        self._note('parity', layers, '.4f', lambda error: error < PARITY)
        return [
            *((error < PARITY, f'Layer {i} parity rel_err={error:.4f}') for i, error in layers.items()),
            (logits < PARITY, f'Logits parity rel_err={logits:.4f}'),
        ]

    @torch.no_grad()
    def forward_pass(self) -> list[Finding]:
        logits = self.model(self.x).logits
        shape = (*self.x.shape, self.tokenizer.n_vocab)
        return [
            (tuple(logits.shape) == shape, f'logits {tuple(logits.shape)}'),
            (bool(logits.isfinite().all()), 'all finite'),
        ]

    def auxiliary(self) -> list[Finding]:
        E, K, N = self.model.num_experts, self.model.top_k, self.x.numel()
        findings = []
        for i, routing in self._routings(self.x).items():
            probs, ids, weights = routing.probs_NE, routing.expert_ids_NK, routing.weights_NK
            good = (
                probs.shape == (N, E)
                and ids.shape == weights.shape == (N, K)
                and 0 <= int(ids.min())
                and int(ids.max()) < E
                and float(probs.min()) >= 0
                and all(float((p.sum(-1) - 1).abs().max()) < 1e-5 for p in (probs, weights))
            )
            shapes = f'probabilities {tuple(probs.shape)}, choices {tuple(ids.shape)}'
            findings.append((good, f'Layer {i} {shapes}, weights sum to 1'))
        return findings

    @torch.no_grad()
    def losses(self) -> list[Finding]:
        E, metrics = self.model.num_experts, self.model(self.x).metrics
        balance, z = (
            dict(zip(self.layers, metrics[f'{name}_by_layer'].tolist()))
            for name in ('load_balance', 'z_loss')
        )
        self._note('load balance', balance, '.4f', lambda loss: LEAST_BALANCE <= loss <= E)
        self._note('z-loss', z, '.4f', lambda loss: loss >= 0)
        return [
            (
                LEAST_BALANCE <= balance[i] <= E and z[i] >= 0,
                f'Layer {i} LB={balance[i]:.4f}, Z={z[i]:.4f}',
            )
            for i in self.layers
        ]

    def router_gradient(self) -> list[Finding]:
        """Of the language-model loss alone."""
        self.model.zero_grad(set_to_none=True)
        logits = self.model(self.x).logits
        F.cross_entropy(logits[0, :-1].float(), self.x[0, 1:]).backward()
        sums = {i: layer.router.weight.grad.abs().sum().item() for i, layer in self.layers.items()}
        self.model.zero_grad(set_to_none=True)
        self._note('gradient', sums, '.6f', lambda total: 0 < total < float('inf'))
        return [
            (0 < total < float('inf'), f'Layer {i} sum |router gradient| = {total:.6f}')
            for i, total in sums.items()
        ]

    @torch.no_grad()
    def noise(self) -> list[Finding]:
        """In training, noise moves the probabilities; in evaluation nothing does."""
        findings, same = [], self.model(self.x).logits.equal(self.model(self.x).logits)
        inputs = {}
        hooks = [
            layer.register_forward_pre_hook(lambda _, args, i=i: inputs.update({i: args[0]}))
            for i, layer in self.layers.items()
        ]
        self._routings(self.x)
        for hook in hooks:
            hook.remove()
        for i, layer in self.layers.items():
            x_ND = inputs[i].reshape(-1, inputs[i].shape[-1])
            noisy, clean = layer.route(x_ND, noisy=True), layer.route(x_ND, noisy=False)
            moved = (noisy.probs_NE - clean.probs_NE).abs().mean().item()
            good = moved > 0 if float(layer.noise) else moved == 0
            good = good and noisy.logits_NE.equal(clean.logits_NE)
            self._note('noise', {i: moved}, '.2e', lambda _, good=good: good)
            findings.append((good, f'Layer {i} mean |noisy-clean| = {moved:.2e}'))
        return [*findings, (same, 'evaluation is clean')]

    @torch.no_grad()
    def generation(self) -> list[Finding]:
        """20 tokens, greedily, through the cache; the last logits against those of one pass over the text."""
        prompt = 'The meaning of life is'
        tokens = self.tokenizer.encode(prompt)[: self.model.max_len // 2]
        new, cache = [], []
        x = torch.tensor([tokens], device=self.device)
        for _ in range(min(20, self.model.max_len - len(tokens))):
            logits, cache = self.model(x, cache)
            x = logits[:, -1].argmax(-1, keepdim=True)
            new.append(int(x))
        whole = self.model(torch.tensor([tokens + new[:-1]], device=self.device)).logits[:, -1:]
        apart = float((whole - logits).abs().max())
        self.notes |= {'prompt': prompt, 'generated': prompt + self.tokenizer.decode(new)}
        return [
            (apart < 1e-3, f'{len(new)} tokens, cached against uncached logits max diff = {apart:.2e}'),
            (True, repr(self.notes['generated'])),
        ]

    @torch.no_grad()
    def masking(self) -> list[Finding]:
        """Sequences of different lengths, padded, against each alone; padding counts in no loss or metric."""
        tokens = self.x[0].tolist()
        rows = [tokens[:n] for n in (len(tokens), len(tokens) * 2 // 3, len(tokens) // 3) if n]
        x = torch.full((len(rows), len(tokens)), self.tokenizer.pad_token, device=self.device)
        for row, ids in zip(x, rows):
            row[: len(ids)] = torch.tensor(ids)
        lengths = torch.tensor([[len(ids)] for ids in rows], device=self.device)
        mask = torch.arange(len(tokens), device=self.device) < lengths
        batch = self.model(x, mask=mask)
        alone = [self.model(torch.tensor([ids], device=self.device)).logits[0] for ids in rows]
        apart = max(float((logits[: len(one)] - one).abs().max()) for logits, one in zip(batch.logits, alone))
        other = torch.where(mask, x, self.tokenizer.n_vocab - 1 - x)
        unmoved = all(
            float((value - self.model(other, mask=mask).metrics[name]).abs().max()) < 1e-5
            for name, value in batch.metrics.items()
        )
        self.notes['masking'] = f'{apart:.2e}'
        return [
            (apart < MASKING, f'Attention masking preserved (max diff = {apart:.2e})'),
            (unmoved, 'padding counts in no loss'),
        ]

    @torch.no_grad()
    def coverage(self) -> list[Finding]:
        """Random tokens reach every expert."""
        length, E = min(128, self.model.max_len), self.model.num_experts
        g = torch.Generator().manual_seed(0)
        shape = max(16, 64 * E // length), length
        x = torch.randint(self.tokenizer.n_vocab, shape, generator=g).to(self.device)
        loads = {i: expert_load(routing.expert_ids_NK, E) for i, routing in self._routings(x).items()}
        return [
            (
                bool((load > 0).all()),
                f'Layer {i}: {int((load > 0).sum())} of {E} experts used, shares {_shares(load)}',
            )
            for i, load in loads.items()
        ]

    def _note(self, name: str, values: dict[int, float], form: str, good: Callable[[float], bool]) -> None:
        for i, value in values.items():
            self.figures[i][name] = Figure(format(value, form), good(value))

    @torch.no_grad()
    def _routings(self, x: Tensor) -> dict[int, Routing]:
        """What each layer decides about the tokens x."""
        self.model.trunk(input_ids=x, use_cache=False)
        return {i: layer.take_routing() for i, layer in self.layers.items()}


def _shares(load_E: Tensor) -> str:
    low, high = load_E.min().item(), load_E.max().item()
    return f'{low:.1%} to {high:.1%}'
