"""V3D Refine Texture: a texture for any mesh from posed views."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch
from comfy_api.v0_0_2 import io

from ..v3d_core.mesh.asset import AssetConfig, part_of, put_texture
from ..v3d_core.mesh.texture_checks import needed_bytes
from .convert import CPU, meshes_from_host, meshes_to_host, to_host
from .runtime import NodeProgress, fitting, named_errors, owned, tell
from .sockets import V3DViews

DEFAULTS = AssetConfig()
FRAMES = {"auto": "auto", "agree": "off", "disagree": "on"}


class V3DRefineTexture(io.ComfyNode):
    """Unwrap a mesh and fit a texture with which it looks like the views."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DRefineTexture",
            display_name="V3D Refine Texture",
            category="3d/V3D",
            description="Gives any mesh a texture from posed views: unwraps it, lays views that "
            "disagree onto its surface, and solves for the texels with which it looks most like "
            "them. What no view saw is filled from around and marked.",
            search_aliases=[
                "texture from views", "bake texture", "project texture", "unwrap", "uv",
                "texture map", "textured mesh", "multiview texture",
            ],
            inputs=[
                io.Mesh.Input(
                    "mesh",
                    tooltip="In the frame of the views' cameras. V3D Clean Mesh makes heavy ones "
                    "light first: unwrapping takes seconds for 20,000 faces, minutes for 500,000.",
                ),
                V3DViews.Input("views", tooltip="Pictures with masks and cameras of the object."),
                io.Int.Input(
                    "texture_size",
                    default=DEFAULTS.texture_size,
                    min=64,
                    max=4096,
                    step=64,
                    tooltip="Texels along a side. 1024 holds what 18 views of 512 px show; more "
                    "serves larger views, and takes memory with the square.",
                ),
                io.Combo.Input(
                    "frames",
                    options=list(FRAMES),
                    default="auto",
                    tooltip="Whether the views fit the surface as they are. disagree: frames of a "
                    "video model, which drift by pixels; they are laid on the surface before they "
                    "are mixed. agree: renders, photographs. auto: looks and decides.",
                ),
                io.Boolean.Input(
                    "new_uvs",
                    default=DEFAULTS.unwrap,
                    tooltip="Unwrap anew even if the mesh has uvs. Off keeps those it has.",
                ),
                io.Int.Input(
                    "num_views",
                    default=0,
                    min=0,
                    max=4096,
                    advanced=True,
                    tooltip="Use only so many views, evenly spaced. 0 = all.",
                ),
                io.Float.Input(
                    "lpips_weight",
                    default=DEFAULTS.lpips_weight,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Of the perceptual distance in the extra steps; V3D's own is 1. Needs "
                    "the lpips package and iterations.",
                ),
                io.Int.Input(
                    "iterations",
                    default=DEFAULTS.iterations,
                    min=0,
                    max=100_000,
                    advanced=True,
                    tooltip="Extra steps of Adam after the solver, one view each; V3D's own is "
                    "500. Without LPIPS the solver alone is as good.",
                ),
                io.Boolean.Input(
                    "refine_geometry",
                    default=DEFAULTS.refine_geometry,
                    optional=True,
                    advanced=True,
                    tooltip="First move vertices to where the views see the surface. Sharper "
                    "textures on fitted meshes; nothing where views disagree.",
                ),
            ],
            outputs=[
                io.Mesh.Output("mesh", tooltip="With uvs and texture, for V3D Export Mesh, ..."),
                io.Image.Output("texture", tooltip="The texture alone, sRGB."),
                io.Mask.Output("unseen", tooltip="Texels that no view saw, filled from around."),
                io.String.Output("report", tooltip="Figures as JSON."),
            ],
        )  # fmt: skip

    @classmethod
    @named_errors
    def execute(
        cls,
        mesh,
        views,
        texture_size,
        frames,
        new_uvs,
        num_views,
        lpips_weight,
        iterations,
        refine_geometry=DEFAULTS.refine_geometry,
    ) -> io.NodeOutput:
        config = AssetConfig(
            faces=0,
            texture_size=texture_size,
            align=FRAMES[frames],
            unwrap=new_uvs,
            num_views=num_views or None,
            lpips_weight=lpips_weight,
            iterations=iterations,
            refine_geometry=refine_geometry,
        )
        items = meshes_from_host(mesh)
        done = []
        with fitting(round(needed_bytes(texture_size, views))) as device:
            pictures = owned(views, device)
            progress = NodeProgress()
            for index, item in enumerate(items):
                part = part_of(progress, index / len(items), (index + 1) / len(items))
                try:
                    asset = put_texture(owned(item, device), pictures, config, progress=part)
                except ValueError as error:
                    raise ValueError(f"mesh {index} of {len(items)}: {error}") from error
                # core's writer keeps both, and viewers multiply them
                textured = dataclasses.replace(asset.mesh.to(CPU), vertex_colours=None)
                done.append((textured, asset.unseen.to(CPU), asset.report))
        meshes, unseen, reports = zip(*done, strict=True)
        tell("V3D Refine Texture", "; ".join(map(summary, reports)))
        textures = torch.stack([one.texture for one in meshes])
        shown = reports[0] if len(reports) == 1 else reports
        return io.NodeOutput(
            meshes_to_host(meshes),
            to_host(textures),
            to_host(torch.stack(unseen)),
            json.dumps(shown, indent=2),
        )


def summary(report: dict[str, Any]) -> str:
    """The figures in one line."""
    texture = report["texture"]
    return (
        f"{texture['resolution']} px from {texture['views']} views, {texture['db']:.2f} dB, "
        f"{100 * texture['seen_share']:.0f} % seen, {report['seconds']:.1f} s"
    )
