"""Frames that disagree, made to agree: what differs per view is estimated while a splat is fitted.

The pictures of a video model drift by pixels and in exposure from frame to frame. Now and then
every frame is compared with the picture of the splat fitted so far, and one Gauss-Newton step
(Lucas and Kanade 1981) finds a smooth 2-D warp per frame that lays it on the consensus.

The comparison alone leaves a gauge free: a deformation of the object in space, followed by all
frames, changes no residual, and the average of the frames is a poor choice of it (a drift that
neighbouring frames share looks like shape). So the step solves for the warps and for a smooth
deformation of the splat together, under a prior by which warps are small and smooth over the
picture: among all objects that explain the frames it takes the one that needs the least warping.
That is bundle adjustment (Triggs et al. 2000) with warps in the place of poses.

A splat fitted to disagreeing frames has given way to each of them, so its pictures only tell
whether frames disagree. What to do about it is found from points of its surface that are read in
all frames that see them (`align_points`), and from its outlines.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images import premultiply, unpremultiply
from ..structures import Cameras, Views
from ..view_warps import (
    evaluate_warps,
    gaussian_blur,
    picture_gradients,
    pixel_positions,
    read_displaced,
    spline_basis,
    view_precision,
    warp_precision,
)
from .align_points import SurfacePoints, point_rows
from .align_solve import (
    JointEquations,
    field_basis,
    square_root_rows,
    surface_cells,
)


@dataclass(frozen=True)
class AlignConfig:
    """Settings of the alignment; lengths are fractions of the picture's longer side."""

    resolution: int = 128  # longer side of the pictures compared, px
    cells: int = 32  # blocks along a side over which the comparison is summed up
    blur_px: float = 1.0  # before comparing, in pixels of `resolution`
    # the prior of a warp: standard deviations and the length over which it changes
    flow_std: float = 0.008
    flow_length: float = 0.18
    shift_std: float = 0.004
    zoom_std: float = 0.01
    # views seen from near-by sides are warped alike; used where surface points are given
    view_length: float = 0.8  # distance of directions on the unit sphere over which warps change
    view_own: float = 0.3  # share of a warp's variance that no other view shares
    warp_nodes: int = 8  # B-spline nodes along a side of the picture
    # the deformation of the object
    field_nodes: int = 6  # along a side of the cube around the object
    field_std: float = 0.1  # world units; weak, it only settles nodes nobody sees
    # the comparison
    residual_std: float = 0.15  # of one pixel of `resolution`, in [0, 1]; above the true noise
    outline_std: float = 0.4  # the same for coverage alone, where surface points are given
    offset_std: float = 0.015  # of the coarse surface along its normal, world units
    outlier: float = 0.2  # residual of all channels together at which a pixel counts half
    # confidence
    trust: float = 0.1  # smoothed residual at which a pixel's weight in the fit is one half
    # below this mean warp and spread of gains an orbit agrees and its frames stay as they are
    agreeing_warp: float = 0.0021
    agreeing_gain: float = 0.013
    # ... and also where warps and gains explain less than this share of the squared residual
    least_explained: float = 0.33


class FrameAligner:
    """Warps, gains and confidences of the frames of one orbit, and the frames corrected by them.

    Attributes:
        targets: Corrected frames, premultiplied sRGB and coverage; rewritten in place by `update`,
            and equal to what came in as long as the orbit agrees. [V, H, W, 4]
        weights: Confidence of each pixel in [0, 1]; rewritten in place. [V, H, W]
        warps: B-spline coefficients of the displacements (x, y). [V, 2, n, n]
        gains: Factors of the colours; median over the views 1. [V, 3]
        disagreement: Rms warp over the object, fraction of the side, and spread of the logarithms
            of the gains, as the last update found them before it decided. Two scalars
    """

    def __init__(
        self,
        targets: Tensor,  # [V, H, W, 4]
        cameras: Cameras,
        centre: Tensor,  # [3]
        half_size: float,
        config: AlignConfig | None = None,
    ) -> None:
        """Start with frames as they are.

        Args:
            targets: Premultiplied sRGB and coverage at the resolution of the fit. [V, H, W, 4]
            cameras: Made for that size.
            centre: Of a cube around the object, world units. [3]
            half_size: Half the side of that cube, world units.
            config: Settings.
        """
        self.config = config or AlignConfig()
        self.cameras, self.centre, self.half_size = cameras, centre, half_size
        self.targets = targets.clone()
        self.weights = torch.ones_like(targets[..., 0])
        self._originals = targets.permute(0, 3, 1, 2).contiguous()
        count, nodes = len(targets), self.config.warp_nodes
        self.warps = targets.new_zeros(count, 2, nodes, nodes)
        self.gains = targets.new_ones(count, 3)
        c = self.config
        self._precision = warp_precision(
            nodes, c.flow_std, c.flow_length, c.shift_std, c.zoom_std, targets
        )
        self._small = self._shrunk(self._originals)
        self._coverage = self._small[:, 3]
        self._bent = torch.zeros((), dtype=torch.bool, device=targets.device)
        self._shaded = torch.zeros_like(self._bent)
        self.disagreement = (targets.new_zeros(()), targets.new_zeros(()))
        self._errors = [targets.new_zeros(count), targets.new_zeros(count)]  # first, last

    @torch.no_grad()
    def update(
        self,
        rendered: Tensor,  # [V, H, W, 4]
        means: Tensor,  # [N, 3]
        surface: SurfacePoints | None = None,
    ) -> Tensor:  # [N, 3]
        """Compare the frames with pictures of the splat, or with each other, and correct them.

        Args:
            rendered: Premultiplied colours and coverage of all views, by the splat of now.
            means: Centres of its Gaussians, world units.
            surface: Points at which the frames' colours are compared with each other; of the
                splat's pictures then counts the coverage alone.

        Returns:
            By how much the Gaussians have to move with the corrected frames, world units.
        """
        c = self.config
        consensus = gaussian_blur(self._shrunk(rendered.permute(0, 3, 1, 2)), c.blur_px)
        frames = gaussian_blur(self._small, c.blur_px)
        height, width = frames.shape[2:]
        displaced = read_displaced(frames, evaluate_warps(self.warps, height, width))
        self.gains = robust_gains(displaced, consensus, self.gains)
        residual = self._graded(displaced) - consensus
        slopes = picture_gradients((self._graded(displaced) + consensus) / 2)
        self._note_error(residual)
        if surface is None:
            equations = self._normal_equations(slopes, residual)
            warp_step, field = self._solve(*equations, means)
        else:
            equations = self._normal_equations(slopes[:, 3:], residual[:, 3:])
            warp_step, field = self._solve_jointly(*equations, means, surface)
        self.warps = self.warps + warp_step
        corrected = self._graded(read_displaced(frames, evaluate_warps(self.warps, height, width)))
        left = (corrected - consensus).square().sum() / (frames - consensus).square().sum()
        self._decide(1 - left)
        self._rewrite(residual)
        moves = field_basis(means, self.centre, self.half_size, c.field_nodes) @ field
        return torch.where(self._bent, moves, 0.0)

    def disagrees(self) -> bool:
        """Whether the frames disagree by more than what a fit of agreeing frames shows."""
        return bool(self._active)

    @property
    def _active(self) -> Tensor:
        return self._bent | self._shaded

    def corrected_views(self, views: Views) -> Views:
        """The views this was made from, at any resolution, laid on the consensus.

        Each picture is read once from its original; agreeing orbits are returned as they are.
        """
        if not self.disagrees():
            return views
        planes = torch.cat(
            [premultiply(views.images, views.masks), views.masks[..., None]], dim=-1
        ).permute(0, 3, 1, 2)
        corrected = self._corrected(planes)
        return dataclasses.replace(
            views,
            images=unpremultiply(corrected[..., :3], corrected[..., 3]),
            masks=corrected[..., 3],
            normals=None,
        )

    def report(self, longer_side: int | None = None) -> list[dict[str, float | list[float]]]:
        """Per view: pixels moved (rms over the object), gains, dB before and now, confidence."""
        height, width = self._coverage.shape[1:]
        scale = longer_side or max(self.targets.shape[1:3])
        length = evaluate_warps(self.warps, height, width).square().sum(-1)
        moved = (length * self._coverage).sum((1, 2)) / self._coverage.sum((1, 2)).clamp(min=1)
        before, now = (-10 * e.clamp(min=1e-10).log10() for e in self._errors)
        trusted = (self.weights * self.targets[..., 3]).sum((1, 2))
        trusted = trusted / self.targets[..., 3].sum((1, 2)).clamp(min=1)
        return [
            {
                "moved_px": round(float(moved[v].sqrt() * scale), 3),
                "gain": [round(float(g), 4) for g in self.gains[v]],
                "db_before": round(float(before[v]), 2),
                "db_after": round(float(now[v]), 2),
                "confidence": round(float(trusted[v]), 4),
            }
            for v in range(len(self.warps))
        ]

    def _normal_equations(self, slopes: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over cells of slope slope^T [V, Y, X, 2, 2] and slope residual [V, Y, X, 2]."""
        likely = 1 / (1 + residual.square().sum(1) / self.config.outlier**2)
        pull = self._pooled(torch.einsum("vcyxi,vcyx,vyx->vyxi", slopes, residual, likely))
        tensor = self._pooled(
            torch.einsum("vcyxi,vcyxj,vyx->vyxij", slopes, slopes, likely).flatten(-2)
        )
        return tensor.unflatten(-1, (2, 2)), pull

    def _solve(self, tensor: Tensor, pull: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        """One Gauss-Newton step of warps and deformation together.

        Residuals change by slope . (warp + J field): the frame is read elsewhere, and the
        consensus moves under it. The warps are eliminated per view (Schur complement).
        """
        c = self.config
        a, b, right = self._rows(tensor, pull, means, c.residual_std)
        own = (a.mT @ a).double()
        both = torch.block_diag(self._precision, self._precision)
        own = own + both
        shared = (a.mT @ b).double()
        flat_b = b.flatten(0, 1)
        field = (flat_b.T @ flat_b).double()
        field.diagonal().add_(1 / c.field_std**2)
        own_right = (a.mT @ right[..., None]).double()
        warps = self.warps.flatten(2).double()
        own_right = own_right + (warps @ self._precision).flatten(1)[..., None]
        field_right = (flat_b.T @ right.flatten()).double()

        factor, _ = torch.linalg.cholesky_ex(own)  # the checking forms wait for the GPU
        from_field = torch.cholesky_solve(shared, factor)
        from_right = torch.cholesky_solve(own_right, factor)
        schur = field - (shared.mT @ from_field).sum(0)
        schur_right = field_right - (shared.mT @ from_right).sum(0)[:, 0]
        step, _ = torch.linalg.solve_ex(schur, -schur_right)
        warp_step = -(from_right[..., 0] + from_field @ step)
        return (
            warp_step.view_as(self.warps).to(self.warps.dtype),
            step.view(-1, 3).to(self.warps.dtype),
        )

    def _rows(
        self, tensor: Tensor, pull: Tensor, means: Tensor, residual_std: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the cells in a view's warp and in the field, and their residuals."""
        c = self.config
        count, rows, columns = pull.shape[:3]
        positions = pixel_positions(rows, columns, pull)
        splines = torch.einsum(
            "ym,xn->yxmn",
            spline_basis(c.warp_nodes, positions[:, 0, 1]),
            spline_basis(c.warp_nodes, positions[0, :, 0]),
        ).reshape(rows * columns, -1)
        root, right = square_root_rows(tensor, pull)  # [V, Y, X, 2, 2], [V, Y, X, 2]
        root, right = root.flatten(1, 2), right.flatten(1, 3) / residual_std
        root = root / residual_std
        points, jacobian = surface_cells(means, self.cameras, rows, columns)
        basis = field_basis(points, self.centre, self.half_size, c.field_nodes)
        a = torch.einsum("vpki,pn->vpkin", root, splines).reshape(count, right.shape[1], -1)
        b = torch.einsum("vpki,vpij,vpg->vpkgj", root, jacobian, basis).flatten(1, 2).flatten(2)
        return a, b, right

    def _solve_jointly(
        self, tensor: Tensor, pull: Tensor, means: Tensor, surface: SurfacePoints
    ) -> tuple[Tensor, Tensor]:
        """One Gauss-Newton step from the outlines and from points read in several frames."""
        c = self.config
        rows = point_rows(
            surface,
            gaussian_blur(self._small, c.blur_px),
            self._coverage,
            self.cameras,
            self.warps,
            self.gains,
            pixels=c.resolution,
            residual_std=c.residual_std,
            outlier=c.outlier,
            offset_std=c.offset_std,
        )
        basis = field_basis(surface.positions, self.centre, self.half_size, c.field_nodes)
        equations = JointEquations(len(self.warps), c.warp_nodes**2, basis.shape[1], pull)
        equations.add_rows(*self._rows(tensor, pull, means, c.outline_std))
        equations.add_points(rows, basis)
        between = view_precision(self.cameras, self.centre, c.view_length, c.view_own)
        equations.add_prior(between, self._precision, self.warps, c.field_std)
        warp_step, field = (x.to(pull.dtype) for x in equations.solve())
        return warp_step.view_as(self.warps), field

    def _decide(self, explained: Tensor) -> None:
        """Whether shapes or shades disagree; once found, that is corrected to the end.

        Before, every update starts anew from the frames as they are. A splat that shows the object
        poorly leaves residuals too, but no warp explains them.
        """
        height, width = self._coverage.shape[1:]
        length = evaluate_warps(self.warps, height, width).square().sum(-1)
        moved = ((length * self._coverage).sum() / self._coverage.sum()).sqrt()
        spread = self.gains.log().square().mean().sqrt()
        self.disagreement = (moved, spread)
        found = explained > self.config.least_explained
        self._bent |= found & (moved > self.config.agreeing_warp)
        self._shaded |= found & (spread > self.config.agreeing_gain)
        self.warps = torch.where(self._bent, self.warps, 0.0)
        self.gains = torch.where(self._shaded, self.gains, 1.0)

    def _rewrite(self, residual: Tensor) -> None:
        error = gaussian_blur(residual.square().mean(1, keepdim=True), 2.0)
        weights = 1 / (1 + error / self.config.trust**2)
        weights = F.interpolate(weights, size=self.weights.shape[1:], mode="bilinear")[:, 0]
        corrected = self._corrected(self._originals)
        original = self._originals.permute(0, 2, 3, 1)
        self.targets.copy_(torch.where(self._active, corrected, original))
        self.weights.copy_(torch.where(self._active, weights, 1.0))

    def _corrected(self, planes: Tensor) -> Tensor:  # [V, 4, H, W] -> [V, H, W, 4]
        height, width = planes.shape[2:]
        displaced = read_displaced(planes, evaluate_warps(self.warps, height, width), bicubic=True)
        graded = self._graded(displaced.clamp(0, 1))
        colours = torch.minimum(graded[:, :3], graded[:, 3:])
        return torch.cat([colours, graded[:, 3:]], dim=1).permute(0, 2, 3, 1)

    def _graded(self, planes: Tensor) -> Tensor:  # [V, 4, H, W]
        factors = F.pad(self.gains, (0, 1), value=1.0)
        return planes * factors[:, :, None, None]

    def _note_error(self, residual: Tensor) -> None:
        error = residual.square().mean((1, 2, 3))
        first = torch.where(self._errors[0] > 0, self._errors[0], error)
        self._errors = [first, error]

    def _shrunk(self, planes: Tensor) -> Tensor:  # [V, 4, H, W] -> [V, 4, h, w]
        height, width = planes.shape[2:]
        scale = min(1.0, self.config.resolution / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        return F.interpolate(planes, size=size, mode="area") if scale < 1 else planes

    def _pooled(self, values: Tensor) -> Tensor:  # [V, h, w, C] -> [V, cells.., C]
        """Sums over cells, as if the pictures had `resolution` pixels along the longer side."""
        height, width = values.shape[1:3]
        longer = max(height, width)
        c = self.config
        rows, columns = (max(1, round(c.cells * side / longer)) for side in (height, width))
        pooled = F.adaptive_avg_pool2d(values.permute(0, 3, 1, 2), (rows, columns))
        area = c.resolution**2 * (height * width / longer**2)
        return pooled.permute(0, 2, 3, 1) * (area / (rows * columns))


def robust_gains(
    frames: Tensor,  # [V, 4, H, W]
    consensus: Tensor,  # [V, 4, H, W]
    gains: Tensor,  # [V, 3]
) -> Tensor:  # [V, 3]
    """Factors of the frames' colours towards the consensus inside the object, median over the views 1.

    Iteratively reweighted least squares with Cauchy weights (Holland and Welsch 1977).
    """
    solid = ((frames[:, 3:] > 0.9) & (consensus[:, 3:] > 0.9)).to(frames.dtype)
    mine, theirs = frames[:, :3] * solid, consensus[:, :3] * solid
    for _ in range(3):
        residual = mine * gains[:, :, None, None] - theirs
        weights = 1 / (1 + (residual / 0.05) ** 2)
        power = (weights * mine.square()).sum((2, 3))
        gains = ((weights * mine * theirs).sum((2, 3)) + 1e-3) / (power + 1e-3)
    # the median, not the mean: one spoiled frame must not shade all the others
    return gains / gains.quantile(0.5, dim=0)
