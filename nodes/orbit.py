"""V3D Orbit Cameras: the cameras that orbit frames were made with."""

from __future__ import annotations

import dataclasses

from comfy_api.v0_0_2 import io

from ..v3d_core.cameras import ORBIT_PRESETS, V3D_ORBIT, Orbit, orbit_cameras
from .convert import camera_info_from_cameras, orbit_from_camera_info
from .runtime import log, named_errors
from .sockets import V3DCameras

DIRECTIONS = ("counter-clockwise", "clockwise")


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


class V3DOrbitCameras(io.ComfyNode):
    """Cameras of an orbit, as V3D, SV3D or the user define it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DOrbitCameras",
            display_name="V3D Orbit Cameras",
            category="3d/V3D",
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
                    ],
                    tooltip="Who made the frames. v3d: 18 frames, 20 degrees apart, radius 2, fov "
                    "60. sv3d: 21 frames, fov 33.8, the input picture is the last one. custom: "
                    "your own orbit.",
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
        return io.NodeOutput(cameras, camera_info_from_cameras(cameras, frame))


def orbit_from_widgets(widgets: dict) -> Orbit:
    """The orbit that the `orbit` combo with the widgets below it describes."""
    preset = widgets["orbit"]
    if preset in ORBIT_PRESETS:
        return ORBIT_PRESETS[preset]
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
