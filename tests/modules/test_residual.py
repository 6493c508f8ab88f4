import math

import pytest
import torch
from torch import nn

from lmplay.modules import LRAdd


@pytest.mark.parametrize('simple', [True, False])
@pytest.mark.parametrize('predict', [True, False])
def test_equals_the_formula_position_by_position(simple, predict):
    torch.manual_seed(0)
    D, add = 4, LRAdd(4, simple=simple, predict=predict, floor=0.3, ceil=1.7)
    for p in add.parameters():
        nn.init.normal_(p)
    x, y = torch.randn(2, 3, D), torch.randn(2, 3, D)
    out = add(x, y)
    for b in range(2):
        for t in range(3):
            both = [*x[b, t].tolist(), *y[b, t].tolist()]
            logits = add.weights(torch.tensor(both)) if predict else add.logits
            w = [0.3 + 1.4 / (1 + math.exp(-v)) for v in logits.tolist()]
            for d in range(D):
                alpha, beta = (w[0], w[1]) if simple else (w[d], w[D + d])
                expected = alpha * x[b, t, d] + beta * y[b, t, d]
                assert out[b, t, d].item() == pytest.approx(expected.item(), abs=1e-5)


def test_without_prediction_it_starts_between_its_bounds():
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(LRAdd(4, predict=False)(x, y), 0.95 * (x + y))
