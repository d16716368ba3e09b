"""Settings of mesh cleaning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CleanConfig:
    """What is repaired and how light the mesh becomes; lengths are shares of its diagonal."""

    target_faces: int = 20_000  # 0 keeps all faces
    # of the 99.9th percentile of the distances to the mesh before decimation, either way; more
    # faces than asked are kept where they are needed for it
    max_error: float = 0.003
    smooth_iterations: int = 0  # Taubin steps; the volume of closed parts stays
    min_component_share: float = 0.01  # parts below this share of the largest part's area go
    max_components: int | None = None  # keep at most so many parts; None: no limit
    drop_hidden: bool = True  # closed parts wholly inside another go: nobody sees them
    max_hole_edges: int = 64  # longest border loop that is closed; 0 leaves all open
    weld_distance: float = 1e-6  # open borders this near to each other are one

    def __post_init__(self) -> None:
        for name, low, high in (
            ("target_faces", 0, 1 << 30),
            ("max_error", 0, 1),
            ("smooth_iterations", 0, 1000),
            ("min_component_share", 0, 1),
            ("max_hole_edges", 0, 1 << 20),
            ("weld_distance", 0, 0.01),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(
                    f"CleanConfig.{name}: must lie in {low:g} to {high:g}, got {value:g}"
                )
        if self.max_components is not None and self.max_components < 1:
            raise ValueError(
                f"CleanConfig.max_components: must be at least 1, got {self.max_components}"
            )
