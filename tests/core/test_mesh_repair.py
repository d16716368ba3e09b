"""Mesh repairs against closed forms and trimesh."""

import math

import pytest
import torch
import trimesh

from v3d_core import mesh_repair as clean
from v3d_core.structures import Mesh


def sphere(radius=1.0, centre=(0.0, 0.0, 0.0), subdivisions=4) -> Mesh:
    ball = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    vertices = torch.tensor(ball.vertices, dtype=torch.float32) + torch.tensor(centre)
    return Mesh(vertices, torch.tensor(ball.faces, dtype=torch.int64))


def joined(*meshes: Mesh) -> Mesh:
    offsets, faces = 0, []
    for mesh in meshes:
        faces.append(mesh.faces + offsets)
        offsets += len(mesh.vertices)
    return Mesh(torch.cat([m.vertices for m in meshes]), torch.cat(faces))


def inside_out(mesh: Mesh) -> Mesh:
    return Mesh(mesh.vertices, mesh.faces.flip(1))


def as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)


def test_sphere_area_and_volume_are_the_closed_forms():
    mesh = sphere(0.7)
    assert float(clean.face_areas(mesh).sum()) == pytest.approx(4 * math.pi * 0.49, rel=0.01)
    assert clean.signed_volume(mesh) == pytest.approx(4 / 3 * math.pi * 0.343, rel=0.01)


def test_normals_of_a_sphere_point_from_its_centre():
    mesh = clean.with_normals(sphere(0.7))
    assert (mesh.normals - mesh.vertices / 0.7).abs().max() < 0.01


def test_of_two_spheres_only_the_large_one_stays():
    big, small = sphere(0.7), sphere(0.05, (1.0, 0.0, 0.0), 2)
    kept = clean.largest_components(joined(small, big), min_share=0.05)
    assert torch.equal(kept.vertices, big.vertices)
    assert torch.equal(kept.faces, big.faces)


def test_parts_above_the_share_all_stay_unless_a_number_is_given():
    parts = joined(sphere(0.5), sphere(0.4, (2.0, 0.0, 0.0)), sphere(0.3, (4.0, 0.0, 0.0)))
    assert as_trimesh(clean.largest_components(parts, 0.01)).body_count == 3
    two = clean.largest_components(parts, 0.01, keep=2)
    assert as_trimesh(two).body_count == 2 and float(two.vertices[:, 0].max()) < 2.5


def test_each_part_is_turned_outward_by_itself():
    mixed = joined(sphere(0.5), inside_out(sphere(0.4, (2.0, 0.0, 0.0))))
    mesh = clean.orient_outward(mixed)
    expected = 4 / 3 * math.pi * (0.5**3 + 0.4**3)
    assert clean.signed_volume(mesh) == pytest.approx(expected, rel=0.01)


def test_a_bubble_inside_a_solid_is_removed():
    solid = joined(sphere(0.7), inside_out(sphere(0.3)))
    mesh = clean.drop_inverted_components(solid)
    assert torch.equal(mesh.vertices, sphere(0.7).vertices)


def test_solids_are_found_as_by_the_two_steps():
    parts = joined(
        sphere(0.5),
        inside_out(sphere(0.45, (2.0, 0.0, 0.0))),
        sphere(0.3, (4.0, 0.0, 0.0)),
        sphere(0.02, (6.0, 0.0, 0.0)),
        inside_out(sphere(0.9, (9.0, 0.0, 0.0))),
    )
    for share, keep in ((0.0, None), (0.01, None), (0.5, None), (0.0, 1), (1.0, None)):
        ticks = []
        once = clean.largest_solids(parts, share, keep, lambda ticks=ticks: ticks.append(1))
        twice = clean.largest_components(clean.drop_inverted_components(parts), share, keep)
        assert torch.equal(once.faces, twice.faces) and torch.equal(once.vertices, twice.vertices)
        assert len(ticks) == 3
    assert not len(clean.largest_solids(inside_out(sphere())).faces)


@pytest.mark.parametrize("removed", [[10], [10, 11], list(range(40, 46))])
def test_small_holes_close_to_a_watertight_outward_mesh(removed):
    ball = sphere(0.7, subdivisions=3)
    keep = torch.ones(len(ball.faces), dtype=torch.bool)
    keep[removed] = False
    torn = Mesh(ball.vertices, ball.faces[keep], vertex_colours=ball.vertices.abs())
    assert not as_trimesh(torn).is_watertight
    mesh = clean.fill_holes(torn)
    filled = as_trimesh(mesh)
    assert filled.is_watertight and filled.is_winding_consistent
    assert filled.volume == pytest.approx(as_trimesh(ball).volume, rel=0.01)
    assert mesh.vertex_colours is not None and len(mesh.vertex_colours) == len(mesh.vertices)


def test_large_openings_stay_open():
    ball = sphere(0.7)
    half = ball.vertices[ball.faces].mean(dim=1)[:, 1] < 0
    bowl = clean.select_faces(ball, half)
    assert clean.fill_holes(bowl, max_edges=16) is bowl


def test_taubin_smoothing_removes_noise_and_keeps_the_volume():
    ball = sphere(0.7)
    generator = torch.Generator().manual_seed(0)
    noise = 0.01 * torch.randn(len(ball.vertices), 1, generator=generator)
    rough = Mesh(ball.vertices * (1 + noise), ball.faces)
    smooth = clean.taubin_smooth(rough, 10)
    before = (rough.vertices.norm(dim=-1) - 0.7).std()
    after = (smooth.vertices.norm(dim=-1) - 0.7).std()
    assert after < 0.45 * before
    assert clean.signed_volume(smooth) == pytest.approx(clean.signed_volume(ball), rel=0.003)


def test_colours_spread_from_known_vertices_and_leave_them_alone():
    ball = sphere(1.0, subdivisions=3)
    right = ball.vertices[:, 0] > 0
    colours = torch.where(right[:, None], torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0]))
    known = ball.vertices[:, 0].abs() > 0.3
    painted = Mesh(ball.vertices, ball.faces, vertex_colours=colours * known[:, None])
    spread = clean.spread_colours(painted, known).vertex_colours
    assert spread is not None
    assert torch.equal(spread[known], colours[known])
    off = (spread - colours).abs().amax(dim=-1)
    assert float((off < 0.05).float().mean()) > 0.9


def test_an_empty_mesh_passes_through_every_repair():
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    for repair in (
        clean.largest_components,
        clean.largest_solids,
        clean.orient_outward,
        clean.drop_inverted_components,
        clean.fill_holes,
        clean.taubin_smooth,
        clean.with_normals,
    ):
        assert len(repair(empty).faces) == 0
