"""Whether going on is worth it: the loss, or the score on held-out views, while a fit runs."""

from __future__ import annotations

import math

from ..images import composite
from ..structures import GaussianSplats, Views
from .config import SplatFitConfig
from .densify import Parameters
from .optimise import Stepper
from .raster import render_splats

LOOKS = 20  # at how many moments of a full run the gain is looked at
PATIENCE = 4  # looks in a row without a new best
LEAST_GAIN_DB = 0.02  # of the held-out PSNR that counts as better; seeds differ by 0.05 (measured)
LEAST_GAIN = 0.002  # of the loss, relative, that counts as better


class Watch:
    """Tells when neither held-out views nor, without any, the loss get better any more."""

    def __init__(self, config: SplatFitConfig, test_views: Views | None) -> None:
        self._on, self._test_views = config.early_stop, test_views
        self._looks, self._best, self._bad = 0, -math.inf, 0

    def stalls(self, fraction: float, stepper: Stepper, parameters: Parameters) -> bool:
        """Look if it is time to; True after `PATIENCE` looks without gain. Waits for the device."""
        due = int(fraction * LOOKS + 1e-6)
        if not self._on or due <= self._looks:
            return False
        self._looks = due
        if self._test_views is not None:
            value, least = psnr_on_white(parameters.splats(), self._test_views), LEAST_GAIN_DB
        else:
            value, least = stepper.mean_loss_since_last_look(), LEAST_GAIN
            value = -math.log(max(value, 1e-12))
        better = value > self._best + least
        self._best = max(self._best, value)
        self._bad = 0 if better else self._bad + 1
        return self._bad >= PATIENCE


def psnr_on_white(splats: GaussianSplats, views: Views) -> float:
    """Mean over the views of the PSNR against pictures on white, dB."""
    white = composite(views.images, views.masks)
    pictures = render_splats(splats, views.cameras, depths=False).colours
    errors = (pictures - white).square().mean((1, 2, 3))
    return float((-10 * errors.clamp(min=1e-10).log10()).mean())
