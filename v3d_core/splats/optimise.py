"""One step of the splat fit, and how steps are run: one by one, or as a captured CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import SplatFitConfig
from .densify import Parameters
from .engines import choose_engine
from .photometric import LossWeights, photometric_loss
from .projection import Pinholes
from .raster import rasterize

OPAQUE_VIEWS = 3  # views nobody took that are rendered in a step; by trial
OPAQUE_STRIDE = 7  # from one such view to the next: no divisor of the numbers of views in use
OPAQUE_ANGLES_DEG = (
    25.0,
    -25.0,
    45.0,
    -45.0,
)  # above and below the views that were taken; by trial
DRAWS = 1024  # batches and backgrounds drawn in advance; a longer run uses them again
WARM_UP_STEPS = 3  # before a capture, as torch's documentation of CUDA graphs asks
PAIR_ROOM = 1.5  # room for pairs in a captured step, against what the first step wants


@dataclass(frozen=True)
class Draws:
    """What chance decides, drawn in advance on the CPU: the same on every device.

    Attributes:
        batches: Views of each step. [S, B] int64
        backgrounds: sRGB behind each picture of each step. [S, B, 3]
    """

    batches: Tensor
    backgrounds: Tensor


def draw(
    views: int, config: SplatFitConfig, generator: torch.Generator, device: torch.device
) -> Draws:
    """Views and backgrounds of the steps; every view comes once before any comes again."""
    size = min(config.views_per_step, views)
    count = min(config.steps, DRAWS)
    queue: list[int] = []
    batches = []
    for _ in range(count):
        if len(queue) < size:  # what is left comes first, then all others, so none comes twice
            again = torch.randperm(views, generator=generator).tolist()
            queue += [view for view in again if view not in queue] + [
                v for v in again if v in queue
            ]
        batches.append(queue[:size])
        queue = queue[size:]
    if config.random_background:
        backgrounds = torch.rand(count, size, 3, generator=generator)
    else:
        backgrounds = torch.ones(count, size, 3)
    return Draws(torch.tensor(batches, device=device), backgrounds.to(device))


def views_around(pinholes: Pinholes, centre: Tensor) -> Pinholes:
    """Every camera turned about its own horizontal axis through `centre` [3], up and down."""
    poses = []
    for angle in OPAQUE_ANGLES_DEG:
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        turn = centre.new_tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        pose = pinholes.world_to_camera
        middle = pose[:, :3, :3] @ centre[:, None] + pose[:, :3, 3:]
        turned = pose.clone()
        turned[:, :3, :3] = turn @ pose[:, :3, :3]
        turned[:, :3, 3:] = turn @ (pose[:, :3, 3:] - middle) + middle
        poses.append(turned)
    return Pinholes(torch.cat(poses), pinholes.K.repeat(len(poses), 1, 1), *pinholes[2:])


class Stepper:
    """Runs steps over fixed storage: Gaussians, targets, cameras.

    On CUDA with an engine that never waits for the device, a step is captured once as a CUDA graph
    and replayed: the host then costs nothing.
    """

    def __init__(
        self,
        parameters: Parameters,
        targets: Tensor,  # [V, H, W, 4]
        confidences: Tensor,  # [V, H, W]
        pinholes: Pinholes,
        draws: Draws,
        around: Pinholes,
        spacing: float,
        config: SplatFitConfig,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        """Take what a fit works on.

        `around` are views that nobody took, from which the object shall look solid. `spacing` is
        the distance between neighbours at the start, world units. `perceptual`
        compares pictures [B, H, W, 3] with targets and gives a loss, or is None.
        """
        self.parameters, self.targets, self.confidences = parameters, targets, confidences
        self.pinholes, self.draws, self.config = pinholes, draws, config
        self.around, self.spacing = around, spacing
        self.perceptual = perceptual
        device = targets.device
        self.position = torch.zeros(1, dtype=torch.int64, device=device)  # in the draws
        self.loss = torch.zeros((), device=device)  # sum over the steps since the last look
        self.taken = self.looked = 0  # steps, and those that `loss` has no part of
        self._graph: torch.cuda.CUDAGraph | None = None
        self._capacity = None
        engine = choose_engine(device, targets.dtype)
        self._captures = device.type == "cuda" and engine.capturable and perceptual is None

    def step(self) -> None:
        """One step; on CUDA only enqueued."""
        if self._captures and self._graph is None and self.taken >= WARM_UP_STEPS:
            self._capture()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._compute()
        self.taken += 1

    def mean_loss_since_last_look(self) -> float:
        """Mean loss of the steps since this was last called; waits for the device."""
        mean = float(self.loss) / max(1, self.taken - self.looked)
        self.loss.zero_()
        self.looked = self.taken
        return mean

    def close(self) -> None:
        """Give the memory of the captured step back."""
        self.parameters.forget_gradients()
        if self._graph is not None:
            torch.cuda.synchronize(self.targets.device)
            self._graph.reset()
            self._graph = None

    def lost_pairs(self) -> bool:
        """Whether a captured step had too little room; makes more. Waits for the device."""
        if self._capacity is None or int(self._capacity.wanted) <= self._capacity.pairs:
            return False
        self._graph = None  # captured again, with more room, at the next step
        return True

    def _compute(self) -> None:
        config, p = self.config, self.parameters
        index = self.position % len(self.draws.batches)
        batch = self.draws.batches.index_select(0, index)[0]
        backgrounds = self.draws.backgrounds.index_select(0, index)[0]
        cameras = self._cameras(batch)
        pictures = rasterize(*p.activated(), cameras, pull=p.pull)
        solidity = torch.zeros((), device=pictures.device)
        if config.opaque_weight:  # a surface is opaque or not there
            coverage = pictures[len(batch) :, ..., 3]
            solidity = config.opaque_weight * (coverage * (1 - coverage)).mean()
            pictures = pictures[: len(batch)]
        weights = LossWeights(config.ssim_weight, config.mask_weight)
        loss = photometric_loss(
            pictures, self.targets, self.confidences, batch, backgrounds, weights
        )
        if self.perceptual is not None:
            wanted = self.targets[batch]
            behind = backgrounds[:, None, None]
            loss = loss + config.lpips_weight * self.perceptual(
                pictures[..., :3] + (1 - pictures[..., 3:]) * behind,
                wanted[..., :3] + (1 - wanted[..., 3:]) * behind,
            )
        self.loss += loss.detach()
        loss = loss + solidity + self._regularisers()
        p.forget_gradients()
        loss.backward()
        p.adam.step()
        self.position += 1

    def _cameras(self, batch: Tensor) -> Pinholes:
        """The views of a step, and after them some of those that nobody took."""
        poses, K = (t.index_select(0, batch) for t in self.pinholes[:2])
        if self.config.opaque_weight:
            each = torch.arange(OPAQUE_VIEWS, device=batch.device)
            turn = (self.position * OPAQUE_VIEWS + each) * OPAQUE_STRIDE % len(self.around.K)
            poses = torch.cat([poses, self.around.world_to_camera.index_select(0, turn)])
            K = torch.cat([K, self.around.K.index_select(0, turn)])
        return Pinholes(poses, K, *self.pinholes[2:])

    def _regularisers(self) -> Tensor:
        config, p = self.config, self.parameters
        total = torch.zeros((), device=self.loss.device)
        if config.opacity_weight:
            total = total + config.opacity_weight * p.opacities().mean()
        if config.scale_weight:
            longest = p.values["log_scales"].amax(-1)
            limit = math.log(config.scale_limit * self.spacing)
            total = total + config.scale_weight * (longest - limit).clamp(min=0).mean()
        return total

    def _capture(self) -> None:
        """Record a step; the room for pairs comes from what a plain step wants now."""
        from .warp_cuda_raster import PairCapacity, fixed_pair_capacity

        device = self.targets.device
        wanted = torch.zeros(1, dtype=torch.int32, device=device)
        probe = PairCapacity(1, wanted)
        with torch.no_grad(), fixed_pair_capacity(probe):
            most = 0
            all_views = -(-len(self.pinholes.K) // len(self.draws.batches[0]))
            for batch in self.draws.batches[:all_views]:
                rasterize(*self.parameters.activated(), self._cameras(batch))
                most = max(most, int(wanted))
        growth = len(self.parameters.pull) / max(1, len(self.parameters))
        self._capacity = PairCapacity(int(most * PAIR_ROOM * growth), torch.zeros_like(wanted))
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(device)
        self.parameters.forget_gradients()
        with fixed_pair_capacity(self._capacity), torch.cuda.graph(graph):
            self._compute()
        self._graph = graph
