"""Meshes fused from exact and from disturbed depth, against the analytic surface."""

import dataclasses
import math
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import trimesh

from v3d_core import procedural
from v3d_core.cameras import Orbit, camera_rays, orbit_cameras, project_points, resize_cameras
from v3d_core.demo_object import AnalyticObject, demo_robot, sphere_object
from v3d_core.mesh import fusion
from v3d_core.mesh.config import SplatMeshConfig
from v3d_core.mesh.from_splats import (
    extract_surface,
    fuse_maps,
    mesh_from_splats,
    sphere_cameras,
)
from v3d_core.mesh.fusion import fuse, prepare_evidence
from v3d_core.structures import Cameras, GaussianSplats, Mesh, Views

ROBOT = demo_robot()
SMALL = SplatMeshConfig(resolution=64, picture_size=96, extra_elevations_deg=())


def splats_on(shape: AnalyticObject, count: int = 400) -> GaussianSplats:
    """Small splats on the surface of an object; only their places matter here."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(count, 3, generator=generator)
    means = torch.nn.functional.normalize(directions, dim=-1) * 0.6
    quats = torch.tensor([1.0, 0, 0, 0]).expand(count, 4)
    return GaussianSplats(
        means, torch.full((count, 3), 0.02), quats, torch.ones(count), torch.zeros(count, 1, 3)
    )


class ExactRenderer:
    """Renders the analytic object in place of splats, with depth errors on request."""

    seen: ClassVar[dict[tuple, procedural.ObjectMaps]] = {}  # pictures several tests look at

    def __init__(self, shape: AnalyticObject, noise: float = 0.0, outliers: float = 0.0):
        self.shape, self.noise, self.outliers = shape, noise, outliers
        self.generator = torch.Generator().manual_seed(7)

    def _key(self, camera: Cameras) -> tuple:
        return (self.shape, camera.width, *camera.camera_to_world.flatten().tolist())

    def look_ahead(self, cameras: Cameras) -> "ExactRenderer":
        """Trace views together that are asked for one by one: several times as fast."""
        maps = procedural.render_maps(cameras, self.shape)
        for i in range(len(cameras)):
            view = (getattr(maps, f.name)[i : i + 1] for f in dataclasses.fields(maps))
            self.seen[self._key(cameras[i])] = procedural.ObjectMaps(*view)
        return self

    def __call__(self, splats, cameras, background):
        key = self._key(cameras)
        if key not in self.seen:
            self.seen[key] = procedural.render_maps(cameras, self.shape)
        maps = self.seen[key]
        depths = torch.where(maps.alphas >= 0.5, maps.depths, 0.0)
        disturbed = depths + self.noise * torch.randn(depths.shape, generator=self.generator)
        wild = torch.rand(depths.shape, generator=self.generator) < self.outliers
        shift = 0.6 * (torch.rand(depths.shape, generator=self.generator) - 0.5)
        disturbed = torch.where(wild, depths + shift, disturbed)
        alphas = maps.alphas[..., None]
        colours = maps.colours * alphas + torch.tensor(background) * (1 - alphas)
        return SimpleNamespace(
            colours=colours,
            alphas=maps.alphas,
            depths=torch.where(depths > 0, disturbed, 0.0),
        )


def orbit(size: int = 96, views: int = 18) -> Cameras:
    return orbit_cameras(Orbit(num_views=views), size, size)


def as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)


def voxel_of(mesh: Mesh, config: SplatMeshConfig) -> float:
    return float((mesh.vertices.amax(0) - mesh.vertices.amin(0)).max()) / config.resolution


@pytest.fixture(scope="module")
def robot_mesh() -> Mesh:
    render = ExactRenderer(ROBOT).look_ahead(orbit())
    return mesh_from_splats(splats_on(ROBOT), orbit(), SMALL, render=render)


@pytest.mark.slow
def test_exact_depth_gives_the_surface_to_half_a_voxel(robot_mesh):
    error = ROBOT.sdf(robot_mesh.vertices.double()).abs()
    assert float(error.mean()) < 0.5 * voxel_of(robot_mesh, SMALL)


def test_mesh_is_closed_one_piece_and_faces_outward(robot_mesh):
    mesh = as_trimesh(robot_mesh)
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.body_count == 1
    truth = as_trimesh(procedural.object_mesh(resolution=96))
    assert mesh.volume == pytest.approx(truth.volume, rel=0.05)
    assert robot_mesh.normals is not None
    ahead = robot_mesh.vertices + 0.02 * robot_mesh.normals
    outside = ROBOT.sdf(ahead.double()) > 0
    assert float(outside.float().mean()) > 0.97


def test_hole_of_the_ring_stays_open(robot_mesh):
    # the robot holds a ring: a solid without handles would have Euler number 2
    assert as_trimesh(robot_mesh).euler_number <= 0


def test_vertex_colours_are_those_of_the_pictures(robot_mesh):
    cameras = orbit()[[0, 9]]
    maps = procedural.render_maps(cameras)
    pixels, depth = project_points(robot_mesh.vertices, cameras)
    assert robot_mesh.vertex_colours is not None and robot_mesh.normals is not None
    for v in range(2):
        column, row = pixels[v].long().clamp(0, 95).unbind(-1)
        towards = cameras.centres[v] - robot_mesh.vertices
        facing = (torch.nn.functional.normalize(towards, dim=-1) * robot_mesh.normals).sum(-1)
        seen = (facing > 0.8) & ((depth[v] - maps.depths[v, row, column]).abs() < 0.02)
        off = (robot_mesh.vertex_colours - maps.colours[v, row, column])[seen].abs().mean(dim=-1)
        assert int(seen.sum()) > 500
        assert float(off.median()) < 0.03


def test_noise_and_outliers_move_the_surface_by_less_than_the_noise():
    # depth errors of N(0, 0.005) and 2 % outliers of up to +-0.3
    render = ExactRenderer(ROBOT, noise=0.005, outliers=0.02)
    mesh = mesh_from_splats(splats_on(ROBOT), orbit(), SMALL, render=render)
    error = ROBOT.sdf(mesh.vertices.double()).abs()
    assert float(error.median()) < 0.0025  # half of one view's noise: views are averaged
    assert float(error.mean()) < 0.005
    assert as_trimesh(mesh).is_watertight and as_trimesh(mesh).body_count == 1


@pytest.mark.slow
def test_sphere_has_the_area_and_volume_of_the_closed_form():
    ball = sphere_object(0.6)
    splats = splats_on(ball)
    render = ExactRenderer(ball).look_ahead(sphere_cameras(splats, SMALL.picture_size))
    mesh = mesh_from_splats(splats, None, SMALL, render=render)
    solid = as_trimesh(mesh)
    assert solid.is_watertight
    assert solid.volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.01)
    assert solid.area == pytest.approx(4 * math.pi * 0.6**2, rel=0.01)


def test_dense_and_sparse_fusion_agree():
    cameras = orbit(64, 8)
    maps = procedural.render_maps(cameras)
    depths = torch.where(maps.alphas >= 0.5, maps.depths, 0.0)
    evidence = prepare_evidence(cameras, maps.alphas, depths, SMALL.min_cosine)
    config = dataclasses.replace(SMALL, resolution=40)
    volume = fuse(evidence, config)
    index = fusion._grid(list(volume.values.shape), torch.device("cpu"))
    points = volume.origin + index * volume.voxel
    dense = fusion._fuse_points(points, evidence, volume.voxel, config, 0.0)
    dense = dense.reshape(volume.values.shape)[1:-1, 1:-1, 1:-1]
    sparse = volume.values[1:-1, 1:-1, 1:-1]
    disagree = (dense > 0) != (sparse > 0)
    assert float(disagree.float().mean()) < 1e-4


@pytest.fixture(scope="module")
def ball_maps() -> procedural.ObjectMaps:
    return procedural.render_maps(orbit(128, 12), sphere_object(0.6))


@pytest.mark.slow
@pytest.mark.parametrize("error", [0.0, 0.006, 0.012])
def test_depth_that_lies_behind_the_surface_is_put_right_by_the_outlines(error, ball_maps):
    cameras = orbit(128, 12)
    maps = ball_maps
    depths = torch.where(maps.alphas >= 0.5, maps.depths, 0.0)
    slant = (maps.normals * camera_rays(cameras)[1]).sum(-1).abs()  # along the normal: the same
    depths = torch.where(depths > 0, depths + error / slant.clamp_min(0.15), 0.0)
    radius = {}
    for match in (False, True):
        config = dataclasses.replace(SMALL, match_outlines=match)
        mesh = extract_surface(fuse_maps(cameras, maps.alphas, depths, config))
        waist = mesh.vertices[mesh.vertices[:, 1].abs() < 0.1]
        radius[match] = float(waist.norm(dim=-1).median())
    quarter_pixel = 0.25 * 2.0 / float(cameras.K[0, 0, 0])
    assert radius[False] == pytest.approx(0.6 - error, abs=quarter_pixel)
    assert radius[True] == pytest.approx(0.6, abs=quarter_pixel)


@pytest.mark.slow
def test_what_no_view_sees_is_solid():
    # from one side only, depth says nothing about the back: coverage carves a cone there
    ball = sphere_object(0.5)
    front = orbit(64, 18)[[0, 4, 14]]
    mesh = mesh_from_splats(splats_on(ball), front, SMALL, render=ExactRenderer(ball))
    solid = as_trimesh(mesh)
    assert solid.is_watertight and solid.volume > 4 / 3 * math.pi * 0.5**3


def test_colours_come_from_the_given_views_when_there_are_any():
    ball = sphere_object(0.5)
    cameras = orbit(48, 6)
    maps = procedural.render_maps(cameras, ball)
    red = torch.tensor([1.0, 0.0, 0.0]).expand_as(maps.colours)
    red, masks = (
        maps.repeat_interleave(2, 1).repeat_interleave(2, 2) for maps in (red, maps.alphas)
    )
    views = Views(red, masks, resize_cameras(cameras, 96, 96))  # twice the size of the renders
    render = ExactRenderer(ball).look_ahead(cameras)
    mesh = mesh_from_splats(splats_on(ball), cameras, SMALL, render=render, views=views)
    assert mesh.vertex_colours is not None
    assert (mesh.vertex_colours - torch.tensor([1.0, 0, 0])).abs().max() < 1e-4


def test_views_of_other_cameras_are_refused():
    ball = sphere_object(0.5)
    views = procedural.render_object(orbit(16, 6), ball)
    render = ExactRenderer(ball)
    with pytest.raises(ValueError, match="4 cameras but 6 views"):
        mesh_from_splats(splats_on(ball), orbit(16, 4), SMALL, render=render, views=views)
    turned = orbit_cameras(Orbit(num_views=6, azimuth_start_deg=10), 16, 16)
    with pytest.raises(ValueError, match="other poses"):
        mesh_from_splats(splats_on(ball), turned, SMALL, render=render, views=views)
    with pytest.raises(ValueError, match="need their cameras"):
        mesh_from_splats(splats_on(ball), None, SMALL, render=render, views=views)


def test_progress_counts_up_to_its_total_and_can_stop_the_work():
    ball = sphere_object(0.5)
    steps = []

    def record(step, total, preview=None, text=""):
        steps.append((step, total))

    arguments = (splats_on(ball), orbit(32, 4), dataclasses.replace(SMALL, resolution=24))
    mesh_from_splats(*arguments, render=ExactRenderer(ball), progress=record)
    counted = [step for step, _ in steps]
    # fusing repeats its step, so that Cancel is heard in the middle of it
    assert counted == sorted(counted) and len(counted) > len(set(counted)) + 2
    assert sorted(set(counted)) == list(range(1, steps[-1][1] + 1))

    def cancel(step, total, preview=None, text=""):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mesh_from_splats(*arguments, render=ExactRenderer(ball), progress=cancel)


def test_sphere_cameras_frame_the_splats_wherever_they_are():
    splats = splats_on(sphere_object(0.6))
    moved = dataclasses.replace(splats, means=splats.means * 3 + torch.tensor([5.0, -2.0, 1.0]))
    cameras = sphere_cameras(moved, 64)
    pixels, depth = project_points(moved.means, cameras)
    assert (depth > 0).all() and (pixels > 0).all() and (pixels < 64).all()


def test_added_rings_look_at_the_object_from_their_elevation():
    ball = sphere_object(0.6)
    seen = []

    def render(splats, cameras, background):
        seen.append(cameras)
        return ExactRenderer(ball)(splats, cameras, background)

    config = SplatMeshConfig(resolution=24, extra_elevations_deg=(30.0,), extra_views=3)
    mesh_from_splats(splats_on(ball), orbit(32, 4), config, render=render)
    assert len(seen) == 7
    for camera in seen[4:]:
        assert float(camera.centres[0, 1]) == pytest.approx(2 * math.sin(math.radians(30)), abs=0.1)


def test_transparent_splats_are_refused_with_the_reason():
    def nothing(splats, cameras, background):
        shape = (len(cameras), cameras.height, cameras.width)
        return SimpleNamespace(
            colours=torch.zeros(*shape, 3), alphas=torch.zeros(shape), depths=torch.zeros(shape)
        )

    with pytest.raises(ValueError, match="no view shows a surface"):
        mesh_from_splats(splats_on(sphere_object()), orbit(16, 3), SMALL, render=nothing)


def test_no_splats_are_refused():
    splats = splats_on(sphere_object())[torch.zeros(400, dtype=torch.bool)]
    with pytest.raises(ValueError, match="0 splats"):
        mesh_from_splats(splats, None, SMALL, render=ExactRenderer(sphere_object()))


@pytest.mark.parametrize(("field", "value"), [("resolution", 4), ("min_cosine", 1.5)])
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field}.*{value}"):
        SplatMeshConfig(**{field: value})
