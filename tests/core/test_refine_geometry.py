"""A surface laid on the views: a ball comes back to its radius, whatever is done to it or said of it."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import trimesh

from v3d_core import cli
from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.demo_object import sphere_object
from v3d_core.formats.views import save_views
from v3d_core.mesh import asset, texture_checks
from v3d_core.mesh.asset import AssetConfig, put_texture, shape_from_views
from v3d_core.mesh.geometry_config import GeometryConfig
from v3d_core.mesh.refine_geometry import refine_geometry, surface_of
from v3d_core.mesh.topology import count_edges
from v3d_core.procedural import render_object
from v3d_core.structures import Mesh, Views

RADIUS, SIZE, VIEWS = 0.6, 96, 12
QUICK = GeometryConfig(blurs_px=(2.0, 1.0))


def ball(scale: float = 1.0, subdivisions: int = 3) -> Mesh:
    """Its vertices lie on a ball of `scale` times the true radius."""
    shape = trimesh.creation.icosphere(subdivisions=subdivisions, radius=RADIUS * scale)
    vertices = torch.from_numpy(np.array(shape.vertices)).float()
    return Mesh(vertices, torch.from_numpy(np.array(shape.faces)).long())


@pytest.fixture(scope="module")
def views() -> Views:
    cameras = orbit_cameras(Orbit(num_views=VIEWS), SIZE, SIZE)
    return render_object(cameras, sphere_object(RADIUS), supersample=3)


def radii(mesh: Mesh) -> torch.Tensor:
    """Distances of the vertices from the centre, true radii."""
    return mesh.vertices.norm(dim=-1) / RADIUS


def off(mesh: Mesh) -> float:
    """Root mean square of what the radii are off by, true radii."""
    return float((radii(mesh) - 1).square().mean().sqrt())


@pytest.mark.parametrize("scale", [0.98, 1.02])
def test_a_ball_comes_back_to_its_radius(views, scale):
    refined, report = refine_geometry(ball(scale), views)
    assert off(refined) < 0.002  # a tenth of what it was; 0.04 px
    assert float((radii(refined) - 1).abs().max()) < 0.006
    assert report["kept"] and report["outline_px_after"] < 0.1 * report["outline_px"]
    assert report["colour_rms_after"] < 0.2 * report["colour_rms"]


def test_a_ball_of_the_true_radius_stays(views):
    refined, report = refine_geometry(ball(), views, QUICK)
    # flat faces between vertices on the ball lie inside it by up to 0.0025, so that it grows a little
    assert off(refined) < 0.0025 and report["moved_px"] < 0.06


def test_it_does_not_matter_how_the_world_is_turned(views):
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    turn = turn * torch.linalg.det(turn)
    poses = views.cameras.camera_to_world.clone()
    poses[:, :3] = turn @ poses[:, :3]
    cameras = dataclasses.replace(views.cameras, camera_to_world=poses)
    mesh = ball(1.02)
    straight, _ = refine_geometry(mesh, views, QUICK)
    turned, _ = refine_geometry(
        dataclasses.replace(mesh, vertices=mesh.vertices @ turn.T),
        dataclasses.replace(views, cameras=cameras),
        QUICK,
    )
    away = (turned.vertices - straight.vertices @ turn.T).norm(dim=-1) / RADIUS
    assert float(away.square().mean().sqrt()) < 5e-4 and float(away.max()) < 5e-3


def test_vertices_in_one_place_move_as_one(views):
    mesh = ball(1.02)
    torn = Mesh(
        mesh.vertices[mesh.faces].reshape(-1, 3), torch.arange(3 * len(mesh.faces)).view(-1, 3)
    )
    whole, _ = refine_geometry(mesh, views, QUICK)
    refined, _ = refine_geometry(torn, views, QUICK)
    expected = whole.vertices[mesh.faces].reshape(-1, 3)
    assert float((refined.vertices - expected).abs().max()) < 1e-5 * RADIUS


def test_only_vertices_and_normals_change_and_the_mesh_stays_closed(views):
    mesh = dataclasses.replace(ball(1.02), vertex_colours=torch.rand(642, 3))
    kept = dataclasses.replace(mesh, vertices=mesh.vertices.clone())
    refined, _ = refine_geometry(mesh, views, QUICK)
    assert torch.equal(mesh.vertices, kept.vertices)  # the caller's own
    assert torch.equal(refined.faces, mesh.faces)
    assert refined.vertex_colours is mesh.vertex_colours
    assert count_edges(refined.faces.numpy()).watertight
    shape = trimesh.Trimesh(refined.vertices.numpy(), refined.faces.numpy(), process=False)
    assert shape.is_watertight and shape.is_winding_consistent
    assert shape.volume == pytest.approx(ball_volume(), rel=0.006)
    assert refined.normals is not None
    facing = (refined.normals * torch.nn.functional.normalize(refined.vertices, dim=-1)).sum(-1)
    assert float(facing.min()) > 0.99


def ball_volume() -> float:
    shape = ball()
    return trimesh.Trimesh(shape.vertices.numpy(), shape.faces.numpy(), process=False).volume


def shifted(views: Views, right: list[int], down: list[int]) -> Views:
    """Every view's picture moved by whole pixels."""
    moves = list(zip(down, right, strict=True))
    roll = [torch.roll(i, m, (0, 1)) for i, m in zip(views.images, moves, strict=True)]
    masks = [torch.roll(i, m, (0, 1)) for i, m in zip(views.masks, moves, strict=True)]
    return dataclasses.replace(views, images=torch.stack(roll), masks=torch.stack(masks))


def test_one_view_that_contradicts_is_hardly_followed(views):
    wrong = shifted(views, [6] + [0] * (VIEWS - 1), [0] * VIEWS)
    refined, _ = refine_geometry(ball(1.02), wrong, QUICK)
    assert off(refined) < 0.01  # a quarter of a pixel; that view is off by six


@pytest.mark.parametrize("scale", [1.0, 1.02])
def test_views_that_contradict_each_other_are_not_followed(views, scale):
    random = torch.Generator().manual_seed(0)
    right, down = torch.randint(-1, 2, (2, VIEWS), generator=random).tolist()
    mesh = ball(scale)
    refined, report = refine_geometry(mesh, shifted(views, right, down), QUICK)
    assert refined is mesh and not report["kept"] and report["moved_px"] == 0


def test_thin_walls_keep_a_distance(views):
    wall = trimesh.creation.box((0.8, 0.8, 0.02)).subdivide().subdivide()
    mesh = Mesh(torch.from_numpy(wall.vertices).float(), torch.from_numpy(wall.faces).long())
    config = GeometryConfig()
    surface = surface_of(mesh, views.cameras, config)
    inner = (surface.places[:, :2].abs() < 0.39).all(-1)
    assert float(surface.inward[inner].max()) * surface.pixel < 1.05 * config.clearance * 0.02
    assert float(surface.outward.min()) == config.most_px
    far = torch.full((len(surface.places),), 100.0)
    assert torch.equal(surface.allowed(-far), -surface.inward)
    assert torch.equal(surface.allowed(far), surface.outward)


def test_progress_counts_up_and_raising_in_it_cancels(views):
    steps = []

    def stop(step, total, preview=None, text=""):
        steps.append((step, total))
        if len(steps) == VIEWS + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine_geometry(ball(), views, QUICK, progress=stop)
    looks = 2 + len(QUICK.blurs_px) * QUICK.rounds  # one before and one after the steps
    assert steps == [(k + 1, looks * VIEWS) for k in range(VIEWS + 2)]


def test_bad_meshes_and_settings_are_refused(views):
    with pytest.raises(ValueError, match="642 vertices but 0 faces"):
        refine_geometry(Mesh(ball().vertices, torch.zeros(0, 3, dtype=torch.long)), views)
    with pytest.raises(ValueError, match="blurs_px"):
        GeometryConfig(blurs_px=())
    with pytest.raises(ValueError, match=r"smoothness: must be positive, got -1"):
        GeometryConfig(smoothness=-1.0)


def test_an_asset_is_textured_on_the_shape_that_the_views_show(views):
    config = AssetConfig(faces=0, texture_size=128, refine_geometry=True, align="off")
    asset = put_texture(ball(1.02), views, config)
    assert off(asset.mesh) < 0.0025 and asset.mesh.texture is not None
    assert asset.report["geometry"]["kept"] and asset.report["geometry"]["moved_px"] > 0.3
    plain = put_texture(ball(1.02), views, dataclasses.replace(config, refine_geometry=False))
    assert off(plain.mesh) == pytest.approx(0.02, abs=1e-4) and "geometry" not in plain.report
    assert asset.report["texture"]["db"] > plain.report["texture"]["db"] + 3


def test_views_that_are_laid_on_the_surface_say_nothing_about_it(views):
    mesh = ball(1.02)
    kept, report = shape_from_views(mesh, views, AssetConfig(align="on"))
    assert kept is mesh and report == {"geometry": {"kept": False, "views": "disagree"}}


def test_the_command_line_refines_the_shape_on_request(views, tmp_path):
    save_views(tmp_path / "views", views)
    shape = trimesh.Trimesh(ball(1.02).vertices.numpy(), ball(1.02).faces.numpy(), process=False)
    shape.export(tmp_path / "ball.ply")
    arguments = ["refine", tmp_path / "ball.ply", tmp_path / "views", "--out", tmp_path / "out"]
    arguments += ["--texture-size", 128, "--device", "cpu", "--align", "off", "--refine-geometry"]
    assert cli.main([str(one) for one in arguments]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["geometry"]["outline_px_after"] < report["geometry"]["outline_px"] / 4
    saved = trimesh.load(tmp_path / "out" / "textured.glb", process=False, force="mesh")
    assert np.linalg.norm(saved.vertices, axis=1).mean() == pytest.approx(RADIUS, rel=0.002)


def test_a_texture_larger_than_memory_is_refused_before_the_shape_is_refined(views, monkeypatch):
    def never(*arguments, **settings):
        raise AssertionError("the shape was refined first")

    monkeypatch.setattr(asset, "refine_geometry", never)
    monkeypatch.setattr(texture_checks, "free_bytes", lambda device: 10**9)
    with pytest.raises(ValueError, match=r"4096x4096 .* but 1\.0 GB are free"):
        put_texture(ball(), views, AssetConfig(texture_size=4096, refine_geometry=True))
