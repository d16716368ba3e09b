"""Settings of the mesh stage."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SplatMeshConfig:
    """How a mesh is made from splats; the defaults suit one object in view of all cameras."""

    resolution: int = 160  # voxels along the longest side of the object
    truncation_voxels: float = 4.0  # free space in front of a surface is told apart this far
    behind_voxels: float = 3.0  # depth of the skin that a view calls solid behind its surface
    min_cosine: float = 0.15  # pixels seen at a more grazing angle are ignored (81 degrees)
    behind_vote: float = 0.05  # weight with which a view calls what it cannot see solid
    match_outlines: bool = True  # shift depth until the surface fills the outlines of the views
    # rings of views added to the given cameras, degrees above: they look into what an orbit of
    # elevation 0 leaves to outlines (F-score at 0.5 % of three scanned and modelled objects: +0.01
    # to +0.04; the same views at elevation 0 bring nothing)
    extra_elevations_deg: tuple[float, ...] = (-35.0, 35.0)
    extra_views: int = 9  # views in each added ring
    picture_size: int = 256  # px, of cameras made here
    smooth_iterations: int = 10  # Taubin steps; 0 keeps the raw surface
    min_component_share: float = 0.02  # parts below this share of the largest part's area go
    max_components: int | None = None  # keep at most so many parts; None: no limit
    max_hole_edges: int = 64  # longest boundary loop that is closed
    vertex_colours: bool = True

    def __post_init__(self) -> None:
        for name, low, high in (
            ("resolution", 16, 1024),
            ("truncation_voxels", 1, 32),
            ("behind_voxels", 1, 32),
            ("min_cosine", 0, 0.9),
            ("behind_vote", 0, 1),
            ("extra_views", 1, 360),
            ("picture_size", 16, 4096),
            ("smooth_iterations", 0, 1000),
            ("min_component_share", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(
                    f"SplatMeshConfig.{name}: must lie in {low:g} to {high:g}, got {value:g}"
                )
