import pytest
import tiktoken
import torch
from torch import nn

from lmplay.base.base_model import BasicModelRunner, LMBase
from lmplay.errors import DataError, ExperimentError


class Tiny(LMBase):
    def __init__(self, max_len=8, width=4, **ignore):
        super().__init__('tiny', max_len=max_len, width=width)
        self.tokenizer = tiktoken.get_encoding('gpt2')
        self.embed = nn.Embedding(10, width)
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.gate = nn.Parameter(torch.ones(2, 2))
        self.gate.skip_weight_decay = True
        self.frozen = nn.Parameter(torch.ones(3, 3), requires_grad=False)


class Child(Tiny):
    def __init__(self, extra=1, **kwargs):
        super().__init__(**kwargs)


def test_parameters_are_checked_although_the_model_ignores_unknown_ones():
    with pytest.raises(ExperimentError, match="Did you mean 'width'"):
        BasicModelRunner(Tiny, widht=3)
    assert BasicModelRunner(Child, overrides=dict(width=2), max_len=4).parameters == {
        'extra': 1,
        'max_len': 4,
        'width': 2,
    }


@pytest.mark.parametrize(
    'name, value', [('max_len', 0), ('max_len', 1.5), ('width', 'x'), ('width', [1]), ('version', 3)]
)
def test_values_that_no_model_can_have_are_refused(name, value):
    with pytest.raises(ExperimentError, match=f'model parameter {name} must be'):
        BasicModelRunner(Tiny, **{name: value})


def test_what_is_asked_for_wins_over_the_version():
    model = BasicModelRunner(Tiny, overrides=dict(width=2, max_len=4), width=6).build()
    assert model.hyperparameters == {'max_len': 4, 'width': 6}


def test_weight_decay_spares_biases_norms_embeddings_and_marked_parameters():
    model = Tiny()
    decay, no_decay = model.param_groups(0.1)
    assert decay['weight_decay'] == 0.1 and no_decay['weight_decay'] == 0.0
    assert [p.shape for p in decay['params']] == [model.inner.weight.shape] and decay['params'][
        0
    ] is model.inner.weight
    spared = {id(p) for p in no_decay['params']}
    assert spared == {
        id(p) for p in (model.embed.weight, model.norm.weight, model.norm.bias, model.inner.bias, model.gate)
    }


def test_a_model_without_a_tokenizer_is_told_so():
    class NoTokenizer(LMBase):
        def __init__(self):
            super().__init__('x', max_len=4)

    with pytest.raises(ExperimentError, match='sets no tokenizer'):
        BasicModelRunner(NoTokenizer).build()
    with pytest.raises(DataError, match='lacks name'):
        Tiny().tokenizer = object()
