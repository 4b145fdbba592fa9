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


def _both_axes(along: Tensor, tiles: Tensor) -> Tensor:
    """along (m, n) applied to both axes of tiles (n n, T): (m m, T)."""
    m, n = along.shape
    return (along @ (along @ tiles.view(n, -1)).view(m, n, -1)).view(m * m, -1)


class Reads:
    """What windows read of a region. source: (T,) a row for each tap, R and above for zero. Zeros are read from a row behind P where there is one."""

    def __init__(self, source: Tensor, region: Region):
        self.source = source.clamp(max=max(region.rows - 1, 0))
        self.missing = None if region.rows > len(region) else (source >= region.rows).nonzero().squeeze(1)

    def __call__(self, rows: Tensor) -> Tensor:
        """(R, C) to (T, C). Where there are rows behind P, the last one becomes zero in place."""
        if self.missing is not None:
            return rows.index_select(0, self.source).index_fill_(0, self.missing, 0)
        rows[-1].zero_()
        return rows.index_select(0, self.source)


class Tiles:
    """The T tiles of a region. taps: what their (36 T,) inputs read; place: (R,) where the value of each row lies among the (16 T,) outputs."""

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
        self.taps, made = Reads(rows(range(READ))[:, chosen].flatten(), region), made[:, chosen].flatten()
        place = torch.zeros(region.rows + 1, dtype=torch.long, device=region.device)
        self.place = place.index_copy_(0, made, torch.arange(len(made), device=region.device))[:-1]


class Winograd:
    """A folded 3x3 convolution (padding = dilation, stride 1) on the rows of a region, and ReLU (or not); float32."""

    def __init__(self, conv: nn.Conv2d, relu: bool = True):
        self.bias, self.dilation, self.relu = conv.bias, conv.dilation, relu
        self.input, self.output = torch.tensor(INPUT).float(), torch.tensor(OUTPUT).float()
        kernel = torch.tensor(KERNEL, dtype=torch.float64)
        self.weight = _both_axes(kernel, conv.weight.double().permute(2, 3, 1, 0).reshape(9, -1)).float().view(READ**2, *conv.weight.shape[1::-1])

    def __call__(self, rows: Tensor, region: Region) -> Tensor:
        """(R, C) to (R, O)."""
        tiles = region.once(("tiles", self.dilation), lambda: Tiles(region, self.dilation))
        taps = tiles.taps(rows).view(READ**2, -1)
        products = torch.bmm(_both_axes(self.input, taps).view(READ**2, -1, rows.shape[1]), self.weight)
        made = _both_axes(self.output, products).view(-1, products.shape[2]).index_select(0, tiles.place).add_(self.bias)
        return made.relu_() if self.relu else made
