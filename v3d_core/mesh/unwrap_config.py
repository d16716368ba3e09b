"""Settings of the unwrapping."""

from __future__ import annotations

from dataclasses import dataclass

ENGINES = ("auto", "xatlas", "charts", "keep")


@dataclass(frozen=True)
class UnwrapConfig:
    """How a surface is cut open and laid out; the defaults suit a texture of 1024."""

    resolution: int = 1024  # texels along each side of the texture that the padding is meant for
    padding: int = 4  # texels between charts: half of it may be dilated by each of them
    # xatlas cuts and flattens better; charts needs no package; keep takes the mesh's own uvs;
    # auto is xatlas where it is installed and charts where not
    engine: str = "auto"
    max_cost: float = 2.0  # xatlas only: what a chart may bend and fray; more gives fewer charts
    max_tilt_deg: float = 55.0  # charts only: largest angle between a face and its chart's plane

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(
                f"UnwrapConfig.engine: must be one of {', '.join(ENGINES)}, got {self.engine!r}"
            )
        for name, low, high in (
            ("resolution", 64, 8192),
            ("padding", 0, 64),
            ("max_cost", 0.1, 100),
            ("max_tilt_deg", 10, 80),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(
                    f"UnwrapConfig.{name}: must lie in {low:g} to {high:g}, got {value:g}"
                )
