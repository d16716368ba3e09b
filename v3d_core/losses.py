"""Differentiable comparisons of pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_SIGMA = 1.5  # px; Wang et al. 2004
SSIM_RADIUS = 5  # 11x11 window; Wang et al. 2004
_SSIM_C1 = 0.01**2  # Wang et al. 2004, K1 = 0.01 for values in [0, 1]
_SSIM_C2 = 0.03**2  # Wang et al. 2004, K2 = 0.03


def _gaussian_window(channels: int, like: Tensor) -> Tensor:  # [channels, 1, 11, 11]
    offsets = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, device=like.device, dtype=like.dtype)
    line = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    line = line / line.sum()
    window = line[:, None] * line
    return window.expand(channels, 1, *window.shape)


def ssim(
    images: Tensor,  # [V, H, W, C]
    targets: Tensor,  # [V, H, W, C]
    *,
    padding: int = 0,
) -> Tensor:  # [V]
    """Structural similarity (Wang et al. 2004), Gaussian window, mean over pixels and channels.

    With `padding` 0 only whole windows count, which equals scikit-image's gaussian SSIM; 3DGS
    trainers pad with zeros by the window's radius so that every pixel counts.
    """
    return ssim_map(images, targets, padding=padding).mean(dim=(1, 2, 3))


def ssim_map(
    images: Tensor,  # [V, H, W, C]
    targets: Tensor,  # [V, H, W, C]
    *,
    padding: int = 0,
) -> Tensor:  # [V, H, W, C], smaller by the windows without padding
    """`ssim` before its mean."""
    height, width, channels = images.shape[1:]
    if padding == 0 and min(height, width) <= 2 * SSIM_RADIUS:
        raise ValueError(
            f"ssim: pictures of {width}x{height} are smaller than its "
            f"{2 * SSIM_RADIUS + 1}x{2 * SSIM_RADIUS + 1} window"
        )
    x = images.permute(0, 3, 1, 2)
    y = targets.permute(0, 3, 1, 2)
    # one depthwise convolution for all five maps: the fastest form measured on CPU
    maps = torch.cat([x, y, x * x, y * y, x * y], dim=1)
    means = F.conv2d(
        maps, _gaussian_window(5 * channels, maps), padding=padding, groups=5 * channels
    )
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = means.split(channels, dim=1)
    covariance = mean_xy - mean_x * mean_y
    variances = mean_xx - mean_x * mean_x + mean_yy - mean_y * mean_y
    luminance = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x * mean_x + mean_y * mean_y + _SSIM_C1)
    structure = (2 * covariance + _SSIM_C2) / (variances + _SSIM_C2)
    return (luminance * structure).permute(0, 2, 3, 1)
