"""V3D Orbit Cameras: the cameras that orbit frames were made with."""

from __future__ import annotations

import dataclasses

from comfy_api.v0_0_2 import io

from ..v3d_core.cameras import (
    ORBIT_PRESETS,
    SV3D_FOV_DEG,
    SV3D_ORBIT,
    V3D_ORBIT,
    Orbit,
    arc_orbit,
    orbit_cameras,
)
from .convert import camera_info_from_cameras, orbit_from_camera_info
from .runtime import log, named_errors
from .sockets import V3DCameras

DIRECTIONS = ("counter-clockwise", "clockwise")
SVD_FRAMES = 25  # SVD-XT's
FULL_TURN_DEG = 360.0
KEY = "v3d_cameras"  # in the node's definition and its ui output; web/camera_picker.js reads it


def _custom_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "views",
            default=V3D_ORBIT.num_views,
            min=1,
            max=1000,
            tooltip="Number of frames in the full turn; must equal the number of images. The first "
            "frame is not repeated at the end.",
        ),
        io.Float.Input(
            "radius",
            default=V3D_ORBIT.radius,
            min=0.01,
            max=1000.0,
            step=0.01,
            tooltip="Distance of the cameras from the object's centre, in scene units. Larger "
            "makes the same object larger. At 2 and 60 degrees the frame holds the unit sphere.",
        ),
        io.Float.Input(
            "elevation",
            default=V3D_ORBIT.elevation_deg,
            min=-89.0,
            max=89.0,
            step=0.5,
            tooltip="Height of the cameras in degrees, positive = looking down on the object.",
        ),
        io.Float.Input(
            "fov",
            default=V3D_ORBIT.fov_y_deg,
            min=1.0,
            max=120.0,
            step=0.1,
            tooltip="Vertical field of view in degrees. Too wide makes the object bulge, too "
            "narrow flattens it.",
        ),
        io.Float.Input(
            "azimuth",
            default=V3D_ORBIT.azimuth_start_deg,
            min=-360.0,
            max=360.0,
            step=0.5,
            advanced=True,
            tooltip="Where frame 0 stands, in degrees: 0 = in front (+Z), 90 = on the right (+X).",
        ),
        io.Combo.Input(
            "direction",
            options=list(DIRECTIONS),
            default=DIRECTIONS[0],
            advanced=True,
            tooltip="Which way the camera goes, seen from above. A turntable that turns clockwise "
            "under a fixed camera makes a counter-clockwise orbit. Wrong = mirrored depth.",
        ),
    ]


def _sv3d_p_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "elevation",
            default=SV3D_ORBIT.elevation_deg,
            min=-89.0,
            max=89.0,
            step=0.1,
            tooltip="The elevation in SV3D_Conditioning, in degrees; positive looks down on the "
            "object.",
        ),
        io.Int.Input(
            "frames",
            default=SV3D_ORBIT.num_views,
            min=2,
            max=1000,
            advanced=True,
            tooltip="The video_frames in SV3D_Conditioning, which asks for 360 / (frames - 1) "
            "degrees between them.",
        ),
    ]


def _svd_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "frames",
            default=SVD_FRAMES,
            min=2,
            max=1000,
            tooltip="Number of frames: 25 from SVD-XT, 14 from SVD.",
        ),
        io.Float.Input(
            "arc",
            default=FULL_TURN_DEG,
            min=-FULL_TURN_DEG,
            max=FULL_TURN_DEG,
            step=1.0,
            tooltip="Degrees from the first frame to the last, negative = clockwise seen from "
            "above. 360 = the last frame shows the first one's side again. SVD states no cameras: "
            "judge it by eye from the last frame.",
        ),
        io.Float.Input(
            "fov",
            default=V3D_ORBIT.fov_y_deg,
            min=1.0,
            max=120.0,
            step=0.1,
            tooltip="Vertical field of view in degrees, a guess as well: lower it when the object "
            "bulges, raise it when it is flat.",
        ),
    ]


class V3DOrbitCameras(io.ComfyNode):
    """Cameras of an orbit, as V3D, SV3D, core's SV3D node or the user define it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DOrbitCameras",
            display_name="V3D Orbit Cameras",
            category="3d/V3D",
            has_intermediate_output=True,
            description="The cameras that a full turn of frames was made with. Connect them with "
            "the frames to V3D Posed Views.",
            search_aliases=["orbit", "turntable", "camera poses", "sv3d cameras", "multiview"],
            inputs=[
                io.DynamicCombo.Input(
                    "orbit",
                    options=[
                        io.DynamicCombo.Option("v3d", []),
                        io.DynamicCombo.Option("sv3d", []),
                        io.DynamicCombo.Option("custom", _custom_inputs()),
                        io.DynamicCombo.Option("sv3d_p", _sv3d_p_inputs()),
                        io.DynamicCombo.Option("svd", _svd_inputs()),
                    ],
                    extra_dict={KEY: {name: orbit_figures(o) for name, o in ORBIT_PRESETS.items()}},
                    tooltip="Who made the frames. v3d: 18 frames, 20 degrees apart, radius 2, fov "
                    "60. sv3d (sv3d_u): 21 frames, fov 33.8, the input picture is the last one. "
                    "custom: your own orbit. sv3d_p: as SV3D_Conditioning asks that model, the "
                    "input picture first and last. svd: an arc that you judge by eye.",
                ),
                io.Int.Input(
                    "frame",
                    default=0,
                    min=0,
                    max=999,
                    tooltip="Which frame's camera leaves as camera_info, for Render Splat and the "
                    "previews.",
                ),
                io.Load3DCamera.Input(
                    "start_camera",
                    optional=True,
                    tooltip="Frame 0 stands here instead: its azimuth, elevation, distance and fov "
                    "replace those of the orbit. What it looks at becomes the centre.",
                ),
                io.Int.Input(
                    "width",
                    default=512,
                    min=8,
                    max=8192,
                    advanced=True,
                    tooltip="Picture width in pixels. Only the shape matters: V3D Posed Views fits "
                    "the cameras to images of the same aspect ratio.",
                ),
                io.Int.Input(
                    "height",
                    default=512,
                    min=8,
                    max=8192,
                    advanced=True,
                    tooltip="Picture height in pixels; see width.",
                ),
            ],
            outputs=[
                V3DCameras.Output("cameras", tooltip="All cameras of the orbit."),
                io.Load3DCamera.Output("camera_info", tooltip="The camera of the chosen frame."),
            ],
        )

    @classmethod
    @named_errors
    def execute(cls, orbit, frame, width, height, start_camera=None) -> io.NodeOutput:
        chosen = orbit_from_widgets(orbit)
        if start_camera is not None:
            chosen = orbit_from_camera_info(start_camera, chosen)
            log.info("V3D Orbit Cameras: frame 0 from the start camera, %s", chosen)
        if frame >= chosen.num_views:
            raise ValueError(
                f"frame {frame} does not exist, the orbit has {chosen.num_views} frames; "
                f"set frame to 0..{chosen.num_views - 1}"
            )
        cameras = orbit_cameras(chosen, width, height)
        info = camera_info_from_cameras(cameras, frame)
        return io.NodeOutput(cameras, info, ui={KEY: [orbit_figures(chosen)]})


def orbit_figures(orbit: Orbit) -> dict[str, float]:
    """What web/orbit_math.js calls an orbit; azimuth of frame 0 and step in degrees."""
    step = (
        FULL_TURN_DEG / orbit.num_views
        if orbit.azimuth_step_deg is None
        else orbit.azimuth_step_deg
    )
    return {
        "frames": orbit.num_views,
        "radius": orbit.radius,
        "elevation": orbit.elevation_deg,
        "fov": orbit.fov_y_deg,
        "azimuth": orbit.azimuth_start_deg,
        "step": step,
    }


def orbit_from_widgets(widgets: dict) -> Orbit:
    """The orbit that the `orbit` combo with the widgets below it describes."""
    preset = widgets["orbit"]
    if preset in ORBIT_PRESETS:
        return ORBIT_PRESETS[preset]
    if preset == "sv3d_p":
        return arc_orbit(widgets["frames"], FULL_TURN_DEG, SV3D_FOV_DEG, widgets["elevation"])
    if preset == "svd":
        return arc_orbit(widgets["frames"], widgets["arc"], widgets["fov"])
    sign = 1 if widgets["direction"] == DIRECTIONS[0] else -1
    return dataclasses.replace(
        V3D_ORBIT,
        num_views=widgets["views"],
        radius=widgets["radius"],
        elevation_deg=widgets["elevation"],
        fov_y_deg=widgets["fov"],
        azimuth_start_deg=widgets["azimuth"],
        azimuth_step_deg=sign * 360.0 / widgets["views"],
    )
