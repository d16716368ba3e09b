"""The sockets that core lacks, each declared beside the value it carries.

Everything else travels on core's own sockets: IMAGE, MASK, SPLAT, MESH, LOAD3D_CAMERA, FILE_3D.
"""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..v3d_core.neus.field import SDFField
from ..v3d_core.structures import Cameras, Views


@io.comfytype(io_type="V3D_CAMERAS")
class V3DCameras(io.ComfyTypeIO):
    """All cameras of an orbit or a data set (core's LOAD3D_CAMERA holds one)."""

    Type = Cameras


@io.comfytype(io_type="V3D_VIEWS")
class V3DViews(io.ComfyTypeIO):
    """Pictures of one object with their masks and cameras."""

    Type = Views


@io.comfytype(io_type="V3D_SDF")
class V3DSDF(io.ComfyTypeIO):
    """A fitted surface: signed distance and colour, on the CPU; nobody changes it."""

    Type = SDFField
