"""LayerCascade: classify, keep the confident, pass the rest on (Sec. 3.1, Fig. 2b).

Shapes: N images, K classes, S stages, h w grid of the label map (stride 8), H W pixels of the image.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lc.errors import check_rho
from lc.region import Region
from lc.region_conv import READINGS, RegionTensor

STRIDE = 8


@dataclass
class CascadeOutput:
    """What the cascade says, on the stride-8 grid.

    log_probs: (N, K, h, w) log of the fused probabilities: each pixel's come from the stage that decided it, or from the
    last stage it reached. decided: (N, h, w) uint8, that stage (1 .. S). fused[s]: log_probs as they stood after stage s+1.
    logits[s]: (N, K, h, w) of stage s+1, zero where it did not compute. handed[s]: (N, h, w) bool, the pixels handed to stage s+1.
    regions[s]: the region it computed (handed[s] grown by the halo), None where it ran dense.
    """
    log_probs: Tensor
    decided: Tensor
    fused: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    handed: list[Tensor] = field(default_factory=list)
    regions: list[Region | None] = field(default_factory=list)

    @property
    def shares(self) -> list[float]:
        """Share of pixels handed to each stage; the first is 1."""
        return [mask.float().mean().item() for mask in self.handed]


def undecided(log_probs: Tensor, rho: float) -> Tensor:
    """(N, h, w) bool: pixels whose greatest probability is under rho (Sec. 3.1). rho = 1 is a rule: nobody exits."""
    if rho >= 1:
        return torch.ones_like(log_probs[:, 0], dtype=torch.bool)
    return log_probs.detach().amax(dim=1).exp() < rho


class LayerCascade(nn.Module):
    """stages: modules applied one after the other, the first one dense, the others on regions; heads: one per stage.

    reading: what a window reads outside the region, one of READINGS (lc.region_conv). halo: pixels by which the region is
    grown for computing, not for deciding; 0 in the paper.
    """

    def __init__(self, stages: Sequence[nn.Module], heads: Sequence[nn.Module], reading: str = "zero", halo: int = 0):
        super().__init__()
        if len(stages) != len(heads):
            raise ValueError(f"one head per stage: got {len(stages)} stages and {len(heads)} heads")
        if reading not in READINGS:
            raise ValueError(f"reading must be one of {READINGS}, got {reading!r}")
        self.stages, self.heads = nn.ModuleList(stages), nn.ModuleList(heads)
        self.reading, self.halo = reading, halo

    def forward(self, image: Tensor, rho: float = 1.0, depth: int | None = None, masks: Sequence[Tensor] = ()) -> CascadeOutput:
        """image: (N, 3, H, W), normalised; rho in [0, 1]; depth: stop after that many stages (all by default). masks: (N, h, w) bool each, pixels
        to hand to stages 2, 3, ... whatever they are sure of."""
        rho = check_rho(rho)
        x = self.stages[0](image)                                       # (N, C, h, w)
        logits = self.heads[0](x)                                       # (N, K, h, w)
        log_probs = logits.float().log_softmax(dim=1)
        open_ = torch.ones_like(log_probs[:, 0], dtype=torch.bool)      # (N, h, w): not yet decided
        out = CascadeOutput(log_probs, open_.to(torch.uint8), [log_probs], [logits], [open_], [None])
        for number, (stage, head) in enumerate(zip(self.stages[1:depth], self.heads[1:depth]), start=2):
            open_ = open_ & (masks[number - 2] if masks else undecided(out.log_probs, rho))
            region = Region(open_, open_.device.type == "cpu").dilate(self.halo) if rho < 1 or masks else None
            x = x if region is None else RegionTensor.select(x, region, self.reading)
            x = stage(x)
            logits = head(x)
            logits = logits.dense() if isinstance(logits, RegionTensor) else logits
            fused = torch.where(open_[:, None], logits.float().log_softmax(dim=1), out.log_probs.detach())
            out = CascadeOutput(fused, out.decided.masked_fill(open_, number), [*out.fused, fused],
                                [*out.logits, logits], [*out.handed, open_], [*out.regions, region])
        return out


def upsample(x: Tensor, size: tuple[int, int], stride: int = STRIDE) -> Tensor:
    """Bilinear (N, K, h, w) -> (N, K, H, W). Cell i sits at pixel stride * i, where "same" strided convolutions put it.
    A map that has the size already (some of lc.baselines) stays."""
    h, w = x.shape[2:]
    if (h, w) == tuple(size):
        return x
    x = F.interpolate(x, (stride * (h - 1) + 1, stride * (w - 1) + 1), mode="bilinear", align_corners=True)
    x = x[:, :, :size[0], :size[1]]
    return F.pad(x, (0, size[1] - x.shape[3], 0, size[0] - x.shape[2]), mode="replicate")


def cells_to_pixels(x: Tensor, size: tuple[int, int], stride: int = STRIDE) -> Tensor:
    """Nearest (N, h, w) -> (N, H, W), for masks and stage maps; the same geometry as `upsample`."""
    if tuple(x.shape[1:]) == tuple(size):
        return x
    rows, cols = (((torch.arange(n, device=x.device) + stride // 2) // stride).clamp(max=m - 1) for n, m in zip(size, x.shape[1:]))
    return x[:, rows][:, :, cols]
