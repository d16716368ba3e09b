"""Differentiable rasterisation of Gaussians in plain torch: the oracle of every faster engine.

A picture is a sparse matrix of compositing weights: row = pixel, column = Gaussian. Its entries
("pairs") are enumerated per Gaussian with exact row spans and sorted by pixel, depth order kept.
Transmittance is then a segmented sum of log(1 - alpha), and both directions of the matrix are
segmented sums too. The gradient is written out by hand over the same pairs: that is several times
faster than autograd over lists this long, and `tests/core/test_torch_raster.py` checks it against
a brute-force picture and numerically.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .projection import MAX_ALPHA, MIN_ALPHA, Projected


@dataclass(frozen=True)
class _Pairs:
    """Pairs of one picture with alpha >= `MIN_ALPHA`: M pairs in S row spans of G Gaussians.

    They stand in "span order": Gaussians near to far, inside one Gaussian row by row, inside one
    row left to right. `to_pixel_order` sorts them by pixel and keeps near to far inside a pixel.
    """

    gaussian: Tensor  # [G] visible Gaussians, near to far, as the caller counts them
    span_start: Tensor  # [S + 1] first pair of each span
    span_owner: Tensor  # [S] position in `gaussian`
    gaussian_start: Tensor  # [G + 1] first span of each Gaussian
    span_dx: Tensor  # [S] from the Gaussian's centre to the span's first pixel centre, px
    span_dy: Tensor  # [S]
    pair_span: Tensor  # [M] int32
    column: Tensor  # [M] pixels from the span's first one, int32
    pixel: Tensor  # [M] row * width + x, int32
    to_pixel_order: Tensor  # [M] int32
    pixel_start: Tensor  # [P + 1] first pair of each pixel in pixel order


def rasterize_torch(
    projected: Projected,
    features: Tensor,  # [V, N, C]
    opacities: Tensor,  # [N]
    width: int,
    height: int,
) -> Tensor:  # [V, H, W, C]
    """Front-to-back composite of per-Gaussian features (Kerbl et al. 2023, eq. 3).

    `sum_i alpha_i T_i f_i` with `alpha_i = min(0.99, opacity_i exp(-d^T conic d / 2))`, pairs below
    1/255 dropped, `T_i` the product of `1 - alpha` in front. No background is added; a feature
    channel of ones gives the picture's alpha.

    Args:
        projected: Footprints of N Gaussians in V pictures.
        features: What to composite, any number of channels. [V, N, C]
        opacities: Peak opacities in [0, 1]. [N]
        width: Picture width, px.
        height: Picture height, px.

    Returns:
        Composited features, differentiable in means2d, conics, opacities and features. [V, H, W, C]
    """
    pictures = [
        _Composite.apply(
            projected.means2d[v],
            projected.conics[v],
            opacities,
            features[v],
            _enumerate_pairs(projected, opacities, v, width, height),
        )
        for v in range(len(projected.means2d))
    ]
    return torch.stack(pictures).reshape(len(pictures), height, width, -1)


@torch.no_grad()
def surface_depths_torch(
    projected: Projected, opacities: Tensor, width: int, height: int
) -> Tensor:  # [V, H, W]
    """Depth where the ray's transmittance falls through one half; 0 where it never does.

    Inside a Gaussian the depth is that of its highest density along the ray (RaDe-GS, arXiv
    2406.01467), linear in the pixel offset.
    """
    pictures = []
    for v in range(len(projected.means2d)):
        pairs = _enumerate_pairs(projected, opacities, v, width, height)
        alpha = _pair_alphas(pairs, projected.conics[v], opacities)
        transmittance, sorted_alpha = _transmittance(pairs, alpha)
        crossing = (transmittance > 0.5) & (transmittance * (1 - sorted_alpha) <= 0.5)
        pair = pairs.to_pixel_order[crossing]
        span = pairs.pair_span[pair].long()
        gaussian = pairs.gaussian[pairs.span_owner[span]]
        slope = projected.depth_slopes[v][gaussian]
        dx = pairs.span_dx[span] + pairs.column[pair]
        depth = projected.depths[v][gaussian] + slope[:, 0] * dx + slope[:, 1] * pairs.span_dy[span]
        picture = torch.zeros(width * height, dtype=depth.dtype, device=depth.device)
        picture[pairs.pixel[pair].long()] = depth
        pictures.append(picture.reshape(height, width))
    return torch.stack(pictures)


def _segment_sums(values: Tensor, starts: Tensor) -> Tensor:  # [M], [n + 1] -> [n]
    """Sums of consecutive runs, by differences of one running sum in float64 (repeatable)."""
    running = torch.nn.functional.pad(torch.cumsum(values, 0, dtype=torch.float64), (1, 0))
    edges = running.index_select(0, starts)
    return (edges[1:] - edges[:-1]).to(values.dtype)


def _starts(counts: Tensor) -> Tensor:  # [n] -> [n + 1]
    return torch.nn.functional.pad(torch.cumsum(counts, 0), (1, 0))


def _ranges(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Owner of each of sum(counts) items, its index inside its owner, and the owners' starts."""
    starts = _starts(counts)
    owner = torch.repeat_interleave(counts)
    index = torch.arange(len(owner), device=counts.device, dtype=counts.dtype)
    return owner, index - starts.to(counts.dtype).index_select(0, owner), starts


@torch.no_grad()
def _enumerate_pairs(
    projected: Projected, opacities: Tensor, view: int, width: int, height: int
) -> _Pairs:
    """Pairs of one picture; in every pixel row the span with alpha >= MIN_ALPHA is solved exactly."""
    x, y = projected.means2d[view].unbind(-1)
    extent_x, extent_y = projected.extents[view].unbind(-1)
    first_row = torch.ceil(y - extent_y - 0.5).clamp(0, height)  # pixel centres at + 0.5
    end_row = (torch.floor(y + extent_y - 0.5) + 1).clamp(0, height)
    on_screen = (extent_x > 0) & (x + extent_x > 0) & (x - extent_x < width)
    rows = ((end_row - first_row).clamp(min=0) * on_screen).int()
    gaussian = torch.nonzero(rows)[:, 0]
    near_to_far = torch.argsort(projected.depths[view].index_select(0, gaussian), stable=True)
    gaussian = gaussian.index_select(0, near_to_far)

    owner, index, gaussian_start = _ranges(rows.index_select(0, gaussian))
    of_span = gaussian.index_select(0, owner)
    row = first_row.index_select(0, of_span) + index
    a, b, c = projected.conics[view].index_select(0, of_span).unbind(-1)
    centre_x = x.index_select(0, of_span)
    dy = row + 0.5 - y.index_select(0, of_span)
    # a dx^2 + 2 b dx dy + c dy^2 <= reach, solved for dx
    reach = 2.0 * torch.log((opacities.index_select(0, of_span) / MIN_ALPHA).clamp(min=1.0))
    discriminant = (b * b - a * c) * dy * dy + a * reach
    half_span = discriminant.clamp(min=0).sqrt() / a
    middle = centre_x - b * dy / a - 0.5
    first = torch.ceil(middle - half_span).clamp(0, width)
    end = (torch.floor(middle + half_span) + 1).clamp(0, width)
    lengths = ((end - first).clamp(min=0) * (discriminant > 0)).int()

    pair_span, column, span_start = _ranges(lengths)
    first_pixel = (row * width + first).int()
    pixel = first_pixel.index_select(0, pair_span) + column
    sorted_pixel, to_pixel_order = torch.sort(pixel, stable=True)
    every_pixel = torch.arange(width * height + 1, device=pixel.device, dtype=pixel.dtype)
    return _Pairs(
        gaussian=gaussian,
        span_start=span_start,
        span_owner=owner,
        gaussian_start=gaussian_start,
        span_dx=first + 0.5 - centre_x,
        span_dy=dy,
        pair_span=pair_span,
        column=column,
        pixel=pixel,
        to_pixel_order=to_pixel_order.int(),
        pixel_start=torch.searchsorted(sorted_pixel, every_pixel),
    )


def _pair_alphas(pairs: _Pairs, conics: Tensor, opacities: Tensor) -> Tensor:  # [M] span order
    """`min(MAX_ALPHA, opacity exp(-q / 2))` with the quadratic q expanded per span."""
    of_span = pairs.gaussian.index_select(0, pairs.span_owner)
    a, b, c = conics.index_select(0, of_span).unbind(-1)
    dx, dy = pairs.span_dx, pairs.span_dy
    # exponent at column k: constant + linear k + quadratic k^2
    constant = -0.5 * (a * dx * dx + 2 * b * dx * dy + c * dy * dy)
    constant = constant + torch.log(opacities.index_select(0, of_span))
    linear = -(a * dx + b * dy)
    quadratic = -0.5 * a
    k = pairs.column.to(conics.dtype)
    span = pairs.pair_span
    exponent = quadratic.index_select(0, span).mul_(k).add_(linear.index_select(0, span)).mul_(k)
    return exponent.add_(constant.index_select(0, span)).exp_().clamp_(max=MAX_ALPHA)


def _transmittance(pairs: _Pairs, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Transmittance in front of every pair and its alpha, both in pixel order. [M] each"""
    sorted_alpha = alpha.index_select(0, pairs.to_pixel_order)
    running = torch.cumsum(torch.log1p(-sorted_alpha), 0, dtype=torch.float64)
    in_front = torch.nn.functional.pad(running, (1, 0))
    at_pixel_start = in_front.index_select(0, pairs.pixel_start[:-1])
    counts = pairs.pixel_start.diff()
    log_transmittance = in_front[:-1] - torch.repeat_interleave(at_pixel_start, counts)
    return log_transmittance.to(alpha.dtype).exp_(), sorted_alpha


class _Composite(torch.autograd.Function):
    """Pairs of one picture to its pixels, with the gradient written out."""

    @staticmethod
    def forward(ctx, means2d, conics, opacities, features, pairs: _Pairs):
        alpha = _pair_alphas(pairs, conics, opacities)
        transmittance, sorted_alpha = _transmittance(pairs, alpha)
        weight = torch.empty_like(alpha)  # span order
        weight.index_copy_(0, pairs.to_pixel_order.long(), transmittance * sorted_alpha)
        sorted_span = pairs.pair_span.index_select(0, pairs.to_pixel_order)
        sorted_gaussian = pairs.gaussian.index_select(0, pairs.span_owner).index_select(
            0, sorted_span
        )
        sorted_weight = transmittance.mul_(sorted_alpha)
        pixels = [
            _segment_sums(
                channel.index_select(0, sorted_gaussian).mul_(sorted_weight), pairs.pixel_start
            )
            for channel in features.t().contiguous()
        ]
        ctx.pairs = pairs
        ctx.save_for_backward(conics, opacities, features, alpha, weight, sorted_gaussian)
        return torch.stack(pixels, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_pixels):  # pyright: ignore[reportIncompatibleMethodOverride]
        conics, opacities, features, alpha, weight, sorted_gaussian = ctx.saved_tensors
        pairs: _Pairs = ctx.pairs
        grad_channels = grad_pixels.t().contiguous()
        counts = pairs.pixel_start.diff()
        gaussian_pair_start = pairs.span_start.index_select(0, pairs.gaussian_start)

        # gain = d loss / d weight of every pair, and the features' own gradient
        gain = torch.zeros_like(alpha)  # pixel order
        grad_features = []
        for channel, grad_channel in zip(features.t().contiguous(), grad_channels, strict=True):
            gain.addcmul_(
                channel.index_select(0, sorted_gaussian),
                torch.repeat_interleave(grad_channel, counts),
            )
            weighted = grad_channel.index_select(0, pairs.pixel).mul_(weight)
            grad_features.append(_segment_sums(weighted, gaussian_pair_start))

        # d loss / d alpha_i = T_i gain_i - (sum over j behind i of w_j gain_j) / (1 - alpha_i)
        sorted_alpha = alpha.index_select(0, pairs.to_pixel_order)
        sorted_weight = weight.index_select(0, pairs.to_pixel_order)
        running = torch.cumsum(sorted_weight * gain, 0, dtype=torch.float64)
        total = torch.nn.functional.pad(running, (1, 0)).index_select(0, pairs.pixel_start[1:])
        behind = (torch.repeat_interleave(total, counts) - running).to(alpha.dtype)
        # times alpha: the gradient of the exponent, and T_i alpha_i = w_i
        sorted_grad = sorted_weight * gain - behind * sorted_alpha / (1 - sorted_alpha)
        sorted_grad.mul_(sorted_alpha < MAX_ALPHA)
        grad_exponent = torch.empty_like(sorted_grad)
        grad_exponent.index_copy_(0, pairs.to_pixel_order.long(), sorted_grad)

        # moments of the exponent's gradient about the centre, per span and then per Gaussian
        k = pairs.column.to(alpha.dtype)
        moment0 = _segment_sums(grad_exponent, pairs.span_start)
        moment1 = _segment_sums(grad_exponent.mul_(k), pairs.span_start)
        moment2 = _segment_sums(grad_exponent.mul_(k), pairs.span_start)
        dx, dy = pairs.span_dx, pairs.span_dy
        sum_xx = moment2 + 2 * dx * moment1 + dx * dx * moment0
        sum_x = moment1 + dx * moment0
        sums = [moment0, sum_x, moment0 * dy, sum_xx, sum_x * dy, moment0 * dy * dy]
        zero, x, y, xx, xy, yy = (_segment_sums(value, pairs.gaussian_start) for value in sums)
        a, b, c = conics.index_select(0, pairs.gaussian).unbind(-1)
        grad_means2d = torch.stack([a * x + b * y, b * x + c * y], dim=-1)
        grad_conics = torch.stack([-0.5 * xx, -xy, -0.5 * yy], dim=-1)
        grad_opacities = zero / opacities.index_select(0, pairs.gaussian)

        def scatter(values: Tensor, like: Tensor) -> Tensor:
            return torch.zeros_like(like).index_copy_(0, pairs.gaussian, values)

        return (
            scatter(grad_means2d, conics[:, :2]),
            scatter(grad_conics, conics),
            scatter(grad_opacities, opacities),
            scatter(torch.stack(grad_features, dim=-1), features),
            None,
        )
