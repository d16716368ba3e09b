"""What the orbit scrubber on a node turns: all frames of an orbit in one small picture."""

from __future__ import annotations

import math
import uuid
from pathlib import Path

import folder_paths
import torch
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..v3d_core.images import composite, contact_sheet
from ..v3d_core.structures import Cameras, Views
from .runtime import log, picture_from_tensor

KEY = "v3d_orbit"  # in a node's ui output; web/orbit_scrubber.js looks for it
FRAME_SIDE = 256  # px, longer side of a frame in the sheet
MOST_FRAMES = 64  # of an orbit that are shown, evenly chosen; a sheet of 2048 px
JPEG_QUALITY = 85


def turn_views(views: Views) -> dict | None:
    """The ui output for views, on white."""
    return turn_frames(views.images, views.cameras, views.masks)


def turn_frames(
    frames: Tensor,  # [V, H, W, 3]
    cameras: Cameras,
    masks: Tensor | None = None,  # [V, H, W]
) -> dict | None:
    """The ui output for frames and their cameras; None where nobody looks.

    The sheet is a temporary file, which ComfyUI serves and deletes as it does its own previews.
    """
    if get_executing_context() is None:  # not run by ComfyUI's queue
        return None
    count = len(frames)
    shown = torch.linspace(0, count - 1, min(count, MOST_FRAMES)).round().long().tolist()
    small = torch.cat(
        [_shrink(frames[i : i + 1], None if masks is None else masks[i : i + 1]) for i in shown]
    )
    columns = math.ceil(math.sqrt(len(shown)))
    sheet = picture_from_tensor(contact_sheet(small, columns, gap=0))
    folder = folder_paths.get_temp_directory()
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            f"V3D_orbit_{uuid.uuid4().hex[:8]}", folder
        )
        path = Path(folder) / f"{name}_{counter:05}_.jpg"
        sheet.save(path, quality=JPEG_QUALITY)
    except OSError as error:  # a picture to look at is no reason to lose what was computed
        log.warning("the frames cannot be shown on the node: %s", error)
        return None
    azimuths, elevations = view_angles(cameras)
    turn = {
        # a file inside, not beside: the front end lists files that stand beside as results
        "sheet": {"filename": path.name, "subfolder": subfolder, "type": "temp"},
        "columns": columns,
        "width": small.shape[2],
        "height": small.shape[1],
        "total": count,
        "frames": [
            {"index": i, "azimuth": round(azimuths[i], 1), "elevation": round(elevations[i], 1)}
            for i in shown
        ],
    }
    return {KEY: [turn]}


def view_angles(cameras: Cameras) -> tuple[list[float], list[float]]:
    """Azimuths, 0 to 360, and elevations in degrees, by the directions the cameras look in."""
    backward = -cameras.camera_to_world[:, :3, 2]
    azimuths = torch.atan2(backward[:, 0], backward[:, 2]).rad2deg() % 360
    return azimuths.tolist(), backward[:, 1].clamp(-1, 1).asin().rad2deg().tolist()


def _shrink(frame: Tensor, mask: Tensor | None) -> Tensor:  # [1, H, W, 3], [1, H, W]
    """A frame on white that fits the sheet, on the CPU."""
    height, width = frame.shape[1:3]
    step = max(1, max(height, width) // (2 * FRAME_SIDE))  # fine enough for what is left to do
    frame = frame[:, ::step, ::step, :3].float()
    if mask is not None:
        frame = composite(frame, mask[:, ::step, ::step].float())
    scale = min(1.0, FRAME_SIDE / max(height, width))
    size = [max(1, round(scale * side)) for side in (height, width)]
    small = torch.nn.functional.interpolate(frame.movedim(-1, 1), size=size, mode="area")
    return small.movedim(1, -1).cpu()
