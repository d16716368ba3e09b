"""Settings of the texture that is made from views."""

from __future__ import annotations

from dataclasses import dataclass

RESOLUTIONS = (64, 4096)  # texels along a side


@dataclass(frozen=True)
class RefineConfig:
    """How a texture is made; the defaults suit pictures of an object that agree with each other.

    `num_views`, `lpips_weight` and `iterations` are the options of V3D's refine.py.
    """

    resolution: int = 1024  # texels along a side of the atlas
    unwrap: bool = False  # make a new atlas even where the mesh has one
    num_views: int | None = None  # views used, evenly spaced; None: all
    harmonise: bool = True  # even out the exposure of the views
    angle_power: float = 2.0  # weights fall with the cosine of the viewing angle to this power
    edge_px: int = 4  # views count less this near to outlines and jumps of depth, pixels
    min_mask: float = 0.9  # pixels less covered carry background
    samples: int = 2  # rays along each side of a pixel that stand for its footprint
    solver_steps: int = 20  # of conjugate gradients, each over all views; 0: the plain blend
    smoothness: float = 0.01  # pull between neighbouring texels, in units of a pixel's pull
    seam_weight: float = 1.0  # the same for texels that meet at a seam
    robust_rounds: int = 0  # times pixels that fit badly are taken back, and solved again
    robust_error: float = 0.04  # a pixel that is off by more is taken back, sRGB
    lpips_weight: float = 0.0  # of the perceptual distance against the squared error
    iterations: int = 0  # steps of Adam on the texels, one view each, after the solver

    def __post_init__(self) -> None:
        for name, low, high in (
            ("resolution", *RESOLUTIONS),
            ("angle_power", 0, 16),
            ("edge_px", 1, 64),
            ("min_mask", 0.01, 1),
            ("samples", 1, 4),
            ("solver_steps", 0, 1000),
            ("smoothness", 0, 10),
            ("seam_weight", 0, 100),
            ("robust_rounds", 0, 20),
            ("robust_error", 0.001, 1),
            ("lpips_weight", 0, 100),
            ("iterations", 0, 100_000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(
                    f"RefineConfig.{name}: must lie in {low:g} to {high:g}, got {value:g}"
                )
        if self.num_views is not None and self.num_views < 1:
            raise ValueError(f"RefineConfig.num_views: at least 1 is needed, got {self.num_views}")
        if self.lpips_weight > 0 and self.iterations == 0:
            raise ValueError(
                f"RefineConfig.lpips_weight is {self.lpips_weight:g} but iterations is 0, so that "
                "it would do nothing; set iterations (V3D takes 500)"
            )
