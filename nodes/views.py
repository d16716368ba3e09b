"""V3D Posed Views: frames, masks and cameras become one value."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.v0_0_2 import io

from ..v3d_core.cameras import resize_cameras
from ..v3d_core.pose_views import pose_views
from ..v3d_core.structures import Cameras
from .convert import mask_to_plain, normals_from_image, pictures_from_image
from .masks import MASK_IS, object_masks
from .runtime import named_errors, tell
from .sockets import V3DCameras, V3DViews
from .turntable import turn_views

ASPECT_TOLERANCE = 1e-3  # 512x512 against 576x576 agrees; 512x512 against 512x513 does not


class V3DPosedViews(io.ComfyNode):
    """Images with their cameras; finds out what is object."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DPosedViews",
            display_name="V3D Posed Views",
            category="3d/V3D",
            has_intermediate_output=True,
            description="Joins frames with the cameras that made them and finds the object in each:"
            " by alpha, by masks, or by the flat background.",
            search_aliases=["multiview", "pose images", "attach cameras", "views"],
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="All frames of the orbit as one batch, in the order of the cameras. "
                    "A fourth channel is alpha and beats the masks, unless it is opaque everywhere.",
                ),
                V3DCameras.Input(
                    "cameras", tooltip="One camera for each image, in the same order."
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One mask for each image. Without masks and alpha, a flat background of "
                    "any colour is cut out.",
                ),
                io.Combo.Input(
                    "mask_is",
                    options=list(MASK_IS),
                    default=MASK_IS[0],
                    tooltip="What white means in the masks. Load Image makes background masks, "
                    "Remove Background object masks. auto: whatever makes the picture's border "
                    "background; say it yourself when the object touches most of the border.",
                ),
                io.Image.Input(
                    "normals",
                    optional=True,
                    tooltip="Normal maps in OpenGL colours (blue faces the camera), one for each "
                    "image. Used by surface fits only.",
                ),
            ],
            outputs=[V3DViews.Output("views", tooltip="Posed views for the V3D fits.")],
        )

    @classmethod
    @named_errors
    def execute(cls, images, cameras, mask_is, masks=None, normals=None) -> io.NodeOutput:
        frames, said = pictures_from_image(images), ""
        cameras = fit_cameras_to_images(cameras, len(frames), frames.shape[2], frames.shape[1])
        if masks is not None:
            masks, said = object_masks(mask_to_plain(masks), mask_is)
        posed = pose_views(frames, cameras, masks)
        views = posed.views
        if normals is not None:
            views = replace(views, normals=normals_from_image(normals, views.masks))
        size = f"{len(views)} views of {cameras.width}x{cameras.height}."
        tell("V3D Posed Views", " ".join(filter(None, [size, said, *posed.warnings])))
        return io.NodeOutput(views, ui=turn_views(views))


def fit_cameras_to_images(cameras: Cameras, count: int, width: int, height: int) -> Cameras:
    """The cameras in the pictures' size, when count and aspect ratio agree."""
    if count != len(cameras):
        raise ValueError(
            f"{count} images but {len(cameras)} cameras; each image needs its camera: set the "
            f"orbit of V3D Orbit Cameras to custom with {count} views, or give {len(cameras)} "
            "images as one batch"
        )
    if (width, height) == (cameras.width, cameras.height):
        return cameras
    if abs(width * cameras.height / (height * cameras.width) - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"images are {width}x{height} but the cameras are made for pictures shaped like "
            f"{cameras.width}x{cameras.height}; set width and height of V3D Orbit Cameras to "
            f"{width} and {height}, or crop the images"
        )
    return resize_cameras(cameras, width, height)
