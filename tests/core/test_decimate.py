"""Decimation: closed meshes stay closed, and its error is what it says."""

import functools

import pytest
import torch
import trimesh
from skimage.measure import marching_cubes

from v3d_core.mesh import decimate as module
from v3d_core.mesh.decimate import decimate
from v3d_core.mesh.surface_error import diagonal, surface_error, surface_points
from v3d_core.mesh.topology import count_edges
from v3d_core.mesh_manifold import split_shared_edges
from v3d_core.mesh_repair import signed_volume, with_normals
from v3d_core.structures import Mesh

torch.set_num_threads(2)


def ball(points):
    return points.norm(dim=-1) - 0.7


def torus(points):
    ring = torch.hypot(points[..., 0], points[..., 2]) - 0.6
    return torch.hypot(ring, points[..., 1]) - 0.2


def gyroid(points):
    x, y, z = (points * 6).unbind(-1)
    wave = (x.sin() * y.cos() + y.sin() * z.cos() + z.sin() * x.cos()) / 10
    return torch.maximum(wave.abs() - 0.03, points.norm(dim=-1) - 0.8)


def plates(points):  # three, thinner than a voxel apart, that touch a bar
    slots = (points[..., 1] % 0.1 - 0.05).abs() - 0.03
    box = points.abs().amax(dim=-1) - 0.6
    bar = (points[..., [0, 2]]).abs().amax(dim=-1) - 0.1
    return torch.maximum(torch.minimum(slots, bar), box)


@functools.cache
def extracted(shape, resolution=64) -> Mesh:
    """Marching cubes over [-1, 1]^3, faces outward."""
    axis = torch.linspace(-1, 1, resolution)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    values = shape(points)
    vertices, faces, _, _ = marching_cubes(
        values.numpy(), 1e-6, spacing=(2 / (resolution - 1),) * 3
    )
    mesh = Mesh(
        torch.from_numpy(vertices.copy()).float() - 1,
        torch.from_numpy(faces.astype("int64")),
        vertex_colours=torch.from_numpy(vertices.copy()).float() / 2,
    )
    return split_shared_edges(mesh)


def edges(mesh: Mesh):
    return count_edges(mesh.faces.numpy())


@pytest.mark.parametrize("shape", [ball, torus, gyroid, plates])
@pytest.mark.parametrize("target", [2000, 60])
def test_a_closed_mesh_stays_closed_at_any_budget(shape, target):
    source = extracted(shape)
    assert edges(source).watertight
    light = decimate(source, target)
    opened = trimesh.Trimesh(light.mesh.vertices.numpy(), light.mesh.faces.numpy(), process=False)
    assert edges(light.mesh).watertight
    assert opened.is_watertight and opened.is_winding_consistent
    assert signed_volume(light.mesh) > 0.5 * signed_volume(source) > 0
    assert len(light.mesh.faces) <= target or light.stopped == "shape"
    if shape in (ball, torus):  # nothing is thin enough to be pinched
        assert opened.euler_number == (2 if shape is ball else 0) and opened.body_count == 1
        assert light.stopped == "" or target < 100


def test_the_ball_has_the_error_of_a_polyhedron_of_that_many_faces():
    # a sphere of radius r in F faces: sagitta s^2 / 8 r over the longest way s across equal faces
    light = decimate(extracted(ball), 2000)
    radii = light.mesh.vertices.norm(dim=-1)
    area_per_face = 4 * torch.pi * 0.49 / 2000
    side = (area_per_face * 4 / 3**0.5) ** 0.5
    sagitta = (side / 3**0.5) ** 2 / (2 * 0.7)  # at the middle of an equilateral face
    assert (radii - 0.7).abs().max() < 2 * sagitta
    assert light.error.high * diagonal(extracted(ball)) < 2 * sagitta


def test_the_error_is_that_of_a_brute_force_over_both_surfaces():
    source = extracted(torus, 24)
    light = decimate(source, 300)

    def far(points, mesh):
        corners = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
        _, distances, _ = trimesh.proximity.closest_point_naive(corners, points.numpy())
        return torch.from_numpy(distances)

    there = far(surface_points(light.mesh, 1000, 5), source)
    back = far(surface_points(source, 1000, 6), light.mesh)
    unit = diagonal(source)
    expected = max(there.mean(), back.mean()) / unit
    assert light.error.mean == pytest.approx(float(expected), rel=0.1)
    highest = max(there.max(), back.max()) / unit
    assert light.error.mean < light.error.high <= light.error.largest
    assert light.error.high > 0.6 * float(highest) and light.error.largest > 0.95 * float(highest)


def test_concentric_balls_lie_as_far_apart_as_their_radii():
    big = trimesh.creation.icosphere(subdivisions=5, radius=1.0)
    faces = torch.from_numpy(big.faces.astype("int64"))
    outer = Mesh(torch.from_numpy(big.vertices).float(), faces)
    inner = Mesh(outer.vertices * 0.9, faces)
    error = surface_error(inner, outer, samples=5000)
    for value in (error.mean, error.high, error.largest):
        assert value * diagonal(outer) == pytest.approx(0.1, rel=0.01)


def test_the_same_surface_has_no_error_and_points_are_spread_evenly():
    mesh = extracted(ball, 32)
    assert surface_error(mesh, mesh, samples=2000).largest < 1e-6
    points = surface_points(mesh, 20_000, 0)
    for axis in range(3):
        assert float((points[:, axis] > 0).double().mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("bound", [3e-3, 1e-3])
def test_more_faces_are_kept_where_the_bound_needs_them(bound):
    source = extracted(torus, 40)
    light = decimate(source, 100, max_error=bound)
    assert light.error.high <= bound
    assert light.error == surface_error(light.mesh, source)
    assert light.stopped == "max_error" and edges(light.mesh).watertight
    fewer = decimate(source, int(0.6 * len(light.mesh.faces)))
    assert fewer.error.high > bound  # the bound is used up


def test_a_bound_of_nothing_keeps_the_mesh():
    source = extracted(ball, 20)
    kept = decimate(source, 100, max_error=0.0)
    assert kept.mesh is source and kept.error is None and kept.stopped == "max_error"
    within = decimate(source, len(source.faces))
    assert within.mesh is source and within.stopped == ""


def test_the_size_and_place_of_a_mesh_change_nothing():
    source = extracted(torus, 32)
    here = decimate(source, 500)
    far = Mesh(source.vertices * 1024 + 4096, source.faces)
    there = decimate(far, 500)
    assert len(there.mesh.faces) == len(here.mesh.faces)
    assert there.error.mean == pytest.approx(here.error.mean, rel=0.2)


def test_colours_and_normals_are_those_of_the_nearest_point():
    source = with_normals(extracted(ball))
    light = decimate(source, 1000).mesh
    assert (light.normals - light.vertices / 0.7).norm(dim=-1).max() < 0.05
    torch.testing.assert_close(light.vertex_colours, (light.vertices + 1) / 2, atol=0.01, rtol=0)


def test_the_rim_of_an_open_mesh_stays_the_only_one():
    whole = extracted(ball)
    keep = whole.vertices[whole.faces].mean(dim=1)[:, 1] < 0.1
    bowl = Mesh(whole.vertices, whole.faces[keep])
    light = decimate(bowl, 1000)
    counts = edges(light.mesh)
    assert counts.open and not counts.shared and light.error.high < 0.015


def test_a_step_that_opens_a_closed_mesh_is_not_taken(monkeypatch):
    import fast_simplification

    source = extracted(ball, 32)

    def torn(points, triangles, target_count, agg):
        made = original(points, triangles, target_count=target_count, agg=agg)
        return made[0], made[1][:-1]

    original = fast_simplification.simplify
    monkeypatch.setattr(fast_simplification, "simplify", torn)
    kept = decimate(source, 100)
    assert kept.mesh is source and kept.stopped == "shape"


def test_a_cancel_stops_between_two_steps():
    class Stop(Exception):
        pass

    shares = []

    def tick(share):
        shares.append(share)
        if len(shares) > 5:
            raise Stop

    with pytest.raises(Stop):
        decimate(extracted(ball), 100, tick=tick)
    assert len(shares) == 6 and all(0 <= share <= 1 for share in shares)


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ({"target_faces": 3}, "target_faces must be at least 4, got 3"),
        ({"target_faces": 9, "max_error": -0.1}, r"max_error must lie in 0 to 1, got -0\.1"),
    ],
)
def test_wrong_numbers_are_named(inputs, complaint):
    with pytest.raises(ValueError, match=complaint):
        decimate(extracted(ball, 32), **inputs)


def test_the_package_is_asked_for_steps_of_bounded_size(monkeypatch):
    monkeypatch.setattr(module, "STEP_FACES", 1000)
    import fast_simplification

    original, steps = fast_simplification.simplify, []

    def watched(points, triangles, target_count, agg):
        steps.append(len(triangles) - target_count)
        return original(points, triangles, target_count=target_count, agg=agg)

    monkeypatch.setattr(fast_simplification, "simplify", watched)
    decimate(extracted(ball), 3000)
    assert len(steps) > 5 and max(steps) <= 1000
