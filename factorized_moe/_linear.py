"""A linear map whose random start is that of one process, also where its weight is spread over ranks."""

import torch
from torch import nn

from factorized_moe.spread import agree_on_random_numbers, is_spread, like

__all__ = ["Linear"]


class Linear(nn.Linear):
    """`nn.Linear`, filled as a whole.

    Of a spread weight torch draws each rank's piece alone. On a CPU all ranks that were seeded alike would draw the
    same rows, so that a map to ``r`` numbers would have a rank of ``r`` over the number of ranks.
    """

    def reset_parameters(self) -> None:
        """As `nn.Linear`'s: of a spread weight the values that one process would have."""
        if not is_spread(self.weight) or self.weight.is_meta:
            super().reset_parameters()
            return
        agree_on_random_numbers(self.weight)
        biased, where, dtype = self.bias is not None, self.weight.device, self.weight.dtype
        drawn = nn.Linear(self.in_features, self.out_features, bias=biased, device=where, dtype=dtype)
        with torch.no_grad():
            self.weight.copy_(like(drawn.weight, self.weight))
            if biased:
                self.bias.copy_(like(drawn.bias, self.bias))
