"""Residual connections whose two sides are weighted.

(..., D): any number of positions, D width of the model.
"""

import torch
from torch import Tensor, nn


class LRAdd(nn.Module):
    """alpha x + beta y with weights in [floor, ceil], learned or predicted from x and y.

    Learned Residual Add of the original lmplay (jmward01/lmplay, lmplay/modules/general.py).

    simple   one alpha and one beta instead of one for each of the D entries
    predict  by a linear layer from x and y together, for each position; otherwise they are parameters
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        simple: bool = False,
        predict: bool = True,
        floor: float = 0.4,
        ceil: float = 1.5,
    ):
        super().__init__()
        self.floor, self.ceil, self.predict = floor, ceil, predict
        outputs = 2 if simple else 2 * embed_dim
        if predict:
            self.weights = nn.Linear(2 * embed_dim, outputs)
        else:
            self.logits = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x the residual stream, y what is added to it: (..., D) each, to (..., D)."""
        logits = self.weights(torch.cat([x, y], dim=-1)) if self.predict else self.logits
        alpha, beta = (self.floor + (self.ceil - self.floor) * logits.sigmoid()).chunk(2, dim=-1)
        return alpha * x + beta * y
