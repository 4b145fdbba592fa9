"""Region convolution (Sec. 3.2, Fig. 3b and 3c): compute the pixels of M, and only those.

The contract. Let M be the region, x the input map, y the output.
- y(p) for p in M is the ordinary, "same"-padded, stride-1 convolution (or max pooling) at p.
- y is zero outside M ("the values of the other region are directly set as zeros"). Every layer keeps this: batch norm
  and activations act on the pixels of M only. In a residual sum I + conv(I) the outside is therefore copied from I.
- What a window that reaches over the border of M reads there is where the paper is silent (the layer that its authors released can do either, by
  its settings). Two readings of it, and two that later work suggests (for the study of page Why: they cost time outside M):
  "zero"          neighbours outside M count as zero. The field calls this a submanifold sparse convolution.
  "dense"         neighbours outside M are read from the map that entered the stage, as long as residual sums carry it along;
                  behind any convolution the outside is zero again, so the readings differ only for a stage's first wide layer
                  and for pooling. In IRNet-B and -C every branch starts with a 1x1 convolution and both readings agree.
  "features"      as "dense", but a 1x1 convolution that reads this map is computed outside M too, with the batch norm and activation
                  behind it: the wide window next in the branch sees what the stage before would have it see; behind dropout (heads), zeros.
  "interpolated"  every wide window and pool finds the mean of the nearby pixels of M there (`interpolated`).

The compact form writes the P pixels of the whole batch as an image of R = h w >= P pixels (1, C, h, w), channels last, i.e. an R x C matrix
(lc.region.Region says what R is; what lies behind P is anything, and not used). On it 1x1 convolutions are the ordinary ones, as are batch norm,
activations, sums, concatenation and dropout. Wider windows gather their neighbours through the region's table and multiply, or, in training,
are filtered (lc.winograd). `RegionTensor`
carries the pixels through unmodified modules: a stage given a tensor is dense, given a RegionTensor it computes those pixels only.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from lc import winograd
from lc.region import WIDTH, Region, _pair

READINGS = ("zero", "dense", "features", "interpolated")
REACH = 3  # cells, of `interpolated`: windows of 7x7


def region_conv2d_reference(x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None = None, dilation=1,
                            reading: str = "zero") -> Tensor:
    """The contract in its plainest form: convolve everything, then mask. Slow; the yardstick of every faster form.

    x: (N, C, H, W); mask: (N, H, W) bool; weight: (O, C, kh, kw), kh and kw odd. Returns (N, O, H, W).
    """
    inside = mask[:, None].to(x.dtype)
    padding = [d * (k // 2) for k, d in zip(weight.shape[2:], _pair(dilation))]
    read = x * inside if reading == "zero" else interpolated(x, mask) if reading == "interpolated" else x
    return F.conv2d(read, weight, bias, padding=padding, dilation=dilation) * inside


def interpolated(x: Tensor, mask: Tensor) -> Tensor:
    """x inside M; outside, the mean of M's pixels up to REACH rows and columns away, weighted by exp(-distance^2 / 2); zero if there are none.

    x: (N, C, H, W); mask: (N, H, W) bool. After Xie et al. (ECCV 2020) and ADP-C (Liu et al., ICLR 2022), whose 7x7 kernel this is with a fixed
    width, and divided by the weights of the pixels that are in M.
    """
    inside, channels = mask[:, None].to(x.dtype), x.shape[1] + 1
    sums, near = torch.cat([x * inside, inside], 1), torch.exp(torch.arange(-REACH, REACH + 1, device=x.device).to(x.dtype) ** 2 / -2)
    for shape, padding in (((-1, 1), (REACH, 0)), ((1, -1), (0, REACH))):
        sums = F.conv2d(sums, near.view(1, 1, *shape).expand(channels, -1, -1, -1), padding=padding, groups=channels)
    return torch.where(mask[:, None], x, sums[:, :-1] / sums[:, -1:].clamp(min=1e-6))


class _CompactConv(torch.autograd.Function):
    """Gather (unless the kernel is 1x1: no table) and multiply. The neighbour relation is symmetric, so the backward pass is again that."""

    @staticmethod
    def forward(ctx, rows: Tensor, table: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, table, weight)
        return _product(windows(rows, table), weight.permute(0, 2, 3, 1).flatten(1), bias)

    @staticmethod
    def backward(ctx, grad: Tensor):
        rows, table, weight = ctx.saved_tensors
        grad_rows = grad_weight = None
        if ctx.needs_input_grad[0]:  # tap t of p reads q  <=>  tap T-1-t of q reads p
            taken = windows(grad, None if table is None else table.flip(1))
            grad_rows = _product_back(taken, weight.permute(2, 3, 0, 1).flatten(0, 2))
        if ctx.needs_input_grad[2]:
            taken = windows(rows, table)  # the wider side comes first: MKL's products are faster this way round
            taps = grad.t() @ taken if grad.shape[1] > taken.shape[1] else (taken.t() @ grad).t()  # (O, T*C)
            grad_weight = taps.view(-1, *weight.shape[2:], weight.shape[1]).permute(0, 3, 1, 2)
        return grad_rows, None, grad_weight, grad.sum(0) if ctx.needs_input_grad[3] else None


def windows(rows: Tensor, table: Tensor | None) -> Tensor:
    """(R, T*C): what each row's window reads; the number behind the last row, where there is none to read, gives zeros."""
    return rows if table is None else F.pad(rows, (0, 0, 0, 1)).index_select(0, table.flatten()).view(len(table), table.shape[1] * rows.shape[1])


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows (R, K) times weight (O, K), plus bias (O,) -> (R, O): on a CPU as a 1x1 convolution of an image, where R allows one."""
    if not _forms_image(rows):
        return F.linear(rows, weight, bias)
    return _as_rows(F.conv2d(_as_image(rows), weight[:, :, None, None], bias))


def _product_back(rows: Tensor, weight: Tensor) -> Tensor:
    """rows (R, O) times weight (O, K) -> (R, K), in the same way: as the gradient of a 1x1 convolution, which spares a transposed weight."""
    if not _forms_image(rows):
        return rows @ weight
    image = _as_image(rows)
    return _as_rows(conv2d_input((1, weight.shape[1], *image.shape[2:]), weight[:, None, None].permute(0, 3, 1, 2), image))


def _forms_image(rows: Tensor) -> bool:
    return rows.device.type == "cpu" and len(rows) > 0 and len(rows) % WIDTH == 0


def region_conv2d(x: "RegionTensor", weight: Tensor, bias: Tensor | None = None, dilation=1) -> "RegionTensor":
    """Compact region convolution; weight (O, C, kh, kw) with odd kh, kw. Agrees with `region_conv2d_reference`."""
    rows = x.rows
    if torch.is_autocast_enabled(rows.device.type):
        dtype = torch.get_autocast_dtype(rows.device.type)
        rows, weight, bias = rows.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    kernel = tuple(weight.shape[2:])
    if kernel == (1, 1) or x.reads_zeros:
        out = x.with_rows(_convolved(rows, x.region, weight, bias, _pair(dilation)))
        carried = kernel == (1, 1) and x.reading == "features"
        return replace(out, outside=F.conv2d(x.outside, weight, bias), reading="dense") if carried else out
    taken = windows(_as_rows(x.read(rows)), x.region.table(kernel, dilation, dense=True))
    return x.with_rows(_product(taken, weight.permute(0, 2, 3, 1).flatten(1), bias))


def _convolved(rows: Tensor, region: Region, weight: Tensor, bias: Tensor | None, dilation: tuple[int, int]) -> Tensor:
    """(R, C) to (R, O): filtered where that saves time in training; without gradients as plainly as what faster forms are compared with should be."""
    kernel, learns = tuple(weight.shape[2:]), torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad)
    if learns and winograd.suits(weight) and (tiles := winograd.Tiles.of(region, kernel, dilation, rows.dtype)) is not None:
        made = winograd.Filtered.apply(rows, weight, tiles)
        return made if bias is None else made + bias
    return _CompactConv.apply(rows, None if kernel == (1, 1) else region.table(kernel, dilation), weight, bias)


@dataclass(eq=False)
class RegionTensor:
    """The pixels of a region, standing in for the map (N, C, H, W) they were cut from.

    values: (1, C, h, w), channels last; region: where they lie; outside: (N, C, H, W) map read outside M, None for zeros;
    reading: how the next layers treat the outside.
    """
    values: Tensor
    region: Region
    outside: Tensor | None = None
    reading: str = "zero"

    @classmethod
    def select(cls, x: "Tensor | RegionTensor", region: Region, reading: str = "zero") -> "RegionTensor":
        """Cut `region` out of a dense map, or out of a RegionTensor whose region contains it; ValueError if their grids differ."""
        if (x.shape[0], *x.shape[2:]) != region.mask.shape:
            raise ValueError(f"a region must have the map's grid (N, H, W): "
                             f"the map is {tuple(x.shape)}, the region's mask {tuple(region.mask.shape)}")
        if reading not in READINGS:
            raise ValueError(f"reading must be one of {READINGS}, got {reading!r}")
        carried = reading in ("dense", "features")
        if isinstance(x, RegionTensor):
            rows, outside = x.rows.index_select(0, region.rows_in(x.region)), x.dense() if carried else None
        else:
            rows, outside = region.gather(x), x if carried else None
        return cls(_as_image(rows), region, outside, reading)

    @property
    def rows(self) -> Tensor:
        """(R, C) view of the values."""
        return _as_rows(self.values)

    @property
    def shape(self) -> torch.Size:
        n, h, w = self.region.mask.shape
        return torch.Size((n, self.values.shape[1], h, w))

    ndim = 4
    device = property(lambda self: self.values.device)
    dtype = property(lambda self: self.values.dtype)

    def size(self, dim: int | None = None):
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return 4

    def dense(self) -> Tensor:
        """(N, C, H, W): the values inside M; outside zeros, or what the dense reading carries there."""
        return self.region.scatter(self.rows, self.outside)

    def with_rows(self, rows: Tensor) -> "RegionTensor":
        """The output (R, O) of a layer on the same region; its outside is zero, or to be interpolated."""
        return RegionTensor(_as_image(rows), self.region, None, self.reading if self.reading == "interpolated" else "zero")

    @property
    def reads_zeros(self) -> bool:
        """Whether windows find zeros outside M."""
        return self.outside is None and self.reading != "interpolated"

    def read(self, rows: Tensor) -> Tensor:
        """(N, C, H, W): the map that windows read, with `rows` inside M."""
        dense = self.region.scatter(rows, self.outside)
        return interpolated(dense, self.region.mask) if self.reading == "interpolated" else dense

    __add__ = __radd__ = lambda self, other: torch.add(self, other)
    __mul__ = __rmul__ = lambda self, other: torch.mul(self, other)
    __sub__ = lambda self, other: torch.sub(self, other)
    __truediv__ = lambda self, other: torch.div(self, other)
    __neg__ = lambda self: torch.mul(self, -1)

    @classmethod
    def __torch_function__(cls, func: Callable, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _WINDOWED:
            return _WINDOWED[func](*args, **kwargs)
        if func not in _POINTWISE:
            name = getattr(func, "__name__", func)
            raise NotImplementedError(
                f"{name} on a RegionTensor: only convolutions, max pooling and operations that treat each pixel by itself "
                "work on a region; do this before the first cut between stages, or on the dense map (.dense())")
        return _pointwise(func, args, kwargs)


def _as_image(rows: Tensor) -> Tensor:
    width = len(rows) if len(rows) % WIDTH else WIDTH
    return rows.view(1, len(rows) // width, width, rows.shape[1]).permute(0, 3, 1, 2)  # memory stays R x C, which is channels last


def _as_rows(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1).flatten(0, 2)


def _conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> RegionTensor:
    kernel, dilation = tuple(weight.shape[2:]), _pair(dilation)
    same = tuple(d * (k // 2) for k, d in zip(kernel, dilation))
    if _pair(stride) != (1, 1) or groups != 1 or (padding != "same" and _pair(padding) != same) or not all(k % 2 for k in kernel):
        raise ValueError(f"a region convolution keeps the grid: stride 1, odd kernel, padding {same}, one group; got "
                         f"kernel {kernel}, stride {stride}, padding {padding}, groups {groups}. Cut the stage after this layer")
    return region_conv2d(input, weight, bias, dilation)


def _max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False) -> RegionTensor:
    """Over M, on the map that windows read (a pass over it costs less than a gather for each tap): neighbours outside the image never win, those
    outside M count as the reading says."""
    kernel, dilation = _pair(kernel_size), _pair(dilation)
    below, beside = same = tuple(d * (k // 2) for k, d in zip(kernel, dilation))
    if _pair(stride or kernel) != (1, 1) or _pair(padding) != same or return_indices or not all(k % 2 for k in kernel):
        raise ValueError(f"max pooling on a region keeps the grid: stride 1, odd kernel, padding {same}; got kernel {kernel}, "
                         f"stride {stride}, padding {padding}. Cut the stage after this layer")
    padded = F.pad(input.read(input.rows), (beside, beside, below, below), value=float("-inf"))  # PyTorch's own stops at half of an undilated window
    return input.with_rows(input.region.gather(F.max_pool2d(padded, kernel, 1, 0, dilation)))


def _batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5) -> RegionTensor:
    training = training and len(input.region) > 1  # statistics of fewer than two pixels do not exist
    rest = (running_mean, running_var, weight, bias, training, momentum, eps)
    if training and input.region.padded:  # the statistics are those of the region's own pixels
        out = input.with_rows(input.region.fill(F.batch_norm(input.rows[:len(input.region)], *rest)))
    else:
        out = replace(input, values=F.batch_norm(input.values, *rest), outside=None)
    return out if input.outside is None else replace(out, outside=F.batch_norm(input.outside, *rest[:4], False, 0.0, eps))


def _dropout(input, p=0.5, training=True, inplace=False) -> RegionTensor:
    """Random numbers are drawn for the region's own pixels only, so that padding changes nothing."""
    kept = F.dropout(_as_image(input.rows[:len(input.region)]), p, training)
    return input.with_rows(input.region.fill(_as_rows(kept)))


def _pointwise(func: Callable, args: tuple, kwargs: dict) -> RegionTensor:
    """Apply func to the values, and to the outside where the dense reading carries one."""
    operands = [a for arg in (*args, *kwargs.values()) for a in (arg if isinstance(arg, (list, tuple)) else [arg])]
    parts = [operand for operand in operands if isinstance(operand, RegionTensor)]
    region = parts[0].region
    if any(part.region is not region for part in parts):
        raise ValueError("the operands of one operation must share one region: cut them with the same Region object")
    for other in operands:  # a RegionTensor is no Tensor
        if isinstance(other, Tensor) and other.numel() > 1 and other.shape[-3:] != (other.numel(), 1, 1):
            raise ValueError(f"{tuple(other.shape)} beside a RegionTensor: one number and one of each channel (C, 1, 1) are the same for all pixels; "
                             "a map must be cut with the same Region object first (RegionTensor.select)")
    dim = kwargs.get("dim", (*args, None, None)[1]) if func in _ALONG else 1
    if dim not in (1, -3):
        raise ValueError(f"{func.__name__} on a RegionTensor works along channels, dim=1 only; got dim={dim}. Elsewhere use the dense map (.dense())")

    def on(pick: Callable[[RegionTensor], Tensor]):
        swap = lambda a: pick(a) if isinstance(a, RegionTensor) else type(a)(map(swap, a)) if isinstance(a, (list, tuple)) else a
        return func(*map(swap, args), **kwargs)

    carried = any(part.outside is not None for part in parts)
    zeros = lambda part: part.values.new_zeros(()).expand(part.shape)
    outside = on(lambda part: zeros(part) if part.outside is None else part.outside) if carried else None
    reading = "features" if any(part.reading == "features" for part in parts) else parts[0].reading
    return RegionTensor(on(lambda part: part.values), region, outside, reading)


_WINDOWED = {torch.conv2d: _conv2d, F.conv2d: _conv2d, F.max_pool2d: _max_pool2d, torch.max_pool2d: _max_pool2d,
             F.batch_norm: _batch_norm, torch.batch_norm: _batch_norm, F.dropout: _dropout}
_ALONG = {torch.cat, F.softmax, F.log_softmax, torch.softmax, torch.log_softmax}
_POINTWISE = {torch.add, torch.sub, torch.mul, torch.div, torch.cat, torch.relu, torch.relu_, torch.sigmoid, torch.tanh,
              F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.hardswish, F.sigmoid,
              F.softmax, F.log_softmax, torch.softmax, torch.log_softmax,
              torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__, torch.Tensor.__mul__, torch.Tensor.mul,
              torch.Tensor.__rmul__, torch.Tensor.__iadd__}
