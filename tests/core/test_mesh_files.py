"""Mesh files: colours in the space each format wants, round trips, and readable refusals."""

import errno
import os
import struct
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from mesh_samples import CUBE_COLOURS, coloured_mesh, glb_parts, seamed_cube, textured_mesh
from PIL import Image

from v3d_core.backends import MissingPackageError
from v3d_core.formats.atomic import OutputError
from v3d_core.formats.mesh_files import MESH_SUFFIXES, read_mesh, require_mesh_suffix, write_mesh
from v3d_core.images import linear_to_srgb, srgb_to_linear
from v3d_core.structures import Mesh

trimesh = pytest.importorskip("trimesh")


def needs(suffix: str) -> None:
    if suffix == ".usdz":
        pytest.importorskip("pxr", reason=".usdz is not tested: pip install usd-core")


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
    pair = [m.vertex_colours[m.faces] for m in (back, mesh)]
    torch.testing.assert_close(*pair, atol=tolerance, rtol=0)


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
@pytest.mark.parametrize("make", [textured_mesh, seamed_cube])
def test_textures_and_uvs_survive_the_round_trip(tmp_path, suffix, make):
    mesh = make()
    write_mesh(tmp_path / f"my mesh{suffix}", mesh)
    back = read_mesh(tmp_path / f"my mesh{suffix}")
    torch.testing.assert_close(back.uvs[back.faces], mesh.uvs[mesh.faces])
    torch.testing.assert_close(back.vertices[back.faces], mesh.vertices[mesh.faces])
    torch.testing.assert_close(back.texture, mesh.texture, atol=0.5 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_trimesh_finds_each_sides_colour_on_a_cube(tmp_path, suffix):
    write_mesh(tmp_path / f"a{suffix}", seamed_cube())
    opened = trimesh.load(tmp_path / f"a{suffix}", force="mesh", process=False)
    material = opened.visual.material
    image = material.baseColorTexture if suffix == ".glb" else material.image
    uvs = opened.visual.uv[opened.faces].mean(axis=1)
    colours = trimesh.visual.color.uv_to_color(uvs, image)[:, :3]
    sides = opened.face_normals.round().astype(int)
    expected = {
        tuple(int(sign) * np.eye(3, dtype=int)[axis]): colour
        for (axis, sign), colour in zip([(a, s) for a in range(3) for s in (-1, 1)], CUBE_COLOURS)
    }
    assert len(colours) == 12
    for side, colour in zip(sides, colours, strict=True):
        assert colour.tolist() == expected[tuple(side)]


def test_ply_samples_a_texture_at_the_vertices(tmp_path):
    plyfile = pytest.importorskip("plyfile")
    mesh = textured_mesh()
    centre = torch.tensor([[14.5 / 16, 1.5 / 8]])  # of texel [1, 14]; then a corner of four texels
    mesh = replace(mesh, uvs=torch.cat([centre, torch.tensor([[3 / 16, 2 / 8]]), mesh.uvs[2:]]))
    write_mesh(tmp_path / "a b.ply", mesh)
    ply = plyfile.PlyData.read(tmp_path / "a b.ply")
    assert ply.comments == ["TextureFile a_b.png"] and (tmp_path / "a_b.png").is_file()
    rows = ply["vertex"]
    expected = torch.stack([mesh.texture[1, 14], mesh.texture[1:3, 2:4].mean(dim=(0, 1))])
    colours = np.stack([rows["red"], rows["green"], rows["blue"]], axis=1)[:2] / 255
    np.testing.assert_allclose(colours, expected, atol=0.51 / 255)
    np.testing.assert_allclose(rows["s"], mesh.uvs[:, 0])
    np.testing.assert_allclose(rows["t"], 1 - mesh.uvs[:, 1], atol=1e-7)


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


@pytest.mark.parametrize("textures", ["the same", "different"])
def test_parts_keep_a_texture_only_when_they_share_it(tmp_path, textures, caplog):
    scene = trimesh.Scene()
    for index in range(2):
        level = 200 if textures == "the same" else 100 * index + 50
        image = Image.new("RGB", (4, 4), (level, 0, 255))
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=image)
        box = trimesh.creation.box()
        uv = np.full((8, 2), 0.25)
        box.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
        scene.add_geometry(box)
    scene.export(tmp_path / "a.glb")
    mesh = read_mesh(tmp_path / "a.glb")
    if textures == "the same":
        assert mesh.vertex_colours is None and mesh.uvs.shape == (16, 2)
        assert (mesh.texture[0, 0] * 255).round().tolist() == [200, 0, 255]
        return
    assert mesh.texture is None and mesh.uvs is None
    assert sorted((mesh.vertex_colours[:, 0] * 255).round().tolist()) == [50.0] * 8 + [150.0] * 8
    assert "2 parts do not share one texture" in caplog.text


def test_a_file_with_a_texture_and_vertex_colours_gives_both(tmp_path):
    mesh = textured_mesh()
    write_mesh(tmp_path / "a.glb", mesh)
    scene = trimesh.load(tmp_path / "a.glb", process=False)
    (part,) = scene.geometry.values()
    part.visual.vertex_attributes["color"] = np.full((4, 4), 255, np.uint8)
    part.export(tmp_path / "b.glb")
    back = read_mesh(tmp_path / "b.glb")
    assert torch.equal(back.vertex_colours, torch.ones(4, 3))
    torch.testing.assert_close(back.uvs, mesh.uvs)
    assert back.texture.shape == mesh.texture.shape


def test_an_obj_with_indices_of_its_own_for_uvs_is_split_at_seams(tmp_path):
    """Two triangles share an edge, and have other uvs on either side of it."""
    (tmp_path / "a.obj").write_text(
        "mtllib a.mtl\nusemtl m\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
        "vt 0 0\nvt .5 0\nvt .5 1\nvt 1 0\nvt 1 1\nvt .5 .5\n"
        "f 1/1 2/2 3/3\nf 1/4 3/5 4/6\n"
    )
    (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd a.png\n")
    Image.new("RGB", (2, 2), (10, 20, 30)).save(tmp_path / "a.png")
    mesh = read_mesh(tmp_path / "a.obj")
    assert len(mesh.vertices) == 6
    expected = torch.tensor([[[0, 1], [0.5, 1], [0.5, 0]], [[1, 1], [1, 0], [0.5, 0.5]]])
    torch.testing.assert_close(mesh.uvs[mesh.faces], expected)
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    torch.testing.assert_close(
        mesh.vertices[mesh.faces], corners[torch.tensor([[0, 1, 2], [0, 2, 3]])]
    )
    assert mesh.normals.tolist() == [[0, 0, 1]] * 6


def test_an_unknown_suffix_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"'\.fbx'; known are \.glb, \.ply, \.obj, \.stl, \.usdz"):
        write_mesh(tmp_path / "a.fbx", coloured_mesh())
    with pytest.raises(
        ValueError, match=r"'\.usdz' are not read; read are \.glb, \.ply, \.obj, \."
    ):
        read_mesh(tmp_path / "a.usdz")
    with pytest.raises(ValueError, match="'without suffix'"):
        write_mesh(tmp_path / "a", coloured_mesh())
    assert os.listdir(tmp_path) == []


def test_a_mesh_without_faces_is_refused(tmp_path):
    empty = Mesh(torch.zeros(3, 3), torch.zeros(0, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="3 vertices and no faces"):
        write_mesh(tmp_path / "a.glb", empty)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", MESH_SUFFIXES)
@pytest.mark.parametrize("old", [False, True])
def test_a_full_disk_leaves_no_half_file_and_the_old_ones(tmp_path, monkeypatch, suffix, old):
    needs(suffix)
    if old:
        write_mesh(tmp_path / f"a{suffix}", textured_mesh())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = os.replace

    def refuse(source, target):
        if str(target).endswith(f"a{suffix}"):  # the last file to move
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(OutputError, match="the disk is full"):
        patch.setattr(os, "replace", refuse if not old else no_space)
        write_mesh(tmp_path / f"a{suffix}", replace(textured_mesh(), texture=torch.ones(8, 8, 3)))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def no_space(source, target):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vertices": torch.tensor([[0, 0, float("nan")]] * 4)}, "4 of 12 values are NaN"),
        ({"faces": torch.tensor([[0, 1, 4]])}, "vertices 0 to 4, but there are 4 vertices"),
        ({"uvs": torch.full((4, 2), float("inf"))}, "8 of 8 values are NaN or infinite"),
        ({"texture": torch.zeros(4, 4, 3), "uvs": None}, "texture needs uvs"),
    ],
)
def test_a_mesh_that_no_format_could_hold_is_never_made(change, message):
    with pytest.raises(ValueError, match=message):
        replace(textured_mesh(), **change)


def test_files_with_nan_or_missing_vertices_are_refused_with_numbers(tmp_path):
    (tmp_path / "nan.obj").write_text("v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    with pytest.raises(ValueError, match=r"nan\.obj: .*1 of 9 values are NaN"):
        read_mesh(tmp_path / "nan.obj")
    write_mesh(tmp_path / "a.ply", coloured_mesh())
    data = bytearray((tmp_path / "a.ply").read_bytes())
    data[-4:] = struct.pack("<i", 70)
    (tmp_path / "far.ply").write_bytes(data)
    with pytest.raises(ValueError, match=r"far\.ply: "):
        read_mesh(tmp_path / "far.ply")


def test_uvs_outside_the_texture_repeat_it(tmp_path):
    mesh = textured_mesh()
    write_mesh(tmp_path / "inside.glb", mesh)
    write_mesh(tmp_path / "outside.glb", replace(mesh, uvs=mesh.uvs + torch.tensor([1.0, -2.0])))
    wraps = [
        glb_parts(tmp_path / f"{name}.glb")[0]["samplers"][0]["wrapS"]
        for name in ("inside", "outside")
    ]
    assert wraps == [33071, 10497]  # clamp, repeat
    plyfile = pytest.importorskip("plyfile")
    for name, shift in (("inside", 0.0), ("outside", 3.0)):
        inner = mesh.uvs * 0.5 + 0.25  # away from the border, where clamping and repeating differ
        write_mesh(tmp_path / f"{name}.ply", replace(mesh, uvs=inner + shift))
    red = [
        plyfile.PlyData.read(tmp_path / f"{n}.ply")["vertex"]["red"] for n in ("inside", "outside")
    ]
    np.testing.assert_allclose(*[values.astype(int) for values in red], atol=1)


def test_usdz_without_usd_core_says_how_to_get_it_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pxr", None)
    for call in (require_mesh_suffix, lambda path: write_mesh(path, coloured_mesh())):
        with pytest.raises(MissingPackageError, match="pip install usd-core"):
            call(tmp_path / "a.usdz")
    assert os.listdir(tmp_path) == []


def test_stl_is_scaled_to_millimetres_and_joined_at_seams(tmp_path):
    mesh = seamed_cube()
    write_mesh(tmp_path / "a.stl", mesh, stl_size_mm=80)
    solid = trimesh.load(tmp_path / "a.stl")
    assert len(solid.vertices) == 8 and solid.is_watertight
    assert solid.volume == pytest.approx(80**3, rel=1e-6)
    for size in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="size must be above 0 mm"):
            write_mesh(tmp_path / "b.stl", mesh, stl_size_mm=size)
    assert os.listdir(tmp_path) == ["a.stl"]
    back = read_mesh(tmp_path / "a.stl")  # loose triangles, joined again
    assert len(back.vertices) == 8 and len(back.normals.unique(dim=0)) == 8


def test_a_seam_leaves_positions_joined_in_obj_and_in_plain_ply(tmp_path):
    mesh = seamed_cube()
    write_mesh(tmp_path / "a.obj", mesh)
    lines = (tmp_path / "a.obj").read_text().splitlines()
    assert [sum(line.startswith(f"{kind} ") for line in lines) for kind in ("v", "vt", "f")] == [
        8,
        24,
        12,
    ]
    write_mesh(tmp_path / "a.ply", replace(mesh, uvs=None, texture=None))
    solid = trimesh.load(tmp_path / "a.ply", process=False)
    assert len(solid.vertices) == 8 and solid.is_watertight


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
