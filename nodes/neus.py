"""V3D Fit NeuS: posed views become a signed-distance field; V3D Extract Mesh: its surface."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from comfy_api.v0_0_2 import io

from ..v3d_core.neus.config import NEUS_PRESETS, NeusFitConfig, for_aligned_frames, neus_preset
from ..v3d_core.neus.extract import DEFAULT_RESOLUTION, ExtractConfig, extract_mesh
from ..v3d_core.neus.fit import fit_neus
from ..v3d_core.neus.guides import SPLAT_NORMALS_UNTIL, guided
from ..v3d_core.neus.store import load_field, save_field
from ..v3d_core.normals import NORMALS_CONVENTIONS
from ..v3d_core.splats.consensus import align_frames
from ..v3d_core.splats.raster import render_splats
from ..v3d_core.structures import Views
from .convert import CPU, mesh_to_host, normals_from_image, splats_from_host
from .finish import finishable
from .fit_progress import FitProgress
from .paths import IN_OUTPUT, field_file, field_files, file_state, output_path, state_or_reason
from .runtime import NodeProgress, compute_device, fitting, named_errors, owned, tell
from .sockets import V3DSDF, V3DViews
from .turntable import turn_views

FRAMES = {"auto": "auto", "agree": "off", "disagree": "on"}  # widget -> align
DEFAULTS = ExtractConfig()
BYTES_PER_SAMPLE = 4096  # of a ray: features, hidden units and their gradients
BYTES_PER_PIXEL = 32  # picture, mask, normals and what is drawn from them
EXTRACT_BYTES = 1 << 30  # a batch of points in the field's network


class V3DFitNeuS(io.ComfyNode):
    """Fit a surface to posed views."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DFitNeuS",
            display_name="V3D Fit NeuS",
            category="3d/V3D",
            has_intermediate_output=True,
            description="Fits a closed surface (a signed-distance field with colours) to posed "
            "views of one object. Shows its normals while it grows; Cancel stops it at once, "
            "Finish now keeps what there is.",
            search_aliases=["neus", "sdf", "images to mesh", "surface reconstruction", "nerf"],
            inputs=[
                V3DViews.Input("views", tooltip="From V3D Posed Views or V3D Load Views."),
                io.Image.Input(
                    "normals",
                    optional=True,
                    tooltip="Normal maps of the same frames, from any estimator: the surface "
                    "follows them as well. They replace normals that the views carry.",
                ),
                io.Splat.Input(
                    "splat",
                    optional=True,
                    tooltip="A splat of the same views, from V3D Fit Splat: the surface starts "
                    "from it instead of from the outlines, which do not know hollows.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(NEUS_PRESETS),
                    default="normal",
                    tooltip="draft: a quick look. normal: good for most orbits. best: finer and "
                    "several times slower. The help page has their numbers.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="The same seed gives the same surface on the CPU, and nearly the same "
                    "on a GPU.",
                ),
                io.Combo.Input(
                    "frames",
                    options=list(FRAMES),
                    default="auto",
                    tooltip="Do the frames show exactly one object? disagree: from a video model; "
                    "they are aligned before the fit, which takes longer. agree: renders and "
                    "photographs, taken as they are. auto: looks and decides.",
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
                    "resolution",
                    default=0,
                    min=0,
                    max=4096,
                    step=16,
                    advanced=True,
                    tooltip="Longer side in pixels at which the views are fitted; larger images "
                    "are scaled down. More is sharper, at the same time a step. 0 = the preset's.",
                ),
                io.Combo.Input(
                    "normals_convention",
                    options=list(NORMALS_CONVENTIONS),
                    default="opengl",
                    advanced=True,
                    tooltip="Axes of the normal maps. opengl: x right, y up, z to the viewer, the "
                    "usual blue maps. opencv: x right, y down, z away from the viewer.",
                ),
                io.Boolean.Input(
                    "splat_normals",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="With a splat and without normal maps: follow the normals of the "
                    "splat's depth, less and less. Finds hollows that colours alone do not; a "
                    "round, closed object is as exact without. Left out where the frames had to "
                    "be aligned.",
                ),
                io.Boolean.Input(
                    "views_between",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Fit the splat's pictures from half-way between the views as well. "
                    "Steadier where few views see a part, softer detail. Needs a splat.",
                ),
            ],
            outputs=[
                V3DSDF.Output("sdf", tooltip="The surface, for V3D Extract Mesh and Save SDF."),
                io.String.Output("report", tooltip="Figures of the fit as JSON."),
                V3DViews.Output(
                    "views",
                    tooltip="The views as they were fitted, aligned where they disagreed, with "
                    "the normals.",
                ),
            ],
        )

    @classmethod
    @named_errors
    def execute(
        cls, views, preset, seed, frames, steps, resolution, normals_convention,
        normals=None, splat=None, splat_normals=True, views_between=False,
    ) -> io.NodeOutput:  # fmt: skip
        if splat is None and views_between:
            raise ValueError(
                "views_between needs a splat; connect one from V3D Fit Splat, or switch it off"
            )
        if normals is not None:
            decoded = normals_from_image(normals, views.masks, normals_convention)
            views = replace(views, normals=decoded.to(views.images))
        config = config_from_widgets(preset, compute_device().type, seed, steps, resolution)
        with fitting(memory_estimate(views, config)) as device, finishable() as finish:
            views = owned(views, device)
            progress = FitProgress()
            consensus = align_frames(
                views, FRAMES[frames], seed=seed, progress=progress, finish=finish
            )
            if consensus is not None:
                views, config = consensus.views, for_aligned_frames(config)
            supervision, depths = views, None
            if splat is not None:
                splats = owned(splats_from_host(splat), device)
                # a splat of frames that disagreed has ripples of its own
                splat_normals = splat_normals and consensus is None
                if splat_normals and views.normals is None:
                    config = config.with_changes(normal_until=SPLAT_NORMALS_UNTIL)
                supervision, depths = guided(
                    views, splats, render_splats, normals=splat_normals, between=views_between
                )
            fit = fit_neus(
                supervision,
                config,
                depths=depths,
                progress=progress,
                finish=finish,
                figures=progress.figures,
            )
            field, fitted = fit.field.to(CPU), supervision[: len(views)].to(CPU)
        report = {**fit.report, "frames": "agree" if consensus is None else "disagree"}
        if consensus is not None:
            report["per_view"] = consensus.per_view
        tell("V3D Fit NeuS", summary(report))
        return io.NodeOutput(field, json.dumps(report, indent=2), fitted, ui=turn_views(fitted))


def config_from_widgets(
    preset: str, device_type: str, seed: int, steps: int, resolution: int
) -> NeusFitConfig:
    """The preset with every widget that is not 0 put over it."""
    changes = {"steps": steps or None, "resolution": resolution or None}
    return neus_preset(preset, device_type).with_changes(seed=seed, **changes)


def summary(report: dict[str, Any]) -> str:
    """The figures of a fit in one line."""
    early = "" if report["stopped"] == "all steps" else f", stopped: {report['stopped']}"
    return (
        f"{report['steps']} steps, {report['psnr_train']:.2f} dB, {report['seconds']:.1f} s{early}"
    )


def memory_estimate(views: Views, config: NeusFitConfig) -> int:
    """Bytes of device memory to make room for: all views, and the samples of one step."""
    pictures = views.masks.numel() * BYTES_PER_PIXEL
    return pictures + config.rays * config.samples * BYTES_PER_SAMPLE


class V3DExtractMesh(io.ComfyNode):
    """Marching cubes over a fitted field."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DExtractMesh",
            display_name="V3D Extract Mesh",
            category="3d/V3D",
            description="Takes a closed, coloured mesh out of a fitted surface, at any resolution "
            "and without fitting again.",
            search_aliases=["sdf to mesh", "marching cubes", "isosurface", "neus mesh", "surface"],
            inputs=[
                V3DSDF.Input("sdf", tooltip="From V3D Fit NeuS or V3D Load SDF."),
                io.Int.Input(
                    "resolution",
                    default=DEFAULT_RESOLUTION,
                    min=16,
                    max=1024,
                    step=16,
                    tooltip="Voxels along the object's longest side. More shows finer detail, up "
                    "to what was fitted; time, memory and file grow with the square.",
                ),
                io.Float.Input(
                    "min_part",
                    default=DEFAULTS.min_component_share,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Separate parts below this share of the largest part's area are "
                    "dropped. 0 keeps every speck, 1 keeps the largest part only.",
                ),
                io.Boolean.Input(
                    "colours",
                    default=DEFAULTS.vertex_colours,
                    advanced=True,
                    tooltip="Vertex colours from the fitted field. Off: shape alone, a smaller "
                    "file.",
                ),
            ],
            outputs=[io.Mesh.Output("mesh", tooltip="For Save 3D Model (GLB), V3D Export Mesh...")],
        )

    @classmethod
    @named_errors
    def execute(cls, sdf, resolution, min_part, colours) -> io.NodeOutput:
        config = ExtractConfig(min_component_share=min_part, vertex_colours=colours)
        with fitting(EXTRACT_BYTES) as device:
            field = sdf if sdf.device == device else copy.deepcopy(sdf).to(device)
            mesh = extract_mesh(field, resolution, config=config, progress=NodeProgress())
        tell("V3D Extract Mesh", f"{len(mesh.vertices):,} vertices, {len(mesh.faces):,} faces")
        return io.NodeOutput(mesh_to_host(mesh))


class V3DSaveSDF(io.ComfyNode):
    """A fitted field as a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DSaveSDF",
            display_name="V3D Save SDF",
            category="3d/V3D",
            description="Saves a fitted surface in the output folder as .safetensors, so that "
            "meshes can be taken out of it later without fitting again.",
            search_aliases=["save neus", "save field", "export sdf", "safetensors"],
            is_output_node=True,
            inputs=[
                V3DSDF.Input("sdf", tooltip="From V3D Fit NeuS."),
                io.String.Input(
                    "filename_prefix",
                    default="v3d/field",
                    tooltip="Name below ComfyUI's output folder, without number and suffix; may "
                    "hold folders and %date% marks.",
                ),
            ],
            outputs=[io.String.Output("file", tooltip="The file as V3D Load SDF lists it.")],
        )

    @classmethod
    @named_errors
    def execute(cls, sdf, filename_prefix) -> io.NodeOutput:
        path, subfolder = output_path(filename_prefix, ".safetensors")
        save_field(path, sdf)
        name = (Path(subfolder) / path.name).as_posix() + IN_OUTPUT
        tell("V3D Save SDF", f"saved {name}")
        return io.NodeOutput(name, ui={"text": (name,)})


class V3DLoadSDF(io.ComfyNode):
    """A fitted field from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DLoadSDF",
            display_name="V3D Load SDF",
            category="3d/V3D",
            description="Loads a surface that V3D Save SDF or the command v3d fit-neus saved.",
            search_aliases=["load neus", "load field", "import sdf", "safetensors"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=field_files(),
                    tooltip=".safetensors files below input, and below output, marked [output]. "
                    "Press R after adding one.",
                ),
            ],
            outputs=[V3DSDF.Output("sdf", tooltip="For V3D Extract Mesh.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file) -> str:
        return state_or_reason(lambda: file_state(field_file(file)))

    @classmethod
    @named_errors
    def execute(cls, file) -> io.NodeOutput:
        with torch.inference_mode(False):  # the field outlives the prompt
            return io.NodeOutput(load_field(field_file(file)))
