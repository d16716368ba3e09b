"""V3D Fit Splat: posed views become a Gaussian splat."""

from __future__ import annotations

import json

from comfy_api.v0_0_2 import io

from ..v3d_core.splats.config import SPLAT_PRESETS, SplatFitConfig
from ..v3d_core.splats.fit import fit_splats
from ..v3d_core.structures import Views
from .convert import splats_to_host
from .runtime import NodeProgress, fitting, named_errors, owned
from .sockets import V3DViews

# Per picture of a step, with gradients; measured with the torch rasteriser (3.3 KiB and 0.7 KiB
# between 10,000 and 40,000 splats at 256 and 512 px), rounded up.
BYTES_PER_SPLAT = 4096
BYTES_PER_PIXEL = 1024


class V3DFitSplat(io.ComfyNode):
    """Fit 3D Gaussians to posed views."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DFitSplat",
            display_name="V3D Fit Splat",
            category="3d/V3D",
            description="Fits a 3D Gaussian splat to posed views of one object. Shows the splat "
            "while it grows; Cancel stops it at once.",
            search_aliases=["gaussian splatting", "3dgs", "train splat", "images to splat", "ply"],
            inputs=[
                V3DViews.Input("views", tooltip="From V3D Posed Views or V3D Load Views."),
                io.Combo.Input(
                    "preset",
                    options=list(SPLAT_PRESETS),
                    default="normal",
                    tooltip="draft: a quick look. normal: good for most orbits. best: finer and "
                    "several times slower. The help page has times.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="The same seed gives the same splat on the CPU, and nearly the same on "
                    "a GPU.",
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=4096,
                    step=16,
                    tooltip="Longer side in pixels at which the views are fitted; larger images "
                    "are scaled down. More is sharper and slower (time grows with the square). "
                    "0 = the preset's.",
                ),
                io.Int.Input(
                    "max_splats",
                    default=0,
                    min=0,
                    max=5_000_000,
                    step=1000,
                    tooltip="How many Gaussians it may grow to. More holds finer detail and makes "
                    "the fit and the file larger. 0 = the preset's.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=100_000,
                    step=50,
                    advanced=True,
                    tooltip="Optimiser steps; time grows in proportion. 0 = the preset's.",
                ),
                io.Int.Input(
                    "views_per_step",
                    default=0,
                    min=0,
                    max=64,
                    advanced=True,
                    tooltip="Pictures rendered in each step. More is steadier and slower. 0 = the "
                    "preset's.",
                ),
                io.Int.Input(
                    "sh_degree",
                    default=-1,
                    min=-1,
                    max=3,
                    advanced=True,
                    tooltip="How colour may change with the direction of view: 0 = not at all, 3 = "
                    "glossy. Core's Render Splat shows degree 0 only. -1 = the preset's.",
                ),
            ],
            outputs=[
                io.Splat.Output("splat", tooltip="For Render Splat, Splat to File, V3D Mesh..."),
                io.String.Output("report", tooltip="Figures of the fit as JSON."),
            ],
        )

    @classmethod
    @named_errors
    def execute(cls, views, preset, seed, resolution, max_splats, **advanced) -> io.NodeOutput:
        config = config_from_widgets(
            preset, seed=seed, resolution=resolution, max_splats=max_splats, **advanced
        )
        with fitting(memory_estimate(views, config)) as device:
            fit = fit_splats(owned(views, device), config, progress=NodeProgress(time_left=True))
            splat = splats_to_host(fit.splats)
        return io.NodeOutput(splat, json.dumps(fit.report, indent=2))


def config_from_widgets(
    preset: str, *, seed: int, sh_degree: int, **widgets: int
) -> SplatFitConfig:
    """The preset with every widget that is not 0 (sh_degree: not negative) put over it."""
    changes = {name: value or None for name, value in widgets.items()}
    degree = None if sh_degree < 0 else sh_degree
    return SPLAT_PRESETS[preset].with_changes(seed=seed, sh_degree=degree, **changes)


def memory_estimate(views: Views, config: SplatFitConfig) -> int:
    """Bytes of device memory to make room for: all views, and one step's pictures and splats."""
    pixels = views.masks[0].numel()
    if config.resolution:
        pixels = min(pixels, config.resolution**2)
    step = config.max_splats * BYTES_PER_SPLAT + pixels * BYTES_PER_PIXEL
    return views.images.numel() * 16 + config.views_per_step * step
