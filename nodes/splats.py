"""V3D Fit Splat: posed views become a Gaussian splat; V3D Render Splat: its exact pictures."""

from __future__ import annotations

import json
from typing import Any

import torch
from comfy_api.v0_0_2 import io

from ..v3d_core.cameras import resize_cameras
from ..v3d_core.holdout import hold_out_every
from ..v3d_core.images import depth_picture
from ..v3d_core.splats.config import SPLAT_PRESETS, SplatFitConfig, splat_preset
from ..v3d_core.splats.engines import choose_engine
from ..v3d_core.splats.fit import fit_splats
from ..v3d_core.splats.raster import render_splats
from ..v3d_core.structures import Cameras, Views
from .convert import CPU, colour_from_hex, splats_from_host, splats_to_host, to_host
from .finish import finishable
from .fit_progress import FitProgress
from .runtime import NodeProgress, compute_device, fitting, named_errors, owned, tell
from .sockets import V3DCameras, V3DViews
from .turntable import turn_frames, turn_views

# Bytes per Gaussian and per pixel in each picture of a step, with gradients. torch: measured between
# 10,000 and 40,000 splats at 256 and 512 px (3.3 KiB and 0.7 KiB), rounded up. The others keep a
# record, its gradient and some pairs, and a handful of floats a pixel (590 MB measured for 18
# pictures of 512 px and 50,000 splats, all views included).
BYTES_PER_SPLAT = {"torch": 4096, "warp": 256, "gsplat": 256}
BYTES_PER_PIXEL = {"torch": 1024, "warp": 128, "gsplat": 256}

FRAMES = {"auto": None, "agree": "off", "disagree": "on"}  # widget -> SplatFitConfig.align
DEPTHS = ("near is white", "scene units")


class V3DFitSplat(io.ComfyNode):
    """Fit 3D Gaussians to posed views."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DFitSplat",
            display_name="V3D Fit Splat",
            category="3d/V3D",
            has_intermediate_output=True,
            description="Fits a 3D Gaussian splat to posed views of one object. Shows the splat "
            "while it grows; Cancel stops it at once, Finish now keeps what there is.",
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
                    advanced=True,
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
                # Later ones are optional, so that prompts saved without them still run.
                io.Combo.Input(
                    "frames",
                    options=list(FRAMES),
                    default="auto",
                    optional=True,
                    tooltip="Do the frames show exactly one object? disagree: from a video model; "
                    "they are aligned while fitting, which takes longer. agree: renders and "
                    "photographs, taken as they are. auto: looks and decides.",
                ),
                io.Float.Input(
                    "time_budget",
                    default=0.0,
                    min=0.0,
                    max=36_000.0,
                    step=1.0,
                    optional=True,
                    tooltip="Seconds the fit may take; it makes the best of them. More is better "
                    "up to the preset's own time. 0 = no limit.",
                ),
                io.Int.Input(
                    "hold_out",
                    default=0,
                    min=0,
                    max=1000,
                    optional=True,
                    tooltip="Hold out every Nth view: it is not fitted, and the report says how "
                    "well the splat shows it (psnr_test). Smaller N measures better and fits "
                    "worse; 6 is a fair start. 0 = fit all views.",
                ),
                io.Float.Input(
                    "lpips_weight",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="How much the perceptual distance LPIPS counts while fitting: crisper "
                    "detail, lower PSNR, slower. Needs `pip install lpips` and its weights. 0 = "
                    "the preset's.",
                ),
            ],
            outputs=[
                io.Splat.Output("splat", tooltip="For Render Splat, Splat to File, V3D Mesh..."),
                io.String.Output("report", tooltip="Figures of the fit as JSON."),
                V3DViews.Output(
                    "views",
                    tooltip="The views as they were fitted, aligned where they disagreed and "
                    "without the held-out ones; for V3D Mesh from Splat.",
                ),
            ],
        )

    @classmethod
    @named_errors
    def execute(cls, views, preset, hold_out=0, **widgets) -> io.NodeOutput:
        device = compute_device()
        config = config_from_widgets(preset, device.type, **widgets)
        engine = choose_engine(device, torch.float32).name
        fitted, held_out = hold_out_every(views, hold_out)
        room = memory_estimate(views, config, engine)
        progress = FitProgress()
        with fitting(room) as device, finishable() as finish:
            fit = fit_splats(
                owned(fitted, device),
                config,
                progress=progress,
                test_views=None if held_out is None else owned(held_out, device),
                finish=finish,
                figures=progress.figures,
            )
            splat, aligned = splats_to_host(fit.splats), fit.views.to(CPU)
        tell("V3D Fit Splat", summary(fit.report))
        return io.NodeOutput(
            splat, json.dumps(fit.report, indent=2), aligned, ui=turn_views(aligned)
        )


def config_from_widgets(
    preset: str,
    device_type: str,
    *,
    seed: int,
    sh_degree: int,
    frames: str = "auto",
    time_budget: float = 0.0,
    **widgets: float,
) -> SplatFitConfig:
    """The preset with every widget that is not 0 (sh_degree: not negative) put over it."""
    changes = {name: value or None for name, value in widgets.items()}
    return splat_preset(preset, device_type).with_changes(
        seed=seed,
        sh_degree=None if sh_degree < 0 else sh_degree,
        align=FRAMES[frames],
        seconds=time_budget or None,
        **changes,
    )


def summary(report: dict[str, Any]) -> str:
    """The figures of a fit in one line."""
    quality = f"{report['psnr_train']:.2f} dB"
    if "psnr_test" in report:
        quality += f" ({report['psnr_test']:.2f} dB held out)"
    early = "" if report["stopped"] == "all steps" else f", stopped: {report['stopped']}"
    return f"{report['splats']:,} splats, {quality}, {report['seconds']:.1f} s{early}"


def memory_estimate(views: Views, config: SplatFitConfig, engine: str) -> int:
    """Bytes of device memory to make room for: all views, and one step's pictures and splats."""
    pixels = views.masks[0].numel()
    if config.resolution:
        pixels = min(pixels, config.resolution**2)
    step = config.max_splats * BYTES_PER_SPLAT[engine] + pixels * BYTES_PER_PIXEL[engine]
    pictures = min(config.views_per_step, len(views))
    return views.images.numel() * 16 + pictures * step


class V3DRenderSplat(io.ComfyNode):
    """Render a splat as the fit sees it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DRenderSplat",
            display_name="V3D Render Splat",
            category="3d/V3D",
            has_intermediate_output=True,
            description="Renders a splat from every camera exactly as it was fitted: sRGB, all "
            "spherical harmonics, the centre of pixels where V3D puts it. For scores and for "
            "pictures to work on; core's Render Splat is for turntables and styles.",
            search_aliases=["gaussian splatting", "3dgs render", "novel view", "splat to image"],
            inputs=[
                io.Splat.Input("splat", tooltip="One splat, from V3D Fit Splat or any other node."),
                V3DCameras.Input("cameras", tooltip="From V3D Orbit Cameras or V3D Load Views."),
                io.Color.Input(
                    "background",
                    default="#ffffff",
                    tooltip="Colour behind the splat. White is what scores of orbits are taken on.",
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=8192,
                    step=8,
                    tooltip="Longer side of the pictures in pixels; more is slower, and shows no "
                    "more detail than was fitted. 0 = the cameras' own size.",
                ),
                io.Combo.Input(
                    "depth_is",
                    options=list(DEPTHS),
                    default=DEPTHS[0],
                    advanced=True,
                    tooltip="near is white: a picture; the nearest point of all frames is 1, the "
                    "farthest and the background 0. scene units: distances along the view "
                    "direction to compute with, 0 = no surface.",
                ),
            ],
            outputs=[
                io.Image.Output("image", tooltip="One picture per camera."),
                io.Mask.Output("mask", tooltip="Coverage, 1 = object."),
                io.Image.Output("depth", tooltip="Depth of the surface; see depth_is."),
            ],
        )

    @classmethod
    @named_errors
    def execute(cls, splat, cameras, background, resolution, depth_is) -> io.NodeOutput:
        colour, cameras = colour_from_hex(background), cameras_at(cameras, resolution)
        splats = splats_from_host(splat)
        pixels = cameras.width * cameras.height
        memory = len(splats) * BYTES_PER_SPLAT["torch"] + pixels * BYTES_PER_PIXEL["torch"]
        progress, pictures = NodeProgress(), []
        with fitting(memory) as device:
            splats = owned(splats, device)
            for index in range(len(cameras)):
                rendered = render_splats(splats, cameras[index], colour)
                pictures.append([rendered.colours, rendered.alphas, rendered.depths])
                progress(index + 1, len(cameras), preview=lambda: pictures[-1][0][0])
            image, mask, depth = (torch.cat(parts) for parts in zip(*pictures, strict=True))
        grey = depth_picture(depth) if depth_is == DEPTHS[0] else depth[..., None].expand_as(image)
        frames = to_host(image)
        turn = turn_frames(frames, cameras)
        return io.NodeOutput(frames, to_host(mask), to_host(grey), ui=turn)


def cameras_at(cameras: Cameras, resolution: int) -> Cameras:
    """The cameras with pictures of that longer side in pixels; 0 = as they are."""
    if resolution == 0:
        return cameras
    scale = resolution / max(cameras.width, cameras.height)
    width, height = (max(1, round(scale * side)) for side in (cameras.width, cameras.height))
    return resize_cameras(cameras, width, height)
