"""`v3d refine` and `v3d export`: the asset on disk shows the views, in other people's eyes."""

import json

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from v3d_core import cli
from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.demo_object import sphere_object
from v3d_core.formats.views import save_views
from v3d_core.images import linear_to_srgb
from v3d_core.procedural import render_object, shade

SIZE, RADIUS = 96, 0.6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight views of a painted ball, and its mesh."""
    folder = tmp_path_factory.mktemp("refine")
    cameras = orbit_cameras(Orbit(num_views=8, elevation_deg=20.0), SIZE, SIZE)
    save_views(folder / "views", render_object(cameras, sphere_object(RADIUS), supersample=3))
    trimesh.creation.icosphere(subdivisions=4, radius=RADIUS).export(folder / "ball.ply")
    return folder


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def refine(data, out, *more):
    mesh, views = data / "ball.ply", data / "views"
    return run("refine", mesh, views, "--out", out, "--texture-size", 256, "--device", "cpu", *more)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("asset")
    assert refine(data, out, "--faces", 2000) == 0
    return out


def test_the_asset_has_the_colours_of_the_object_at_its_places(finished):
    mesh = trimesh.load(finished / "textured.glb", process=False, force="mesh")
    assert mesh.is_watertight is False  # seams: corners are doubled where the atlas is cut
    welded = trimesh.Trimesh(mesh.vertices, mesh.faces, process=True, merge_tex=True)
    assert welded.is_watertight and welded.volume > 0 and len(mesh.faces) <= 2000
    points, faces = trimesh.sample.sample_surface(mesh, 4000, seed=1)
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[faces], points)
    uvs = (mesh.visual.uv[mesh.faces[faces]] * weights[..., None]).sum(1)
    texture = mesh.visual.material.baseColorTexture
    colours = trimesh.visual.color.uv_to_interpolated_color(uvs, texture)
    where = torch.from_numpy(np.asarray(points)).float()
    expected = srgb_of_lit(sphere_object(RADIUS).albedo(where), where / RADIUS)
    seen = np.abs(points[:, 1]) < 0.5 * RADIUS  # what an orbit looks at from the side
    off = np.abs(colours[:, :3] / 255 - expected.numpy())[seen]
    assert np.median(off) < 0.02 and np.quantile(off, 0.95) < 0.06


def srgb_of_lit(albedo, normals):
    """What the pictures show at places of the ball."""
    return linear_to_srgb(shade(albedo, normals)).clamp(0, 1)


def test_pictures_and_report_tell_of_the_texture(finished):
    report = json.loads((finished / "report.json").read_text(encoding="utf-8"))
    assert report["files"] == ["textured.glb", "texture.png", "unseen.png"]
    assert report["mesh"]["faces"] <= 2000 and report["views"] == "agree"
    assert report["texture"]["resolution"] == 256 and report["texture"]["db"] > 30
    with Image.open(finished / "texture.png") as picture:
        assert picture.size == (256, 256)
    with Image.open(finished / "unseen.png") as picture:
        marked = np.asarray(picture)[..., 0] > 127
    assert 0 < marked.mean() < 0.5  # the ball's underside


def test_uvs_of_a_mesh_are_kept_unless_new_ones_are_asked_for(finished, data, tmp_path):
    first = trimesh.load(finished / "textured.glb", process=False, force="mesh")
    again = ("refine", finished / "textured.glb", data / "views", "--faces", 0)
    again += ("--texture-size", 128, "--device", "cpu", "--align", "off")
    assert run(*again, "--out", tmp_path / "kept") == 0
    kept = trimesh.load(tmp_path / "kept" / "textured.glb", process=False, force="mesh")
    assert np.allclose(kept.visual.uv, first.visual.uv, atol=1e-6)
    assert kept.visual.material.baseColorTexture.size == (128, 128)
    assert run(*again, "--new-uvs", "--out", tmp_path / "new", "--format", "obj") == 0
    assert {path.name for path in (tmp_path / "new").glob("textured*")} >= {
        "textured.obj",
        "textured.mtl",
    }


def fails(capsys, *arguments):
    code = run(*arguments)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == cli.EXIT_BAD_INPUT and error.startswith("v3d: ")
    return error


def test_bad_input_is_one_line_with_the_numbers(data, tmp_path, capsys):
    views, out = data / "views", ("--out", tmp_path / "out", "--device", "cpu")
    away = trimesh.creation.icosphere(radius=0.1)
    away.apply_translation([50, 0, 0])
    away.export(tmp_path / "away.ply")
    error = fails(capsys, "refine", tmp_path / "away.ply", views, *out, "--align", "off")
    assert "8 of 8 views see nothing of the mesh" in error
    assert "64 to 4096, got 5000" in fails(
        capsys, "refine", data / "ball.ply", views, *out, "--texture-size", 5000
    )
    assert "set iterations" in fails(
        capsys, "refine", data / "ball.ply", views, *out, "--lpips-weight", 1
    )
    broken = tmp_path / "broken.glb"
    broken.write_bytes(b"glTF and no more")
    assert "broken.glb" in fails(capsys, "refine", broken, views, *out)
    assert not list((tmp_path / "out").glob("textured*"))
    assert ".stl" in fails(
        capsys, "export", data / "ball.ply", "--out", tmp_path / "b.glb", "--print-size", 50
    )


def test_a_print_has_its_size_in_millimetres(data, tmp_path):
    out = tmp_path / "ball.stl"
    assert run("export", data / "ball.ply", "--out", out, "--print-size", 80) == 0
    mesh = trimesh.load(out)
    assert mesh.is_watertight and mesh.extents.max() == pytest.approx(80, rel=1e-4)
