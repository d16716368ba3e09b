"""Apple's .usdz of one mesh, for phones: USD with UsdPreviewSurface, by Pixar's own library."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from ..backends import load_usd
from ..images import srgb_to_linear
from ..structures import Mesh
from .atomic import OutputError, atomic_path
from .mesh_seams import is_closed_solid
from .mesh_texture import leaves_the_texture, png_bytes

METRES_PER_UNIT = 1.0  # as glTF
LAYER, PICTURE = "mesh.usdc", "texture.png"


def write_usdz(path: Path, mesh: Mesh, unlit: bool) -> None:
    """Write positions, normals and a texture, or else linear vertex colours; +Y up, metres.

    Args:
        path: The .usdz file.
        mesh: A float32 mesh on the CPU with normals.
        unlit: Show colours as they are: they become the light that the surface gives off.

    Raises:
        MissingPackageError: usd-core is not installed.
    """
    usd = load_usd()
    # Pixar's writers take paths only, and make files of their own beside them
    with atomic_path(path) as temporary, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        textured = mesh.texture is not None and mesh.uvs is not None
        if textured:
            assert mesh.texture is not None
            (folder / PICTURE).write_bytes(png_bytes(mesh.texture))
        try:
            stage = usd.Usd.Stage.CreateNew(str(folder / LAYER))
            usd.UsdGeom.SetStageUpAxis(stage, usd.UsdGeom.Tokens.y)
            usd.UsdGeom.SetStageMetersPerUnit(stage, METRES_PER_UNIT)
            root = usd.UsdGeom.Xform.Define(stage, "/Object")
            stage.SetDefaultPrim(root.GetPrim())
            shape = _shape(usd, stage, mesh)
            material = _material(usd, stage, mesh, unlit, textured)
            usd.UsdShade.MaterialBindingAPI.Apply(shape.GetPrim()).Bind(material)
            stage.GetRootLayer().Save()
            package = folder / "package.usdz"
            made = usd.UsdUtils.CreateNewUsdzPackage(str(folder / LAYER), str(package))
        except usd.Tf.ErrorException as error:
            raise OutputError(errno.EIO, f"cannot write {path}: {error}", path) from error
        if not made:
            raise OutputError(errno.EIO, f"cannot write {path}: USD made no package", path)
        temporary.write_bytes(package.read_bytes())


def _shape(usd: ModuleType, stage: Any, mesh: Mesh) -> Any:
    geometry, types = usd.UsdGeom, usd.Sdf.ValueTypeNames
    shape = geometry.Mesh.Define(stage, "/Object/Mesh")
    points = usd.Vt.Vec3fArray.FromNumpy(_contiguous(mesh.vertices))
    shape.CreatePointsAttr(points)
    shape.CreateExtentAttr(geometry.PointBased.ComputeExtent(points))
    sizes = np.full(len(mesh.faces), 3, np.int32)
    shape.CreateFaceVertexCountsAttr(usd.Vt.IntArray.FromNumpy(sizes))
    corners = mesh.faces.reshape(-1).numpy().astype(np.int32)
    shape.CreateFaceVertexIndicesAttr(usd.Vt.IntArray.FromNumpy(corners))
    shape.CreateDoubleSidedAttr(not is_closed_solid(mesh.vertices, mesh.faces))
    shape.CreateSubdivisionSchemeAttr(geometry.Tokens.none)
    assert mesh.normals is not None
    shape.CreateNormalsAttr(usd.Vt.Vec3fArray.FromNumpy(_contiguous(mesh.normals)))
    shape.SetNormalsInterpolation(geometry.Tokens.vertex)
    primvars = geometry.PrimvarsAPI(shape.GetPrim())
    if mesh.uvs is not None:
        upward = mesh.uvs * mesh.uvs.new_tensor([1, -1]) + mesh.uvs.new_tensor([0, 1])
        uvs = primvars.CreatePrimvar("st", types.TexCoord2fArray, geometry.Tokens.vertex)
        uvs.Set(usd.Vt.Vec2fArray.FromNumpy(_contiguous(upward)))
    if mesh.texture is None and mesh.vertex_colours is not None:
        linear = srgb_to_linear(mesh.vertex_colours.clamp(0, 1))
        colours = shape.CreateDisplayColorPrimvar(geometry.Tokens.vertex)
        colours.Set(usd.Vt.Vec3fArray.FromNumpy(_contiguous(linear)))
    return shape


def _material(usd: ModuleType, stage: Any, mesh: Mesh, unlit: bool, textured: bool) -> Any:
    types = usd.Sdf.ValueTypeNames
    material = usd.UsdShade.Material.Define(stage, "/Object/Material")

    def shader(name: str, kind: str) -> Any:
        made = usd.UsdShade.Shader.Define(stage, f"/Object/Material/{name}")
        made.CreateIdAttr(kind)
        return made

    surface = shader("Surface", "UsdPreviewSurface")
    surface.CreateInput("roughness", types.Float).Set(1.0)
    surface.CreateInput("metallic", types.Float).Set(0.0)
    material.CreateSurfaceOutput().ConnectToSource(surface.CreateOutput("surface", types.Token))
    colour = None
    if textured:
        reader = shader("Coordinates", "UsdPrimvarReader_float2")
        reader.CreateInput("varname", types.String).Set("st")
        picture = shader("Texture", "UsdUVTexture")
        picture.CreateInput("file", types.Asset).Set(f"./{PICTURE}")
        picture.CreateInput("sourceColorSpace", types.Token).Set("sRGB")
        wrap = "repeat" if leaves_the_texture(mesh) else "clamp"
        for axis in ("wrapS", "wrapT"):
            picture.CreateInput(axis, types.Token).Set(wrap)
        picture.CreateInput("st", types.Float2).ConnectToSource(
            reader.CreateOutput("result", types.Float2)
        )
        colour = picture.CreateOutput("rgb", types.Float3)
    elif mesh.vertex_colours is not None:
        reader = shader("Colours", "UsdPrimvarReader_float3")
        reader.CreateInput("varname", types.String).Set("displayColor")
        colour = reader.CreateOutput("result", types.Float3)
    if colour is not None:
        diffuse = surface.CreateInput("diffuseColor", types.Color3f)
        if unlit:
            diffuse.Set((0.0, 0.0, 0.0))
            surface.CreateInput("emissiveColor", types.Color3f).ConnectToSource(colour)
        else:
            diffuse.ConnectToSource(colour)
    return material


def _contiguous(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.numpy(), np.float32)
