"""Settings of the refinement of a mesh's shape from views."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class GeometryConfig:
    """Settings; px are pixels of the views at the mesh's distance. Sources: docs/provenance.md."""

    blurs_px: tuple[float, ...] = (4.0, 2.0, 1.0, 0.7)  # of the pictures, coarse to fine
    rounds: int = 1  # Gauss-Newton steps at each blur
    colour_std: float = 0.03  # of a pixel against the common colour of its point
    colour_outlier: float = 0.09  # distance from that colour at which a reading counts half
    outline_std: float = 0.15  # of a px of outline, px
    outline_outlier: float = 2.0  # distance at which one counts half, in those of a typical one
    smoothness: float = 5.0  # of the difference between neighbours' offsets, px
    offset_std: float = 10.0  # of a px of surface, px; weak: for what nothing else holds
    step_px: float = 1.0  # most in one step
    most_px: float = 8.0  # and in all
    clearance: float = 0.3  # of the way to the surface opposite, inside and outside

    def __post_init__(self) -> None:
        if not self.blurs_px or min(self.blurs_px) <= 0:
            raise ValueError(
                f"GeometryConfig.blurs_px: needs one positive blur or more, got {self.blurs_px}"
            )
        for field in dataclasses.fields(self)[1:]:
            if not getattr(self, field.name) > 0:
                raise ValueError(
                    f"GeometryConfig.{field.name}: must be positive, got "
                    f"{getattr(self, field.name):g}"
                )
