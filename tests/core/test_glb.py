"""The .glb writer: spaces of colours, sizes of indices, which sides are seen, and normals."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from mesh_samples import accessor, coloured_mesh, glb_parts, seamed_cube, textured_mesh
from PIL import Image

from v3d_core.formats.mesh_files import write_mesh
from v3d_core.formats.mesh_seams import shared_normals
from v3d_core.structures import Mesh


def test_glb_colours_are_linear_16_bit_and_unlit(tmp_path):
    mesh = coloured_mesh()
    write_mesh(tmp_path / "a.glb", mesh)
    document, binary = glb_parts(tmp_path / "a.glb")
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    colours = accessor(document, binary, attributes["COLOR_0"])
    assert document["accessors"][attributes["COLOR_0"]]["normalized"] is True
    np.testing.assert_allclose(colours[0] / 65535, [1, 0.21404, 0, 1], atol=2e-5)
    np.testing.assert_allclose(colours[1, :3] / 65535, np.array([2, 1, 3]) / 100 / 12.92, atol=1e-5)
    assert document["extensionsUsed"] == ["KHR_materials_unlit"]
    material = document["materials"][0]
    assert material["extensions"] == {"KHR_materials_unlit": {}}
    assert material["pbrMetallicRoughness"] == {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    np.testing.assert_array_equal(
        accessor(document, binary, attributes["POSITION"]), mesh.vertices.numpy()
    )
    np.testing.assert_array_equal(
        accessor(document, binary, document["meshes"][0]["primitives"][0]["indices"])[:, 0],
        mesh.faces.flatten().numpy(),
    )
    position = document["accessors"][attributes["POSITION"]]
    assert (position["min"], position["max"]) == ([0, 0, 0], [1, 2, 3])


@pytest.mark.parametrize("mesh, expected", [(coloured_mesh(), True), (textured_mesh(), True)])
def test_meshes_with_colours_are_unlit_unless_asked(tmp_path, mesh, expected):
    write_mesh(tmp_path / "a.glb", mesh)
    assert ("extensionsUsed" in glb_parts(tmp_path / "a.glb")[0]) is expected
    write_mesh(tmp_path / "a.glb", mesh, unlit=False)
    assert "extensionsUsed" not in glb_parts(tmp_path / "a.glb")[0]
    plain = Mesh(mesh.vertices, mesh.faces)
    write_mesh(tmp_path / "a.glb", plain)
    assert "extensionsUsed" not in glb_parts(tmp_path / "a.glb")[0]


def test_glb_texture_is_the_same_png_the_right_way_up(tmp_path):
    mesh = textured_mesh()
    write_mesh(tmp_path / "a.glb", mesh)
    document, binary = glb_parts(tmp_path / "a.glb")
    view = document["bufferViews"][document["images"][0]["bufferView"]]
    png = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    pixels = np.asarray(Image.open(io.BytesIO(png))) / 255
    np.testing.assert_allclose(pixels, mesh.texture, atol=0.5 / 255 + 1e-6)
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    np.testing.assert_array_equal(accessor(document, binary, attributes["TEXCOORD_0"]), mesh.uvs)


def test_normals_are_unit_even_where_no_face_is(tmp_path):
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [9, 9, 9]])
    faces = torch.tensor([[0, 1, 2], [1, 1, 1]])
    normals = shared_normals(vertices, faces)
    assert normals.tolist() == [[0, 0, 1]] * 3 + [[0, 1, 0]]
    write_mesh(tmp_path / "a.glb", Mesh(vertices, faces, torch.zeros(4, 3)))
    document, binary = glb_parts(tmp_path / "a.glb")
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    lengths = np.linalg.norm(accessor(document, binary, attributes["NORMAL"]), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_normals_are_shared_across_seams_and_faces_culled_only_on_solids(tmp_path):
    mesh = seamed_cube()
    normals = shared_normals(mesh.vertices, mesh.faces)
    diagonal = torch.nn.functional.normalize(mesh.vertices.sign(), dim=-1)
    torch.testing.assert_close(normals.sign(), diagonal.sign())
    for point in mesh.vertices.unique(dim=0):
        assert len(normals[(mesh.vertices == point).all(dim=1)].unique(dim=0)) == 1
    inside_out = replace(mesh, faces=mesh.faces.flip(1))
    one_turned = replace(mesh, faces=torch.cat([mesh.faces[:1].flip(1), mesh.faces[1:]]))
    for name, other in (
        ("solid", mesh),
        ("open", replace(mesh, faces=mesh.faces[1:])),
        ("inside out", inside_out),
        ("one turned", one_turned),
    ):
        write_mesh(tmp_path / "a.glb", other)
        (material,) = glb_parts(tmp_path / "a.glb")[0]["materials"]
        assert material["doubleSided"] is (name != "solid"), name


@pytest.mark.parametrize("count, component", [(65535, 5123), (65536, 5125)])
def test_indices_take_two_bytes_while_they_can(tmp_path, count, component):
    vertices = torch.rand(count, 3)
    write_mesh(tmp_path / "a.glb", Mesh(vertices, torch.tensor([[0, 1, count - 1]])))
    document, binary = glb_parts(tmp_path / "a.glb")
    index = document["meshes"][0]["primitives"][0]["indices"]
    assert document["accessors"][index]["componentType"] == component
    assert accessor(document, binary, index)[:, 0].tolist() == [0, 1, count - 1]


def test_glb_keeps_extras(tmp_path):
    write_mesh(tmp_path / "a.glb", coloured_mesh(), glb_extras={"prompt": '{"1": {}}'})
    asset = glb_parts(tmp_path / "a.glb")[0]["asset"]
    assert asset == {
        "version": "2.0",
        "generator": "ComfyUI-V3D",
        "extras": {"prompt": '{"1": {}}'},
    }
