"""One step of the NeuS fit, and how steps are run: one by one, or as a captured CUDA graph."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import NeusFitConfig
from .field import SDFField
from .grid import FEATURES
from .losses import (
    colour_loss,
    curvature_loss,
    eikonal_loss,
    mask_loss,
    normal_loss,
    smoothness_loss,
    sparsity_loss,
)
from .sampling import PixelPool, place_samples
from .start import Start
from .trilinear import interleaved
from .volume import composite

WARM_UP_STEPS = 3  # before a capture, as torch's documentation of CUDA graphs asks
DRAWS = 64  # sets of points off the rays drawn in advance; a longer run uses them again
BACKGROUNDS = 4093  # colours behind the rays; prime, so that pixels meet them in every order


class Stepper:
    """Runs steps over fixed storage. On CUDA a step is captured once as a graph and replayed.

    Attributes:
        loss: Sum over the steps since `look` was last called. []
    """

    def __init__(
        self,
        field: SDFField,
        pool: PixelPool,
        start: Start,
        config: NeusFitConfig,
        generator: torch.Generator,
    ) -> None:
        """Take what a fit works on; `generator` is on the CPU."""
        self.field, self.pool, self.config, self.start = field, pool, config, start
        device = field.device
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.anneal = torch.zeros((), device=device)
        self.normal_weight = torch.full((), config.normal_weight, device=device)
        # distance found last, and the start's
        self.known = interleaved(start.distance.repeat(2, 1, 1, 1) * field.half_size)
        # a sphere says nothing about where the object is
        self.band = config.band * field.half_size if config.start == "hull" else math.inf
        near = torch.nonzero(self.known[1] < self.band)
        self._near = near
        self._near_points = self._cells(near)
        self.backgrounds = torch.rand(BACKGROUNDS, 3, generator=generator).to(device)
        self._points, self._offsets = self._draw_points(generator)
        level = torch.arange(config.levels, dtype=torch.float32, device=device)
        self._level = level.repeat_interleave(FEATURES)  # of each feature
        self.loss = torch.zeros((), device=device)
        self.squared_error = torch.zeros((), device=device)
        self.taken = self.looked = 0  # steps, and those that the sums have no part of
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stride: torch.cuda.Event | None = None
        self.rates = {
            "table": config.table_rate,
            "network": config.network_rate,
            "inv_s": config.inv_s_rate,
        }
        groups = {
            "table": [field.table],
            "inv_s": [field.log_inv_s],
            "network": [p for n, p in field.named_parameters() if n not in ("table", "log_inv_s")],
        }
        on_cuda = device.type == "cuda"
        self.adam = torch.optim.Adam(
            [
                {"params": parameters, "name": name, "lr": self._rate(0.0)}
                for name, parameters in groups.items()
            ],
            betas=(0.9, 0.99),
            eps=1e-15,
            fused=True,
            capturable=on_cuda,
        )

    def _rate(self, value: float) -> Tensor | float:
        # a captured step reads its rates from the device
        on_cuda = self.field.device.type == "cuda"
        return torch.tensor(value, device=self.field.device) if on_cuda else value

    def schedule(self, fraction: float) -> None:
        """Set rates, levels and annealing for a fraction of the run."""
        c = self.config
        rise = min(1.0, fraction / c.warm_up) if c.warm_up > 0 else 1.0
        scale = max(rise, 1e-3) * c.rates_end**fraction
        for group in self.adam.param_groups:
            value = self.rates[group["name"]] * scale
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(value)
            else:
                group["lr"] = value
        self.anneal.fill_(min(1.0, fraction / c.anneal_until) if c.anneal_until > 0 else 1.0)
        if c.normal_until > 0:
            left = max(0.0, 1 - fraction / c.normal_until)
            self.normal_weight.fill_(c.normal_weight * left)
        joined = min(1.0, fraction / c.active_until) if c.active_until > 0 else 1.0
        active = c.active_levels + (c.levels - c.active_levels) * joined
        # a level joins gradually: its features grow from nothing; on the device, as a copy from
        # the CPU would wait for all steps that are enqueued
        weights = (active - self._level).clamp(0, 1)
        self.field.level_weights.copy_(weights)

    @torch.no_grad()
    def refresh(self) -> None:
        """Look again where the surface is."""
        found = self.field.sdf(self._near_points)
        self.known[0][tuple(self._near.T)] = found

    def step(self) -> None:
        """One step; on CUDA only enqueued."""
        on_cuda = self.field.device.type == "cuda"
        if on_cuda and self._graph is None and self.taken >= WARM_UP_STEPS:
            self._capture()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._compute()
        self.taken += 1

    def wait_for_last_stride(self) -> None:
        """Let the device work on one stride while the next is enqueued, but on no more."""
        if self.field.device.type != "cuda":
            return
        event = torch.cuda.Event()
        event.record()
        if self._stride is not None:
            self._stride.synchronize()
        self._stride = event

    def look(self) -> tuple[float, float]:
        """Mean loss and PSNR over the rays since the last look or `forget_errors`; waits for the device."""
        steps = max(1, self.taken - self.looked)
        loss, error = (float(x) / steps for x in (self.loss, self.squared_error))
        self.forget_errors()
        return loss, -10 * math.log10(max(error, 1e-10))

    def forget_errors(self) -> None:
        """Begin the means of `look` anew; only enqueued on CUDA."""
        self.loss.zero_()
        self.squared_error.zero_()
        self.looked = self.taken

    def close(self) -> None:
        """Give the memory of the captured step back."""
        self.adam.zero_grad(set_to_none=True)
        if self._graph is not None:
            torch.cuda.synchronize(self.field.device)
            self._graph.reset()
            self._graph = None

    def _compute(self) -> None:
        loss, error = self._loss()
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        self.adam.step()
        self.loss += loss.detach()
        self.squared_error += error
        self.position += 1

    def _loss(self) -> tuple[Tensor, Tensor]:
        """The loss of the next rays, and their mean squared error over the backgrounds."""
        c, field = self.config, self.field
        rays = self.pool.rays(self.position, c.rays)
        samples = place_samples(
            rays.origins,
            rays.directions,
            rays.jitter,
            self.known,
            field.centre,
            field.half_size,
            self.band,
            c.samples,
            c.surface_share,
        )
        points = rays.origins[:, None] + rays.directions[:, None] * samples.distances[..., None]
        directions = rays.directions[:, None].expand_as(points).reshape(-1, 3)
        sampled = field.evaluate(points.reshape(-1, 3))
        normals = F.normalize(sampled.gradients, dim=-1)
        values = field.shade(sampled.codes, normals, directions)
        if rays.normals is not None and c.normal_weight:
            values = torch.cat([values, normals], dim=-1)
        cosines = (directions * sampled.gradients).sum(-1)
        shape = samples.deltas.shape
        seen = composite(
            sampled.sdf.view(shape),
            cosines.view(shape),
            samples.deltas,
            samples.inside,
            values.view(*shape, -1),
            field.inv_s,
            self.anneal,
        )
        number = (self.position * c.rays + torch.arange(c.rays, device=points.device)) % BACKGROUNDS
        behind = self.backgrounds[number]
        picture = seen.values[:, :3] + (1 - seen.opacities[:, None]) * behind
        target = torch.lerp(behind, rays.colours, rays.masks[:, None])
        loss = (
            c.colour_weight * colour_loss(picture, target, c.trimmed)
            + c.mask_weight * mask_loss(seen.opacities, rays.masks)
            + c.eikonal_weight * eikonal_loss(sampled.gradients, samples.inside.view(-1))
        )
        if rays.normals is not None and c.normal_weight:
            loss = loss + self.normal_weight * normal_loss(
                seen.values[:, 3:], rays.normals, rays.directions, c.trimmed
            )
        if self._points is not None:
            loss = loss + self._off_rays()
        error = (picture.detach() - target).square().mean()
        return loss, error

    def _off_rays(self) -> Tensor:
        """Losses at points that no ray chose."""
        c, field = self.config, self.field
        assert self._points is not None and self._offsets is not None
        which = self.position % DRAWS
        points = self._points.index_select(0, which)[0]
        offsets = self._offsets.index_select(0, which)[0]
        at = field.evaluate(points)
        loss = torch.zeros((), device=points.device)
        if c.sparsity_weight:
            loss = loss + c.sparsity_weight * sparsity_loss(at.sdf / field.half_size)
        if c.smoothness_weight:
            step = offsets * (c.smoothness_step * field.half_size)
            beside = field.evaluate(points + step)
            loss = loss + c.smoothness_weight * smoothness_loss(at.gradients, beside.gradients)
        if c.curvature_weight:
            across = torch.linalg.cross(at.gradients.detach(), offsets)
            tangents = F.normalize(across, dim=-1)
            distance = c.smoothness_step * field.half_size
            beside = field.evaluate(points + tangents * distance)
            loss = loss + c.curvature_weight * curvature_loss(
                at.gradients, beside.gradients, tangents, c.smoothness_step
            )
        return loss

    def _draw_points(self, generator: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
        """Points spread over the band, and normal offsets from them; none if nothing needs them."""
        c = self.config
        if not (c.sparsity_weight or c.smoothness_weight or c.curvature_weight):
            return None, None
        shape = (DRAWS, c.extra_points)
        chosen = torch.randint(len(self._near), shape, generator=generator)
        within = torch.rand(*shape, 3, generator=generator) - 0.5
        offsets = torch.randn(*shape, 3, generator=generator)
        device = self.field.device
        cell = 2 * self.field.half_size / len(self.start.distance)
        points = self._near_points[chosen.to(device)] + within.to(device) * cell
        return points, offsets.to(device)

    def _cells(self, index: Tensor) -> Tensor:  # [N, 3] int -> [N, 3]
        """World positions of the centres of cells."""
        size = len(self.start.distance)
        unit = (index + 0.5) / size * 2 - 1
        return self.field.centre + unit * self.field.half_size

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.field.device)
        self.adam.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self._compute()
        self._graph = graph
