"""Region convolution on a GPU: Triton kernels, and the cascade's forward in static buffers, so that one CUDA graph holds all of it.

How many pixels are active is known on the device only: buffers are sized for all of them, every kernel reads the count there, and
programs behind the last active pixel exit at once. Nothing waits for the host. One kernel gathers the window of each pixel,
multiplies, adds bias (and the residual) and applies ReLU, so a gathered copy never touches memory; it finds neighbours in the
region's slots as it goes, so there are no tables either. Under TRITON_INTERPRET=1 the same code runs on a CPU.

Shapes: N images, H W grid, P = N H W rows (room for every pixel), C inputs, O outputs, T taps.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from lc.cascade import LayerCascade
from lc.region import _pair
from lc.speed.fast import FastConv, FastMixed, FastPool, FastResidual, GraphCascade
from lc.speed.opponents import capture

INTERPRETED = triton.knobs.runtime.interpret
TILES = [triton.Config({"ROWS": rows, "COLS": cols, "DEPTH": depth}, num_warps=warps, num_stages=stages)  # a window's rows take two of the stages
         for rows, cols, depth, warps, stages in ((64, 64, 32, 4, 5), (64, 32, 64, 4, 5), (64, 64, 64, 4, 5), (128, 64, 64, 4, 5),
                                                  (64, 128, 64, 4, 5), (128, 128, 32, 8, 4), (128, 128, 64, 8, 5), (128, 256, 64, 8, 3))]


@triton.jit
def _source(index, slots, p, here, tap, height, width, KW: tl.constexpr, TAPS: tl.constexpr, dy: tl.constexpr, dx: tl.constexpr):
    """Row that tap `tap` of pixel p reads, whether it is a row at all, and whether it lies in the image."""
    at = tl.load(index + p, mask=here, other=0)
    y, x = at // width % height + (tap // KW - TAPS // KW // 2) * dy, at % width + (tap % KW - KW // 2) * dx
    inside = here & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    row = tl.load(slots + at + (tap // KW - TAPS // KW // 2) * dy * width + (tap % KW - KW // 2) * dx, mask=inside, other=-1)
    return row, inside & (row >= 0), inside


# for each layer the fastest tiles; in the interpreter, which has no clock to speak of, the first
@triton.autotune(TILES[:1] if INTERPRETED else TILES, key=["c_in", "c_out", "capacity", "TAPS"], restore_value=["out"])
@triton.jit
def _convolve(rows, weight, bias, out, index, slots, count, c_in, c_out, capacity, height, width, stride_in, stride_out, first, gap,
              KW: tl.constexpr, TAPS: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr, RELU: tl.constexpr, ADD: tl.constexpr,
              SPLIT: tl.constexpr, EIGHTS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
              ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr):
    active = tl.load(count)
    if tl.program_id(1) * ROWS >= active:
        return
    p, o = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * COLS + tl.arange(0, COLS)
    here, there = p < active, o < c_out
    total = tl.full((ROWS, COLS), 0.0, tl.float32)
    blocks = (c_in + DEPTH - 1) // DEPTH
    for step in range(TAPS * blocks):  # one loop over taps and channels, so that loads run ahead over both
        tap, c = step // blocks, step % blocks * DEPTH + tl.arange(0, DEPTH)
        row, known = p, here
        if TAPS > 1:
            row, known, _ = _source(index, slots, p, here, tap, height, width, KW, TAPS, DY, DX)
        a = tl.load(rows + row[:, None] * stride_in + c[None, :], mask=known[:, None] & (c < c_in)[None, :], other=0.0)
        b = tl.load(weight + (tap * c_in + c)[:, None] * c_out + o[None, :], mask=(c < c_in)[:, None] & there[None, :], other=0.0)
        if WIDEN:  # the interpreter of Triton 3.9 would multiply the bits of bfloat16
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    total += tl.load(bias + o, mask=there, other=0.0).to(tl.float32)[None, :]
    if SPLIT:
        o += tl.where(o < first, 0, gap)
        if EIGHTS:  # said, or every store is of one number
            o = tl.max_contiguous(tl.multiple_of(o, 8), 8)
    target = out + p[:, None] * stride_out + o[None, :]
    if ADD:
        total += tl.load(target, mask=here[:, None] & there[None, :], other=0.0).to(tl.float32)
    if RELU:
        total = tl.maximum(total, 0.0)
    tl.store(target, total.to(out.dtype.element_ty), mask=here[:, None] & there[None, :])


@triton.jit
def _pool(rows, out, index, slots, count, channels, height, width, stride_in, stride_out,
          KW: tl.constexpr, TAPS: tl.constexpr, STEP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    active = tl.load(count)
    if tl.program_id(1) * ROWS >= active:
        return
    p, c = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * COLS + tl.arange(0, COLS)
    here, there = p < active, c < channels
    best = tl.full((ROWS, COLS), float("-inf"), tl.float32)
    for tap in range(TAPS):
        row, known, inside = _source(index, slots, p, here, tap, height, width, KW, TAPS, STEP, STEP)
        value = tl.load(rows + row[:, None] * stride_in + c[None, :], mask=known[:, None] & there[None, :], other=0.0).to(tl.float32)
        best = tl.maximum(best, tl.where(inside[:, None], value, float("-inf")))
    tl.store(out + p[:, None] * stride_out + c[None, :], best.to(out.dtype.element_ty), mask=here[:, None] & there[None, :])


@dataclass(eq=False)
class DeviceRegion:
    """mask (N, H, W) bool; index (P,) int32: positions of the active pixels, in order, then zeros; slots (P,) int32: row of each
    position, -1 outside; count (1,) int32. All on the device; nothing depends on how many are active but the values."""
    mask: Tensor
    index: Tensor
    slots: Tensor
    count: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> "DeviceRegion":
        """Compaction by one prefix sum."""
        flat = mask.flatten()
        ends = flat.cumsum(0, dtype=torch.int32)
        slots = torch.where(flat, ends - 1, -1)
        places = torch.where(flat, slots, len(flat)).long()  # inactive pixels all write behind the end
        index = torch.zeros(len(flat) + 1, dtype=torch.int32, device=mask.device)
        index.scatter_(0, places, torch.arange(len(flat), dtype=torch.int32, device=mask.device))
        return cls(mask, index[:-1], slots, ends[-1:])

    def scatter(self, rows: Tensor) -> Tensor:
        """(N, O, H, W): rows (P, O) inside, zeros outside."""
        n, h, w = self.mask.shape
        values = rows.index_select(0, self.slots.clamp(min=0)).view(n, h, w, -1).permute(0, 3, 1, 2)
        return torch.where(self.mask[:, None], values, 0.0)


def _reached(rows: Tensor, out: Tensor, region: DeviceRegion) -> torch.Size:
    """The region's grid (N, H, W); ValueError where kernels, which count in 32 bits, could not reach all of the buffers."""
    if (most := len(rows) * max(rows.stride(0), out.stride(0))) >= 2**31:
        raise ValueError(f"a buffer of {most} numbers: kernels reach 2^31 - 1; give fewer or smaller images at a time")
    return region.mask.shape


def convolve(rows: Tensor, weight: Tensor, bias: Tensor, region: DeviceRegion, out: Tensor | None = None, kernel=(1, 1), dilation=(1, 1),
             relu: bool = True, add: bool = False, split: tuple[int, int] = (0, 0)) -> Tensor:
    """out (P, >= O; None: a new buffer) = relu(add * out + windows(rows) @ weight + bias) for the active rows; the others are not touched.

    rows (P, C), unit stride along C; weight (T C, O), contiguous: an (O, C, kh, kw) one permuted to (kh, kw, C, O); outputs from column split[0]
    on are written split[1] further right. float32 multiplies as cuDNN's convolutions do: in TF32, unless torch.backends.cudnn.allow_tf32 is off.
    """
    taps, outputs = kernel[0] * kernel[1], weight.shape[1]
    out = rows.new_empty(len(rows), outputs) if out is None else out
    _, height, width = _reached(rows, out, region)
    precision = "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"
    grid = lambda tile: (triton.cdiv(outputs, tile["COLS"]), triton.cdiv(len(rows), tile["ROWS"]))
    _convolve[grid](rows, weight, bias, out, region.index, region.slots, region.count, weight.shape[0] // taps, outputs,
                    triton.next_power_of_2(len(rows)), height, width, rows.stride(0), out.stride(0), *split, KW=kernel[1], TAPS=taps, DY=dilation[0],
                    DX=dilation[1], RELU=relu, ADD=add, SPLIT=split[1] > 0, EIGHTS=split[0] % 8 == split[1] % 8 == 0, PRECISION=precision,
                    WIDEN=INTERPRETED)
    return out


def pool(rows: Tensor, slots: Tensor, region: DeviceRegion, out: Tensor | None = None, kernel=(1, 1), dilation: int = 1) -> Tensor:
    """out (P, C; None: a new buffer) = max over the window of each pixel of the region in `rows`, which lie as `slots` say; pixels without a row
    count as zero, those off the image never win. A 1x1 window gathers the region's rows out of a map, or out of a wider region."""
    out = torch.empty_like(rows, memory_format=torch.contiguous_format) if out is None else out
    _, height, width = _reached(rows, out, region)
    grid = (triton.cdiv(rows.shape[1], 64), triton.cdiv(len(rows), 64))
    _pool[grid](rows, out, region.index, slots, region.count, rows.shape[1], height, width, rows.stride(0), out.stride(0),
                KW=kernel[1], TAPS=kernel[0] * kernel[1], STEP=dilation, ROWS=64, COLS=64)
    return out


def _ready(product, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return product.weight.t().to(dtype).contiguous(), product.bias.to(dtype)


def device_conv(part: FastConv, dtype: torch.dtype) -> Callable[..., Tensor]:
    """A lc.speed.fast.FastConv on device rows: (P, C), a region and, perhaps, a buffer to (P, O)."""
    weight, bias = _ready(part.product, dtype)
    return lambda rows, region, out=None: convolve(rows, weight, bias, region, out, *part.window, part.product.relu)


def device_pool(part: FastPool, dtype: torch.dtype) -> Callable[..., Tensor]:
    """A lc.speed.fast.FastPool on device rows: (P, C), a region and, perhaps, a buffer to (P, C)."""
    return lambda rows, region, out=None: pool(rows, region.slots, region, out, _pair(part.pool.kernel_size), part.pool.dilation)


class DeviceMixed:
    """A lc.speed.fast.FastMixed (or FastResidual) on device rows. Its buffer is [branches of one layer | ends of the others | pool | their
    entries], so that every product writes where the concatenation wants it; branches of one layer must come first."""

    def __init__(self, part: FastMixed, dtype: torch.dtype):
        chained = [len(chain) > 0 for chain in part.chains]
        if chained != sorted(chained):
            raise ValueError("a branch of one layer behind a longer one: run this network through lc.speed.fast")
        self.pool, self.entry = part.pool and device_pool(part.pool, dtype), _ready(part.entry, dtype)
        self.chains = [(width, chain[-1].conv.out_channels, [device_conv(conv, dtype) for conv in chain])
                       for width, chain in zip(part.widths, part.chains) if len(chain)]
        self.direct = sum(part.widths) - sum(width for width, *_ in self.chains)
        self.ends = self.direct + sum(outputs for _, outputs, _ in self.chains)
        self.width = self.ends + (self.entry[0].shape[0] if self.pool else 0)
        residual = isinstance(part, FastResidual)
        self.project, self.relu = (_ready(part.project, dtype), part.relu) if residual else (None, None)
        self.shortcut = _ready(part.shortcut, dtype) if residual and part.shortcut else None

    def __call__(self, rows: Tensor, region: DeviceRegion) -> Tensor:
        """(P, C) to (P, O); a residual block whose shortcut is its input works in place."""
        buffer = rows.new_empty(len(rows), self.width + sum(width for width, *_ in self.chains))
        convolve(rows, *self.entry, region, buffer, split=(self.direct, self.width - self.direct))
        start, end = self.width, self.direct
        for width, outputs, (*convs, last) in self.chains:
            part, start = buffer[:, start:start + width], start + width
            for conv in convs:
                part = conv(part, region)
            last(part, region, buffer[:, end:end + outputs])
            end += outputs
        if self.pool is not None:
            self.pool(rows, region, buffer[:, self.ends:self.width])
        if self.project is None:
            return buffer[:, :self.width]
        if self.shortcut is not None:
            rows = convolve(rows, *self.shortcut, region, relu=False)
        return convolve(buffer[:, :self.width], *self.project, region, rows, relu=self.relu, add=True)


DEVICE = {FastConv: device_conv, FastPool: device_pool, FastMixed: DeviceMixed, FastResidual: DeviceMixed}


class DeviceCascade(GraphCascade):
    """A cascade for inference in which no step depends on the host: on a GPU one CUDA graph, whose output the next call overwrites. compiled: stage 1
    goes through torch.compile, anew for each size of image. ValueError for what has no kernel."""

    def __init__(self, model: LayerCascade, dtype: torch.dtype = torch.float32, compiled: bool = False):
        if model.reading != "zero":
            raise ValueError(f"only zeros outside the region, got reading {model.reading!r}: call the cascade itself")
        super().__init__(model)
        self.first.to(dtype=dtype, memory_format=torch.channels_last)
        for part in self.first if compiled else ():
            part.compile(mode="max-autotune-no-cudagraphs", dynamic=False)
        self.dtype, self.later = dtype, [[[DEVICE[type(part)](part, dtype) for part in parts] for parts in both] for both in self.later]

    def graph(self, later: list, image: Tensor, *values: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
        """`steps` as one CUDA graph."""
        if image.is_cuda:  # tiles are chosen with every pixel active
            self.steps(later, image, torch.full((), math.inf, device=image.device))
        return capture(partial(self.steps, later), image, *values)

    def steps(self, later: list, image: Tensor, rho: Tensor, *masks: Tensor) -> tuple[Tensor, Tensor]:
        """What a graph holds: (N, 3, H, W), () and (N, h, w) each to log_probs (N, K, h, w) and handed (S, N, h, w)."""
        x = self.first[0](image.to(self.dtype))
        log_probs = self.first[1](x).float().log_softmax(1)
        handed = [torch.ones_like(log_probs[:, 0], dtype=torch.bool)]
        rows, slots = x.permute(0, 2, 3, 1).flatten(0, 2), torch.arange(handed[0].numel(), dtype=torch.int32, device=x.device)
        for number, (stage, head) in enumerate(later):
            open_ = handed[-1] & (masks[number] if masks else log_probs.amax(1).exp() < rho)
            region = DeviceRegion.of(F.max_pool2d(open_[:, None].float(), 2 * self.halo + 1, 1, self.halo)[:, 0] > 0 if self.halo else open_)
            rows = pool(rows, slots, region)
            for part in stage:
                rows = part(rows, region)
            logits = rows
            for conv in head:
                logits = conv(logits, region)
            log_probs = torch.where(open_[:, None], region.scatter(logits).float().log_softmax(1), log_probs)
            handed, slots = [*handed, open_], region.slots
        return log_probs, torch.stack(handed)
