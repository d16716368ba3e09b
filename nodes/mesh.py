"""V3D Mesh from Splat and V3D Export Mesh."""

from __future__ import annotations

import json
from pathlib import Path

from comfy.cli_args import args
from comfy_api.v0_0_2 import Types, io

from ..v3d_core.formats.mesh_files import write_mesh
from ..v3d_core.mesh.config import SplatMeshConfig
from ..v3d_core.mesh.from_splats import mesh_from_splats
from ..v3d_core.splats.raster import render_splats
from .convert import is_unlit, mesh_to_host, meshes_from_host, splats_from_host
from .paths import output_path
from .runtime import NodeProgress, fitting, named_errors, owned, tell
from .sockets import V3DViews

DEFAULTS = SplatMeshConfig()
FORMATS = ("glb", "obj", "ply", "stl", "usdz")
SHADINGS = ("as the mesh says", "unlit", "lit")
PRINT_SIZE_MM = 100.0  # fits every printer; world units would be a few millimetres
VOXEL_BYTES = 32  # distance, weight and the sums of one voxel while views are fused


class V3DMeshFromSplat(io.ComfyNode):
    """Fuse a splat's depth into a surface."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DMeshFromSplat",
            display_name="V3D Mesh from Splat",
            category="3d/V3D",
            description="Makes a closed mesh with vertex colours from a splat: renders its depth "
            "from many sides, fuses it and extracts the surface.",
            search_aliases=["splat to mesh", "tsdf", "marching cubes", "extract mesh", "surface"],
            inputs=[
                io.Splat.Input("splat", tooltip="One splat, from V3D Fit Splat or any other node."),
                V3DViews.Input(
                    "views",
                    optional=True,
                    tooltip="The views the splat was fitted from: depth is taken where the splat "
                    "is known to be right, and colours come from the pictures. Without them, "
                    "cameras all around the splat are used.",
                ),
                io.Int.Input(
                    "resolution",
                    default=DEFAULTS.resolution,
                    min=16,
                    max=1024,
                    step=8,
                    tooltip="Voxels along the object's longest side. More shows finer detail and "
                    "more of the splat's noise; time and memory grow with the cube.",
                ),
                io.Int.Input(
                    "smooth",
                    default=DEFAULTS.smooth_iterations,
                    min=0,
                    max=1000,
                    tooltip="Smoothing steps that keep the volume (Taubin). More removes ripples "
                    "and rounds sharp edges; 0 keeps the raw surface.",
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
            ],
            outputs=[io.Mesh.Output("mesh", tooltip="For Save 3D Model (GLB), V3D Export Mesh...")],
        )

    @classmethod
    @named_errors
    def execute(cls, splat, resolution, smooth, min_part, views=None) -> io.NodeOutput:
        config = SplatMeshConfig(
            resolution=resolution, smooth_iterations=smooth, min_component_share=min_part
        )
        with fitting(resolution**3 * VOXEL_BYTES) as device:
            splats = owned(splats_from_host(splat), device)
            views = None if views is None else owned(views, device)
            mesh = mesh_from_splats(
                splats,
                None if views is None else views.cameras,
                config,
                render=render_splats,
                views=views,
                progress=NodeProgress(),
            )
            return io.NodeOutput(mesh_to_host(mesh))


class V3DExportMesh(io.ComfyNode):
    """Write a mesh in one of the formats other programs read."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DExportMesh",
            display_name="V3D Export Mesh",
            category="3d/V3D",
            description="Saves a mesh in the output folder. glb and usdz keep everything in one "
            "file, obj and ply keep it with a picture beside them, stl is shape only.",
            search_aliases=["save mesh", "obj", "stl", "ply", "glb", "usdz", "3d print", "blender"],
            is_output_node=True,
            inputs=[
                io.Mesh.Input("mesh", tooltip="Meshes of any node; each in a batch is a file."),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default=FORMATS[0],
                    tooltip="glb: Blender, engines, the web. obj: old programs, with .mtl and .png. "
                    "ply: MeshLab, research code, with .png. stl: printing, loses the colours. "
                    "usdz: iPhones and iPads, needs pip install usd-core.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="3d/V3D",
                    tooltip="Name below ComfyUI's output folder, without number and suffix; may "
                    "hold folders and %date% marks.",
                ),
                io.Combo.Input(
                    "shading",
                    options=list(SHADINGS),
                    default=SHADINGS[0],
                    advanced=True,
                    tooltip="glb and usdz. unlit shows the colours as they are: right for colours "
                    "taken from pictures, which contain their light already. lit adds the viewer's "
                    "lights on a matt surface.",
                ),
                io.Float.Input(
                    "print_size_mm",
                    default=PRINT_SIZE_MM,
                    min=0.0,
                    max=10000.0,
                    step=1.0,
                    advanced=True,
                    tooltip="stl: length of the longest side in millimetres, the unit slicers "
                    "assume. 0 writes the world's units as they are.",
                ),
            ],
            outputs=[io.File3DAny.Output("model_3d", tooltip="The (first) file, for Preview 3D.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    @named_errors
    def execute(
        cls,
        mesh,
        format,
        filename_prefix,
        shading=SHADINGS[0],
        print_size_mm=PRINT_SIZE_MM,
    ) -> io.NodeOutput:
        unlit = is_unlit(mesh) if shading == SHADINGS[0] else shading == "unlit"
        saved: list[tuple[Path, str]] = []
        for item in meshes_from_host(mesh):
            path, subfolder = output_path(filename_prefix, f".{format}")
            write_mesh(
                path,
                item,
                unlit,
                stl_size_mm=print_size_mm or None,
                glb_extras=_workflow_of(cls.hidden),
            )
            saved.append((path, subfolder))
        tell("V3D Export Mesh", "saved " + ", ".join(path.name for path, _ in saved))
        shown = [{"filename": p.name, "subfolder": s, "type": "output"} for p, s in saved]
        return io.NodeOutput(Types.File3D(str(saved[0][0]), format), ui={"3d": shown})


def _workflow_of(hidden) -> dict[str, str] | None:
    """The graph that made a file, as core's savers keep it, unless the host forbids it."""
    if args.disable_metadata or hidden is None:
        return None
    kept = {} if hidden.prompt is None else {"prompt": hidden.prompt}
    return {
        name: json.dumps(value) for name, value in (kept | (hidden.extra_pnginfo or {})).items()
    }
