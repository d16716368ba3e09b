""".usdz as Pixar's own library reads it: numbers, axes, colours and the package's alignment."""

import io
import struct
import zipfile

import numpy as np
import pytest
from mesh_samples import coloured_mesh, seamed_cube
from PIL import Image

from v3d_core.formats.mesh_files import write_mesh
from v3d_core.images import srgb_to_linear

REASON = ".usdz is not tested: pip install usd-core"
Usd = pytest.importorskip("pxr.Usd", reason=REASON)
UsdGeom = pytest.importorskip("pxr.UsdGeom", reason=REASON)
UsdShade = pytest.importorskip("pxr.UsdShade", reason=REASON)


def opened(path):
    stage = Usd.Stage.Open(str(path))
    return stage, UsdGeom.Mesh(stage.GetPrimAtPath("/Object/Mesh"))


def inputs_of(stage):
    surface = UsdShade.Shader(stage.GetPrimAtPath("/Object/Material/Surface"))
    return {
        name.GetBaseName(): (
            name.Get(),
            [str(s.source.GetPath()) for s in name.GetConnectedSources()[0]],
        )
        for name in surface.GetInputs()
    }


def test_geometry_and_uvs_come_back_with_v_upwards(tmp_path):
    mesh = seamed_cube()
    write_mesh(tmp_path / "a.usdz", mesh)
    stage, shape = opened(tmp_path / "a.usdz")
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 1
    assert str(stage.GetDefaultPrim().GetPath()) == "/Object"
    np.testing.assert_array_equal(np.array(shape.GetPointsAttr().Get()), mesh.vertices)
    corners = np.array(shape.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3)
    np.testing.assert_array_equal(corners, mesh.faces)
    assert set(shape.GetFaceVertexCountsAttr().Get()) == {3}
    assert shape.GetSubdivisionSchemeAttr().Get() == "none"  # or it would be rounded
    assert shape.GetDoubleSidedAttr().Get() is False
    st = np.array(UsdGeom.PrimvarsAPI(shape.GetPrim()).GetPrimvar("st").Get())
    np.testing.assert_allclose(
        st, mesh.uvs.numpy() * np.array([1, -1]) + np.array([0, 1]), atol=1e-6
    )
    assert np.array(shape.GetExtentAttr().Get()).tolist() == [[-0.5] * 3, [0.5] * 3]


def test_the_package_is_stored_aligned_with_the_same_picture(tmp_path):
    mesh = seamed_cube()
    write_mesh(tmp_path / "a.usdz", mesh)
    data = (tmp_path / "a.usdz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.usdz") as package:
        entries = package.infolist()
        assert [entry.filename for entry in entries] == ["mesh.usdc", "texture.png"]
        for entry in entries:
            name, extra = struct.unpack_from("<HH", data, entry.header_offset + 26)
            assert (entry.header_offset + 30 + name + extra) % 64 == 0  # the format's rule
            assert entry.compress_type == zipfile.ZIP_STORED
        pixels = np.asarray(Image.open(io.BytesIO(package.read("texture.png")))) / 255
    np.testing.assert_allclose(pixels, mesh.texture, atol=1e-6)


@pytest.mark.parametrize("unlit", [False, True])
@pytest.mark.parametrize("make, source", [(seamed_cube, "Texture"), (coloured_mesh, "Colours")])
def test_colours_are_light_of_their_own_when_unlit(tmp_path, make, source, unlit):
    mesh = make()
    write_mesh(tmp_path / "a.usdz", mesh, unlit)
    stage, shape = opened(tmp_path / "a.usdz")
    inputs = inputs_of(stage)
    fed = "emissiveColor" if unlit else "diffuseColor"
    assert inputs[fed][1] == [f"/Object/Material/{source}"]
    assert (inputs["roughness"][0], inputs["metallic"][0]) == (1.0, 0.0)
    if unlit:
        assert tuple(inputs["diffuseColor"][0]) == (0, 0, 0)
    if source == "Colours":
        stored = np.array(shape.GetDisplayColorAttr().Get())
        np.testing.assert_allclose(stored, srgb_to_linear(mesh.vertex_colours), atol=1e-6)
        return
    picture = UsdShade.Shader(stage.GetPrimAtPath("/Object/Material/Texture"))
    assert picture.GetInput("sourceColorSpace").Get() == "sRGB"
    assert picture.GetInput("wrapS").Get() == "clamp"
