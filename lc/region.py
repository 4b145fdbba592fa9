"""Region: which pixels of a batch are computed, and where their neighbours are.

Shapes here and below: N images, H W grid of a stage, P active pixels of the whole batch, R rows that hold them, T taps of a kernel, C channels.
A region does not change inside a stage, so its index tables are built once and shared by all layers of the stage.
"""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair

WIDTH = 16  # of the image that the rows of a padded region form; oneDNN's 1x1 convolutions are faster on it than matrix products (results/NOTES.md)
SIZES = 64  # of padded regions between a power of two and the next: oneDNN prepares itself anew for each, but rows behind P cost time too


class Region:
    """The set M of Sec. 3.2, for a whole batch.

    mask: (N, H, W) bool, True inside M. Empty, full and one-pixel regions are ordinary. padded: R is P rounded up to a multiple of WIDTH, by 2 % at
    most where P is large, so that the rows of a region form an image, and not every size of it occurs; else R = P. Rows behind P hold anything.
    """

    def __init__(self, mask: Tensor, padded: bool = False):
        if mask.dim() != 3 or mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool of shape (N, H, W), got {mask.dtype} {tuple(mask.shape)}")
        self.mask, self.device = mask, mask.device
        self.index = mask.flatten().nonzero().squeeze(1)  # (P,) positions in the flattened N*H*W grid
        unit = max(WIDTH, (1 << len(self).bit_length() >> 1) // SIZES) if padded else 1
        self.padded, self.rows = padded, -(-len(self) // unit) * unit
        self._made: dict[tuple, object] = {}

    def __len__(self) -> int:
        return self.index.numel()

    def once(self, key: tuple, make: Callable):
        """What `make` gives, made at the first call with this key and kept with the region."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def slots(self) -> Tensor:
        """(N, H, W) long: the row of each pixel in the compact tensor, R where the pixel is outside M."""
        return self.once(("slots",), self._number)

    def _number(self) -> Tensor:
        slots = torch.full((self.mask.numel(),), self.rows, dtype=torch.long, device=self.device)
        slots[self.index] = torch.arange(len(self), device=self.device)
        return slots.view(self.mask.shape)

    def table(self, kernel: int | tuple[int, int], dilation: int | tuple[int, int] = 1, dense: bool = False) -> Tensor:
        """(R, T) long: where tap t of the window round active pixel p reads, taps in row-major order.

        Compact (the default): a row number, R where the neighbour is outside M or the image. dense=True: a position in the flattened N*H*W grid,
        N*H*W where it is outside the image.
        """
        key = (_pair(kernel), _pair(dilation), dense)
        return self.once(key, lambda: self._build_table(*key))

    def _build_table(self, kernel: tuple[int, int], dilation: tuple[int, int], dense: bool) -> Tensor:
        (kh, kw), (dh, dw) = kernel, dilation
        ph, pw = dh * (kh // 2), dw * (kw // 2)
        n, h, w = self.mask.shape
        grid = torch.arange(n * h * w, device=self.device).view(n, h, w) if dense else self.slots()
        outside = n * h * w if dense else self.rows
        padded = F.pad(grid, (pw, pw, ph, ph), value=outside)  # (N, H + 2 ph, W + 2 pw)
        image, row, col = self.index // (h * w), self.index // w % h, self.index % w
        corner = (image * padded.shape[1] + row) * padded.shape[2] + col  # top left of each window, (P,)
        taps = (torch.arange(kh, device=self.device) * dh * padded.shape[2])[:, None] + torch.arange(kw, device=self.device) * dw
        return F.pad(padded.flatten()[corner[:, None] + taps.flatten()], (0, 0, 0, self.rows - len(self)), value=outside)

    def gather(self, dense: Tensor) -> Tensor:
        """Rows (R, C) of a dense map (N, C, H, W); those behind P repeat its first cell."""
        return dense.permute(0, 2, 3, 1).reshape(-1, dense.shape[1]).index_select(0, self.fill(self.index))

    def fill(self, values: Tensor) -> Tensor:
        """(P, ...) -> (R, ...), zeros behind."""
        return F.pad(values, (0, 0) * (values.dim() - 1) + (0, self.rows - len(self))) if self.rows > len(self) else values

    def scatter(self, rows: Tensor, outside: Tensor | None = None) -> Tensor:
        """Dense map (N, C, H, W) that holds rows (R, C) inside M and `outside` (zeros by default) elsewhere."""
        n, h, w = self.mask.shape
        base = (rows.new_zeros(n, h, w, rows.shape[1]) if outside is None else
                outside.to(rows.dtype).permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format))
        base.flatten(0, 2).index_copy_(0, self.index, rows[:len(self)])
        return base.permute(0, 3, 1, 2)

    def rows_in(self, other: "Region") -> Tensor:
        """(R,) row numbers of this region's pixels in `other`, which must contain it; those behind P are 0."""
        rows = other.slots().flatten().index_select(0, self.index)
        if len(self) and int(rows.max()) == other.rows:
            raise ValueError("this region is not inside the other: a later stage can only shrink the region")
        return self.fill(rows)

    def dilate(self, pixels: int) -> "Region":
        """The region grown by a halo of `pixels` (a square window); the same object when pixels is 0, ValueError below."""
        if pixels < 0:
            raise ValueError(f"a region can only grow: pixels must be 0 or more, got {pixels}")
        if pixels == 0:
            return self
        grown = F.max_pool2d(self.mask[:, None].float(), 2 * pixels + 1, stride=1, padding=pixels)
        return Region(grown[:, 0] > 0, self.padded)
