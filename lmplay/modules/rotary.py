"""Rotary positions.

B sequences, H heads, T positions, K width of a head.
"""

import torch
from torch import Tensor, nn

from ..errors import UserError


class Rotary(nn.Module):
    """Turns pairs of numbers of queries and keys by angles that grow with their position (Su et al. 2021,
    section 3.2.2).

    Pair i is (i, i + K / 2), as in Llama's published weights, and turns by position * theta^(-2 i / K). One
    module serves all layers. Raises UserError where the width of a head is odd or theta not above 0.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, max_len: int, head_dim: int, *, theta: float = 10_000.0):
        super().__init__()
        if head_dim % 2 or theta <= 0:
            raise UserError(
                'Rotary positions need heads of an even width and a rope_theta above 0; '
                f'given: {head_dim} and {theta}.'
            )
        angle = torch.outer(
            torch.arange(max_len).float(), 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
        )
        self.register_buffer('cos', angle.cos(), persistent=False)
        self.register_buffer('sin', angle.sin(), persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x (B, H, T, K) of positions `start` and following, turned; in x's dtype."""
        cos, sin = (table[start : start + x.shape[2]] for table in (self.cos, self.sin))
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
