"""The role of a parameter follows from its module and its use, whatever it is called."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lmplay.base.base_model import LMBase
from lmplay.base.roles import parameter_roles
from lmplay.tokenizers import BytesTokenizer
from tests.helpers import tiny

D, E, V = 8, 4, 257


class Odd(LMBase):
    """Parts with names that say nothing. V is the vocabulary."""

    def __init__(self):
        super().__init__('odd', max_len=12)
        self.tokenizer = BytesTokenizer()
        self.words = nn.Embedding(V, D)
        self.places = nn.Parameter(torch.randn(12, D))
        self.embed_to_hidden = nn.Parameter(torch.randn(D, D))
        self.filter = nn.Conv1d(D, D, 1)
        self.low, self.high = nn.Parameter(torch.randn(D, 2)), nn.Parameter(torch.randn(2, D))
        self.router = nn.Linear(D, E)
        self.up, self.up_bias = nn.Parameter(torch.randn(E, D, D)), nn.Parameter(torch.randn(E, D))
        self.picked = nn.Parameter(torch.randn(E, D, D))
        self.gain = nn.Parameter(torch.ones(2, D))
        self.gate = nn.Linear(D, 1)
        self.rarely = nn.ModuleList(nn.Linear(D, D) for _ in range(2))
        self.out = nn.Linear(D, V)
        self.second = nn.Linear(D, V)
        self.spare = nn.Parameter(torch.randn(D, D))

    def forward(self, x):
        h = self.words(x) + self.places[: x.shape[1]]
        h = h + h @ (self.embed_to_hidden * 0.5) + h @ (self.low @ self.high)
        h = h + self.filter(h.transpose(1, 2)).transpose(1, 2) * self.gate(h).sigmoid()
        shares = self.router(h).softmax(-1)
        all_of_them = torch.einsum('btd,edf->btef', h, self.up) + self.up_bias
        h = h + (shares[..., None] * all_of_them).sum(-2)
        chosen = self.picked[shares.argmax(-1)]
        h = h + torch.einsum('btd,btdf->btf', h, chosen.to(h.dtype)) * self.gain[0] + self.gain[1]
        if x.sum() < 0:
            h = self.rarely[0](h)
        self.second(h)  # for a loss of its own
        return torch.tanh(self.out(h) / 30) * 30


EXPECTED = {
    'embedding': {'words.weight'},
    'table': {'places', 'up_bias', 'gain'},
    'matrix': {'embed_to_hidden', 'low', 'high', 'router.weight', 'up', 'picked'}
    | {f'rarely.{i}.weight' for i in range(2)},
    'kernel': {'filter.weight'},
    'head': {'out.weight', 'second.weight'},
    'unknown': {'spare'},
}


def by_role(model):
    found = {}
    for name, role in parameter_roles(model).items():
        found.setdefault(role, set()).add(name)
    return found


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_roles_follow_from_module_and_use(device):
    found = by_role(tiny('gpt2ish').to(device))
    assert (found['embedding'], found['head']) == ({'tok_embed.weight'}, {'fc.weight'})
    assert found['table'] == {'pos_embed'}
    assert found['matrix'] == {f'blocks.0.{n}.weight' for n in ('attn.qkv', 'attn.proj', 'ff.0', 'ff.2')}


def test_names_decide_nothing():
    found = by_role(Odd())
    vectors = found.pop('vector')
    assert found == EXPECTED
    assert {'gate.weight', 'out.bias'} <= vectors


class Tied(Odd):
    """The head is the table of embeddings: the same module's weight, or a bare parameter looked up."""

    def __init__(self, bare):
        super().__init__()
        self.bare = nn.Parameter(torch.randn(V, D)) if bare else None
        self.out = nn.Linear(D, V)
        if not bare:
            self.out.weight = self.words.weight

    def forward(self, x):
        if self.bare is None:
            return self.out(self.words(x))
        return F.linear(self.bare[x] @ self.embed_to_hidden, self.bare)


@pytest.mark.parametrize('bare, name', [(False, 'words.weight'), (True, 'bare')])
def test_what_is_tied_to_an_embedding_is_one(bare, name):
    assert parameter_roles(Tied(bare))[name] == 'embedding'


def test_experts_of_a_routed_model_are_matrices_and_their_biases_are_not():
    roles = parameter_roles(tiny('gpt2_moe', moe_layers='all'))
    experts = {name.rsplit('.', 1)[1]: role for name, role in roles.items() if 'mlp' in name}
    assert (experts['w1'], experts['w2'], experts['b1'], experts['b2']) == (
        'matrix',
        'matrix',
        'table',
        'table',
    )


def test_looking_changes_nothing():
    model = Odd().train()
    model.words.eval()
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    parameter_roles(model)
    assert model.training and not model.words.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Raising(Odd):
    def forward(self, x):
        raise RuntimeError('not today')


def test_where_use_cannot_be_seen_module_types_decide(caplog):
    found = by_role(Raising())
    assert found['embedding'] == {'words.weight'} and 'router.weight' in found['matrix']
    assert found['head'] == {'out.weight', 'second.weight'} and 'up' in found['unknown']
    assert 'not today' in caplog.text


def test_decay_spares_tables_whatever_they_are_called():
    model = Odd()
    names = {id(p): name for name, p in model.named_parameters()}
    decay, no_decay = ({names[id(p)] for p in g['params']} for g in model.param_groups(0.1))
    assert {'places', 'up_bias', 'gain', 'words.weight', 'out.bias'} <= no_decay
    assert {'embed_to_hidden', 'up', 'out.weight', 'spare', 'filter.weight'} <= decay
