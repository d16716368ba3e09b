"""V3D Clean Mesh: any mesh repaired, smoothed and made lighter, watertight if it was."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

from comfy_api.v0_0_2 import io

from ..v3d_core.mesh.clean import clean
from ..v3d_core.mesh.clean_config import CleanConfig
from ..v3d_core.mesh.texture_colours import texture_as_colours
from ..v3d_core.neus.distance import field_distance
from ..v3d_core.structures import Mesh
from .convert import CPU, is_unlit, meshes_from_host, meshes_to_host
from .runtime import NodeProgress, fitting, named_errors, owned, tell
from .sockets import V3DSDF

DEFAULTS = CleanConfig()
FIELD_BYTES = 1 << 30  # a batch of points in the field's network


class V3DCleanMesh(io.ComfyNode):
    """Repair a mesh and give it a face budget."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DCleanMesh",
            display_name="V3D Clean Mesh",
            category="3d/V3D",
            description="Repairs any mesh (seams, holes, doubled and turned faces, specks, hidden "
            "parts), smooths it on request and decimates it to a face budget, with a bound on how "
            "far the surface moves. What was watertight stays so.",
            search_aliases=[
                "decimate", "simplify mesh", "reduce faces", "repair mesh", "fill holes",
                "smooth mesh", "remove components", "fix normals", "watertight",
            ],
            inputs=[
                io.Mesh.Input("mesh", tooltip="Meshes of any node, single or as a batch."),
                V3DSDF.Input(
                    "sdf",
                    optional=True,
                    tooltip="From V3D Fit NeuS, of the same object: vertices are moved onto its "
                    "surface, after smoothing and before decimation.",
                ),
                io.Int.Input(
                    "faces",
                    default=DEFAULTS.target_faces,
                    min=0,
                    max=10_000_000,
                    step=1000,
                    tooltip="Largest number of triangles. 20,000 suits engines and the web, a few "
                    "thousand phones. 0 keeps all, and with them uvs and texture.",
                ),
                io.Float.Input(
                    "max_error",
                    default=100 * DEFAULTS.max_error,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="In % of the mesh's diagonal: more triangles than asked are kept where "
                    "the surface would move farther than this. 100 = the budget alone counts.",
                ),
                io.Int.Input(
                    "smooth",
                    default=DEFAULTS.smooth_iterations,
                    min=0,
                    max=1000,
                    tooltip="Smoothing steps that keep the volume (Taubin). 5 to 20 remove "
                    "ripples and round sharp edges.",
                ),
                io.Int.Input(
                    "fill_holes",
                    default=DEFAULTS.max_hole_edges,
                    min=0,
                    max=100_000,
                    tooltip="Longest edge loop of a hole that is closed, in edges. 0 leaves all "
                    "open. The rim of a bowl or a sheet is no hole.",
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
                    "drop_hidden",
                    default=DEFAULTS.drop_hidden,
                    advanced=True,
                    tooltip="Drop closed parts wholly inside another one: nobody sees them. Off "
                    "keeps them, and the hollow of a hollow print.",
                ),
            ],
            outputs=[
                io.Mesh.Output("mesh", tooltip="For V3D Refine Texture, V3D Export Mesh, ..."),
                io.String.Output(
                    "report", tooltip="What was found and done, and the error, as JSON."
                ),
            ],
        )  # fmt: skip

    @classmethod
    @named_errors
    def execute(
        cls, mesh, faces, max_error, smooth, fill_holes, min_part, drop_hidden, sdf=None
    ) -> io.NodeOutput:
        config = CleanConfig(
            target_faces=faces,
            max_error=max_error / 100,
            smooth_iterations=smooth,
            max_hole_edges=fill_holes,
            min_component_share=min_part,
            drop_hidden=drop_hidden,
        )
        items = meshes_from_host(mesh)
        with fitting(FIELD_BYTES if sdf is not None else 0) as device:
            field = sdf if sdf is None or sdf.device == device else copy.deepcopy(sdf).to(device)
            distance = None if field is None else field_distance(field)
            progress = NodeProgress()
            done = [
                clean(owned(item, CPU), config, distance=distance, progress=progress)
                for item in items
            ]
        reports = [item.report for item in done]
        tell("V3D Clean Mesh", "; ".join(map(summary, reports)))
        shown = reports[0] if len(reports) == 1 else reports
        meshes = alike([item.mesh for item in done])
        # vertex colours without a material need unlit; a texture stays as it came
        unlit = None if meshes[0].texture is None else is_unlit(mesh)
        return io.NodeOutput(meshes_to_host(meshes, unlit), json.dumps(shown, indent=2))


def alike(meshes: list[Mesh]) -> list[Mesh]:
    """Uvs and texture on all meshes of a batch or on none, where textures become colours."""
    if all(mesh.uvs is None for mesh in meshes) or all(mesh.uvs is not None for mesh in meshes):
        return meshes
    colours = [
        mesh.vertex_colours if mesh.texture is None else texture_as_colours(mesh, mesh.vertices)
        for mesh in meshes
    ]
    return [
        dataclasses.replace(mesh, uvs=None, texture=None, vertex_colours=colour)
        for mesh, colour in zip(meshes, colours, strict=True)
    ]


def summary(report: dict[str, Any]) -> str:
    """The figures of one mesh in one line."""
    parts = [f"{report['faces_before']:,} faces became {report['faces']:,}"]
    if report["decimation_error"] is not None:
        parts.append(f"moved by {100 * report['decimation_error']['high']:.3f} % of the diagonal")
    if report["decimation_stopped_by"] is not None:
        reason = {"max_error": "max_error needs that many", "shape": "fewer would tear it"}
        parts.append(reason[report["decimation_stopped_by"]])
    for name, text in (
        ("holes_filled", "{:,} holes filled"),
        ("turned_faces", "{:,} faces turned"),
        ("small_part_faces", "{:,} faces of small parts dropped"),
        ("hidden_part_faces", "{:,} hidden faces dropped"),
    ):
        if report[name]:
            parts.append(text.format(report[name]))
    parts.append("watertight" if report["watertight"] else f"{report['open_edges']:,} open edges")
    if report["texture"] not in ("none", "kept"):
        parts.append(
            "the texture became vertex colours"
            if report["texture"] == "became vertex colours"
            else "uvs dropped"
        )
    return ", ".join(parts)
