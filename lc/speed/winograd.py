"""3x3 convolutions of a region by Winograd's minimal filtering, F(4x4, 3x3) (Lavin and Gray, CVPR 2016): a tile of 4x4 outputs takes 36
products of each input with each output channel instead of 144.

A tile is computed if one of its pixels is active, and reads zeros outside the region. With a dilation of d a tile lies on every d-th pixel.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lc.region import Region

MADE, READ = 4, 6  # outputs and inputs of a tile, along each axis
WIDE = 192  # channels from which the products saved are worth the transforms (results/NOTES.md)
INPUT = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
KERNEL = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def _both_axes(matrix: list[list[float]]) -> Tensor:
    along = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(along, along)


class Tiles:
    """The T tiles of a region. source: (36 T,) the row that each input reads, `missing`: those that read zero; place: (R,) where the value of
    each row lies among the (16 T,) outputs."""

    def __init__(self, region: Region, dilation: tuple[int, int]):
        starts, pads = [], []
        for size, d in zip(region.mask.shape[1:], dilation):
            blocks = -(-size // (MADE * d))
            starts.append((torch.arange(blocks, device=region.device)[:, None] * MADE * d + torch.arange(d, device=region.device)).flatten())
            pads = [d, blocks * MADE * d - size + d, *pads]
        slots = F.pad(region.slots(), pads, value=region.rows)

        def rows(steps: range) -> Tensor:
            y, x = (start + torch.tensor(steps, device=region.device)[:, None] * d for start, d in zip(starts, dilation))
            return slots[:, y[:, None, :, None], x[:, None, :]].permute(1, 2, 0, 3, 4).reshape(len(steps) ** 2, -1)

        made = rows(range(1, 1 + MADE))
        chosen = (made < region.rows).any(0)
        source, made = rows(range(READ))[:, chosen].flatten(), made[:, chosen].flatten()
        self.source, self.missing = source.clamp(max=max(region.rows - 1, 0)).int(), (source >= region.rows).nonzero().squeeze(1)
        place = torch.zeros(region.rows + 1, dtype=torch.int32, device=region.device)
        self.place = place.index_copy_(0, made, torch.arange(len(made), dtype=torch.int32, device=region.device))[:-1]


class Winograd:
    """A folded 3x3 convolution (padding = dilation, stride 1) on the rows of a region, and ReLU (or not); float32."""

    def __init__(self, conv: nn.Conv2d, relu: bool = True):
        self.bias, self.dilation, self.relu = conv.bias, conv.dilation, relu
        self.input, self.output = _both_axes(INPUT).float(), _both_axes(OUTPUT).float()
        self.weight = (_both_axes(KERNEL) @ conv.weight.double().permute(2, 3, 1, 0).flatten(0, 1).flatten(1)).float().view(READ**2, *conv.weight.shape[1::-1])

    def __call__(self, rows: Tensor, region: Region) -> Tensor:
        """(R, C) to (R, O)."""
        tiles = region.once(("tiles", self.dilation), lambda: Tiles(region, self.dilation))
        taps = rows.index_select(0, tiles.source).index_fill_(0, tiles.missing, 0).view(READ**2, -1)
        products = torch.bmm((self.input @ taps).view(READ**2, -1, rows.shape[1]), self.weight)
        made = (self.output @ products.flatten(1)).view(-1, products.shape[2]).index_select(0, tiles.place).add_(self.bias)
        return made.relu_() if self.relu else made
