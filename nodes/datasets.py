"""V3D Load Views and V3D Save Views: posed views from and to folders."""

from __future__ import annotations

from pathlib import Path

from comfy_api.v0_0_2 import io

from ..v3d_core.formats.atomic import atomic_folder
from ..v3d_core.formats.colmap import write_colmap_text
from ..v3d_core.formats.pictures import list_pictures, read_pictures
from ..v3d_core.formats.views import LoadedViews, has_split, load_views, save_views
from ..v3d_core.structures import Cameras
from .convert import image_from_views, to_host
from .paths import (
    DEMO,
    IN_OUTPUT,
    folder_state,
    output_path,
    state_or_reason,
    view_folder,
    view_folders,
)
from .runtime import named_errors, tell
from .sockets import V3DCameras, V3DViews
from .turntable import turn_views
from .views import fit_cameras_to_images

SPLITS = ("train", "test", "val")


class V3DLoadViews(io.ComfyNode):
    """Posed views from a folder below input or output, or the shipped demo."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DLoadViews",
            display_name="V3D Load Views",
            category="3d/V3D",
            has_intermediate_output=True,
            description="Loads frames with their cameras: a folder with a transforms.json, a folder"
            " of plain frames, or the demo orbit that comes with this pack.",
            search_aliases=[
                "load frames",
                "transforms.json",
                "nerf dataset",
                "demo",
                "image folder",
            ],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=view_folders(),
                    default=DEMO,
                    tooltip="Folders below input with frames or a transforms.json, and folders "
                    "that V3D Save Views made, marked [output]. Press R after adding one. Two come "
                    "with the pack: an orbit to fit, and the picture of try_it_now as frame 0 of "
                    "its true orbit.",
                ),
                V3DCameras.Input(
                    "cameras",
                    optional=True,
                    tooltip="For folders of plain frames: one camera for each, in the order of the "
                    "file names; without it the V3D orbit of 18. A folder with a transforms.json "
                    "keeps its own cameras.",
                ),
                io.Combo.Input(
                    "split",
                    options=list(SPLITS),
                    default=SPLITS[0],
                    advanced=True,
                    tooltip="Which transforms_<split>.json is read. test and val are for scoring, "
                    "not for fitting.",
                ),
            ],
            outputs=[
                V3DViews.Output("views", tooltip="For V3D Fit Splat and the other V3D nodes."),
                io.Image.Output("images", tooltip="The frames, white outside the object."),
                io.Mask.Output("masks", tooltip="1 = object."),
                V3DCameras.Output("cameras", tooltip="The cameras of the frames."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder, split, cameras=None) -> str:
        return state_or_reason(lambda: folder_state(view_folder(folder)))

    @classmethod
    @named_errors
    def execute(cls, folder, split, cameras=None) -> io.NodeOutput:
        loaded = load_folder(view_folder(folder), split, cameras)
        views = loaded.views
        size = f"{len(views)} views of {views.cameras.width}x{views.cameras.height}."
        tell("V3D Load Views", " ".join([size, *loaded.warnings]))
        images, masks = image_from_views(views), to_host(views.masks)
        return io.NodeOutput(views, images, masks, views.cameras, ui=turn_views(views))


def load_folder(folder: Path, split: str, cameras: Cameras | None) -> LoadedViews:
    """A data set with its own cameras, or plain frames with `cameras` fitted to their size."""
    if cameras is None or has_split(folder, split):
        return load_views(folder, split=split)
    paths = list_pictures(folder)
    height, width = read_pictures(paths[:1]).shape[1:3]
    fitted = fit_cameras_to_images(cameras, len(paths), width, height)
    return load_views(folder, split=split, cameras=fitted)


class V3DSaveViews(io.ComfyNode):
    """Posed views as a data set other programs read."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DSaveViews",
            display_name="V3D Save Views",
            category="3d/V3D",
            description="Saves posed views in the output folder: RGBA pictures, transforms.json, "
            "and COLMAP's text files if wanted.",
            search_aliases=["save dataset", "transforms.json", "colmap", "export cameras", "nerf"],
            is_output_node=True,
            inputs=[
                V3DViews.Input("views", tooltip="Views with cameras, from any V3D node."),
                io.String.Input(
                    "filename_prefix",
                    default="v3d/views",
                    tooltip="Name of the new folder below ComfyUI's output folder, without number; "
                    "may hold folders and %date% marks.",
                ),
                io.Boolean.Input(
                    "colmap",
                    default=False,
                    tooltip="Also write COLMAP's text files, for trainers that start from COLMAP.",
                ),
            ],
            outputs=[
                io.String.Output("folder", tooltip="The folder as V3D Load Views lists it."),
            ],
        )

    @classmethod
    @named_errors
    def execute(cls, views, filename_prefix, colmap) -> io.NodeOutput:
        path, subfolder = output_path(filename_prefix, "")
        with atomic_folder(path) as staging:  # both or none
            save_views(staging, views)
            if colmap:
                write_colmap_text(staging, views)
        name = (Path(subfolder) / path.name).as_posix() + IN_OUTPUT
        tell("V3D Save Views", f"saved {len(views)} views in {name}")
        return io.NodeOutput(name, ui={"text": (name,)})
