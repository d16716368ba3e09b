"""What stages that need pictures of a splat ask of whoever renders them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .structures import Cameras, GaussianSplats


class RenderedMaps(Protocol):
    """What a splat renderer gives back."""

    @property
    def colours(self) -> Tensor:
        """sRGB composited on the background. [V, H, W, 3]"""
        ...

    @property
    def alphas(self) -> Tensor:
        """Coverage in [0, 1]. [V, H, W]"""
        ...

    @property
    def depths(self) -> Tensor:
        """Depth along the optical axis, 0 where coverage is below one half. [V, H, W]"""
        ...


class RenderFn(Protocol):
    """Renders splats; passed in, so that this stage knows no renderer."""

    def __call__(
        self, splats: GaussianSplats, cameras: Cameras, background: tuple[float, float, float]
    ) -> RenderedMaps:
        """Pictures of `splats` from all `cameras` on `background`."""
        ...
