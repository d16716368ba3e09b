"""Steps of Adam on the texels, towards pictures that look alike: V3D's refinement, on an atlas."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import backends
from ..structures import Views
from .taps import ViewPixels
from .texture_config import RefineConfig

LEARNING_RATE = 0.002  # of Adam, sRGB per step; falls to 0
SEED = 0  # of the order of the views


def polish(
    atlas: Tensor,  # [H * W, 3]
    pixels: Sequence[ViewPixels],
    views: Views,
    config: RefineConfig,
    tick: Callable[[float], None],
    show: Callable[[Tensor], None],
) -> Tensor:  # [H * W, 3]
    """One view per step: weighted squared error + LPIPS weight * LPIPS (Zhang et al. 2018).

    Pixels that do not count are shown as they are in the view.

    Raises:
        MissingPackageError: LPIPS is asked for and its network is not there.
    """
    if not config.iterations:
        return atlas
    network = None
    if config.lpips_weight > 0:
        network, reason = backends.load_lpips_network()
        if network is None:
            raise backends.MissingPackageError(f"lpips_weight {config.lpips_weight:g}: {reason}")
        network = network.to(atlas.device)
    texels = atlas.clone()
    show(texels)  # the very tensor that changes from step to step
    optimiser = torch.optim.Adam([texels], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, config.iterations)
    generator = torch.Generator().manual_seed(SEED)
    order: list[int] = []
    for step in range(config.iterations):
        order = order or torch.randperm(len(pixels), generator=generator).tolist()
        v = order.pop()
        some = pixels[v]
        with torch.enable_grad():
            shown = some.taps.apply(texels).requires_grad_()
            error = (shown - some.colours).square().mean(dim=-1)
            loss = (some.weights * error).sum() / some.weights.sum()
            if network is not None:
                target = views.images[v].reshape(-1, 3).float()
                picture = target.index_put((some.index,), shown)
                pair = [_for_lpips(p, views) for p in (picture, target)]
                loss = loss + config.lpips_weight * network(*pair).sum()
            (gradient,) = torch.autograd.grad(loss, shown)
        texels.grad = torch.zeros_like(texels)
        some.taps.adjoint(gradient, texels.grad)
        optimiser.step()
        schedule.step()
        tick((step + 1) / config.iterations)
    return texels.clamp(0, 1)


def _for_lpips(picture: Tensor, views: Views) -> Tensor:  # [H * W, 3] -> [1, 3, H, W]
    _, height, width, _ = views.images.shape
    return picture.view(1, height, width, 3).permute(0, 3, 1, 2) * 2 - 1
