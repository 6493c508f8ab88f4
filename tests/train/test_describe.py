"""What is told of a model before it trains."""

import pytest
import torch
from torch import nn

from lmplay.base.base_model import LMBase, LMOutput
from lmplay.errors import UserError
from lmplay.tokenizers import BytesTokenizer
from lmplay.train.describe import check_runnable


class Model(LMBase):
    """`features` and `fc`, and a forward that a user changed."""

    def __init__(self, change=lambda logits: logits, losses=None, own_losses=None):
        super().__init__('model', max_len=16)
        self.tokenizer = BytesTokenizer()
        self.embed = nn.Embedding(257, 8)
        self.fc = nn.Linear(8, 257)
        self.change, self.losses, self.own_losses = change, losses or {}, own_losses or {}

    def features(self, x, cache=None):
        return LMOutput(features=self.embed(x), losses=self.own_losses)

    def forward(self, x, cache=None):
        logits = self.change(self.fc(self.embed(x)))
        return LMOutput(logits=logits, losses=self.losses) if cache is None else (logits[:, -1:], cache)


def test_a_model_that_is_one():
    z = {'z': (torch.tensor(1.0), 0.1)}
    check_runnable(Model())
    check_runnable(Model(losses=z, own_losses=z))
    check_runnable(Model(lambda logits: logits * 0).to('meta'))  # nothing to compare there


@pytest.mark.parametrize('change', [lambda logits: logits * 0, lambda logits: 30 * torch.tanh(logits / 30)])
def test_a_change_in_forward_alone_would_be_ignored(change):
    with pytest.raises(
        UserError, match=r'Model.forward\(x\) and Model.fc\(Model.features\(x\)\) are not the same'
    ):
        check_runnable(Model(change))


def test_a_loss_that_forward_alone_reports_would_be_ignored():
    with pytest.raises(UserError, match=r'Model.forward reports losses that Model.features does not \(z\)'):
        check_runnable(Model(losses={'z': (torch.tensor(1.0), 0.1)}))


def test_a_model_without_parameters():
    class Empty(Model):
        def __init__(self):
            LMBase.__init__(self, 'empty', max_len=16)
            self.tokenizer = BytesTokenizer()

    with pytest.raises(UserError, match='Empty has no parameters'):
        check_runnable(Empty())
