"""Mesh files: colours in the space each format wants, round trips, and readable refusals."""

import errno
import io
import json
import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from v3d_core.formats.atomic import OutputError
from v3d_core.formats.mesh_files import read_mesh, vertex_normals, write_mesh
from v3d_core.images import linear_to_srgb, srgb_to_linear
from v3d_core.structures import Mesh

trimesh = pytest.importorskip("trimesh")


def coloured_mesh() -> Mesh:
    """An asymmetric tetrahedron whose four colours include a very dark one."""
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    colours = torch.tensor([[1, 0.5, 0], [0.02, 0.01, 0.03], [0.25, 0.75, 1], [0.1, 0.2, 0.3]])
    return Mesh(vertices, faces, vertex_normals(vertices, faces), vertex_colours=colours)


def textured_mesh() -> Mesh:
    mesh = coloured_mesh()
    uvs = torch.tensor([[0.1, 0.2], [0.9, 0.2], [0.1, 0.8], [0.6, 0.7]])
    texture = torch.rand(8, 16, 3, generator=torch.Generator().manual_seed(0))
    return Mesh(mesh.vertices, mesh.faces, mesh.normals, uvs, None, texture)


def glb_parts(path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    magic, version, length, size, kind = struct.unpack_from("<4sIII4s", data)
    assert (magic, version, length, kind) == (b"glTF", 2, len(data), b"JSON")
    document = json.loads(data[20 : 20 + size])
    binary_size, binary_kind = struct.unpack_from("<I4s", data, 20 + size)
    assert binary_kind == b"BIN\0" and binary_size == len(data) - 28 - size
    return document, data[28 + size :]


def accessor(document: dict, binary: bytes, index: int) -> np.ndarray:
    entry = document["accessors"][index]
    view = document["bufferViews"][entry["bufferView"]]
    assert view["byteOffset"] % 4 == 0
    dtype = {5126: "<f4", 5123: "<u2", 5125: "<u4"}[entry["componentType"]]
    data = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    return np.frombuffer(data, dtype).reshape(entry["count"], -1)


@pytest.mark.parametrize("suffix", [".glb", ".ply", ".obj", ".stl"])
@pytest.mark.parametrize("make", [coloured_mesh, textured_mesh])
def test_every_format_keeps_the_surface_un_mirrored(tmp_path, suffix, make):
    mesh = make()
    write_mesh(tmp_path / f"a{suffix}", mesh)
    back = read_mesh(tmp_path / f"a{suffix}")
    torch.testing.assert_close(back.vertices[back.faces], mesh.vertices[mesh.faces])
    if suffix != ".stl":
        torch.testing.assert_close(back.normals, mesh.normals, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "suffix, tolerance", [(".glb", 2e-4), (".ply", 0.5 / 255 + 1e-6), (".obj", 0.5 / 255 + 1e-6)]
)
def test_vertex_colours_come_back_as_srgb(tmp_path, suffix, tolerance):
    mesh = coloured_mesh()
    write_mesh(tmp_path / f"a{suffix}", mesh)
    back = read_mesh(tmp_path / f"a{suffix}")
    torch.testing.assert_close(back.vertex_colours, mesh.vertex_colours, atol=tolerance, rtol=0)


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


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_textures_and_uvs_survive_the_round_trip(tmp_path, suffix):
    mesh = textured_mesh()
    write_mesh(tmp_path / f"my mesh{suffix}", mesh)
    back = read_mesh(tmp_path / f"my mesh{suffix}")
    torch.testing.assert_close(back.uvs, mesh.uvs)
    torch.testing.assert_close(back.texture, mesh.texture, atol=0.5 / 255 + 1e-6, rtol=0)


def test_ply_samples_a_texture_at_the_vertices(tmp_path):
    mesh = textured_mesh()
    write_mesh(tmp_path / "a.ply", mesh)
    colour = read_mesh(tmp_path / "a.ply").vertex_colours[1]
    torch.testing.assert_close(colour, mesh.texture[1, 14], atol=0.5 / 255 + 1e-6, rtol=0)


def test_a_scene_of_two_placed_parts_becomes_one_mesh(tmp_path):
    scene = trimesh.Scene()
    for index, shift in enumerate(([0, 0, 0], [0, 5, 0])):
        box = trimesh.creation.box()
        box.visual.vertex_colors = np.full((8, 4), 255 - 255 * index, np.uint8)
        scene.add_geometry(box, transform=trimesh.transformations.translation_matrix(shift))
    scene.export(tmp_path / "a.glb")
    mesh = read_mesh(tmp_path / "a.glb")
    assert mesh.vertices[:, 1].amax() == 5.5 and mesh.vertices[:, 1].amin() == -0.5
    assert len(mesh.faces) == 24 and len(mesh.vertex_colours) == 16
    assert mesh.vertex_colours.unique().tolist() == [0.0, 1.0]


def test_srgb_and_linear_are_inverse():
    values = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(values)), values, rtol=0, atol=1e-6)
    assert abs(float(srgb_to_linear(torch.tensor(0.5, dtype=torch.float64))) - 0.21404114) < 1e-7


def test_normals_are_unit_even_where_no_face_is(tmp_path):
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [9, 9, 9]])
    faces = torch.tensor([[0, 1, 2], [1, 1, 1]])
    normals = vertex_normals(vertices, faces)
    assert normals.tolist() == [[0, 0, 1]] * 3 + [[0, 1, 0]]
    write_mesh(tmp_path / "a.glb", Mesh(vertices, faces, torch.zeros(4, 3)))
    document, binary = glb_parts(tmp_path / "a.glb")
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    lengths = np.linalg.norm(accessor(document, binary, attributes["NORMAL"]), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_an_unknown_suffix_lists_the_known_ones(tmp_path):
    for call in (lambda p: write_mesh(p, coloured_mesh()), read_mesh):
        with pytest.raises(ValueError, match=r"'\.fbx'; known are \.glb, \.ply, \.obj, \.stl"):
            call(tmp_path / "a.fbx")


def test_a_mesh_without_faces_is_refused(tmp_path):
    empty = Mesh(torch.zeros(3, 3), torch.zeros(0, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="3 vertices and no faces"):
        write_mesh(tmp_path / "a.glb", empty)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".glb", ".ply", ".obj", ".stl"])
def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch, suffix):
    def refuse(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError, match="the disk is full"):
        write_mesh(tmp_path / f"a{suffix}", textured_mesh())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".glb", ".ply", ".obj"])
def test_rubbish_is_refused_with_its_name(tmp_path, suffix):
    path = tmp_path / f"rubbish{suffix}"
    path.write_bytes(b"\x00\x01not a mesh at all\n" * 4)
    with pytest.raises(ValueError, match="rubbish"):
        read_mesh(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        read_mesh(tmp_path / f"absent{suffix}")


def test_a_splat_is_not_mistaken_for_a_mesh(tmp_path):
    from v3d_core.formats.ply import write_splat_ply
    from v3d_core.structures import GaussianSplats

    quats = torch.tensor([[1.0, 0, 0, 0]]).expand(5, 4)
    splats = GaussianSplats(
        torch.rand(5, 3), torch.ones(5, 3), quats, torch.ones(5), torch.zeros(5, 1, 3)
    )
    write_splat_ply(tmp_path / "splat.ply", splats)
    with pytest.raises(ValueError, match="no triangles"):
        read_mesh(tmp_path / "splat.ply")
