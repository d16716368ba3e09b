"""Cleaning: every kind of damage is repaired, counted, and leaves what is whole alone."""

import json
import math
import time

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from v3d_core.mesh.clean import clean
from v3d_core.mesh.clean_config import CleanConfig
from v3d_core.mesh.parts import outward_turns
from v3d_core.mesh.shape import close_holes, smooth_keeping_volume
from v3d_core.mesh.topology import count_edges, weld_borders
from v3d_core.mesh_repair import signed_volume, taubin_smooth
from v3d_core.structures import Mesh

torch.set_num_threads(2)
AS_IT_IS = CleanConfig(target_faces=0)


def of(shape: trimesh.Trimesh, **extras) -> Mesh:
    vertices = torch.from_numpy(np.array(shape.vertices)).float()
    return Mesh(vertices, torch.from_numpy(np.array(shape.faces, np.int64)), **extras)


def ball(radius=0.7, centre=(0.0, 0.0, 0.0), subdivisions=3) -> Mesh:
    shape = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return of(shape.apply_translation(centre))


def box(size=(1.0, 1.0, 1.0), centre=(0.0, 0.0, 0.0)) -> Mesh:
    return of(trimesh.creation.box(extents=size).apply_translation(centre))


def inside_out(mesh: Mesh) -> Mesh:
    return Mesh(mesh.vertices, mesh.faces.flip(1))


def joined(*meshes: Mesh) -> Mesh:
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes])
    faces = [m.faces + int(s) for m, s in zip(meshes, starts, strict=False)]
    return Mesh(torch.cat([m.vertices for m in meshes]), torch.cat(faces))


def soup(mesh: Mesh) -> Mesh:
    """No two faces share a vertex."""
    faces = torch.arange(3 * len(mesh.faces)).reshape(-1, 3)
    return Mesh(mesh.vertices[mesh.faces.reshape(-1)], faces)


def edges(mesh: Mesh):
    return count_edges(mesh.faces.numpy())


def is_a_ball(mesh: Mesh, radius=0.7, faces=1280) -> bool:
    shape = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    volume = 4 / 3 * math.pi * radius**3
    return (
        len(mesh.faces) == faces
        and shape.is_watertight
        and shape.is_winding_consistent
        and shape.euler_number == 2
        and abs(shape.volume / volume - 1) < 0.03
    )


def test_a_whole_mesh_passes_unchanged():
    whole = joined(ball(), ball(0.5, (2, 0, 0)))
    result = clean(whole, AS_IT_IS)
    assert torch.equal(result.mesh.vertices, whole.vertices)
    assert torch.equal(result.mesh.faces, whole.faces)
    assert result.mesh.normals is not None and result.report["watertight"]
    counts = ("welded_vertices", "degenerate_faces", "duplicate_faces", "turned_faces")
    counts += ("small_part_faces", "hidden_part_faces", "holes_filled")
    assert all(result.report[name] == 0 for name in counts)
    json.dumps(result.report)


def test_a_soup_of_faces_becomes_one_closed_surface():
    result = clean(soup(ball()), AS_IT_IS)
    assert is_a_ball(result.mesh) and len(result.mesh.vertices) == 642
    assert not result.report["watertight_before"] and result.report["watertight"]
    assert result.report["welded_vertices"] == 3 * 1280 - 642


def test_an_inside_out_mesh_is_turned():
    result = clean(inside_out(ball()), AS_IT_IS)
    assert is_a_ball(result.mesh) and result.report["turned_faces"] == 1280
    assert ((result.mesh.normals * result.mesh.vertices).sum(-1) > 0).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.0, 1.0))
def test_faces_turned_at_random_agree_again(seed, share):
    whole = ball(subdivisions=2)
    turn = torch.rand(320, generator=torch.Generator().manual_seed(seed)) < share
    mixed = Mesh(whole.vertices, torch.where(turn[:, None], whole.faces.flip(1), whole.faces))
    result = clean(mixed, AS_IT_IS)
    assert is_a_ball(result.mesh, faces=320) or abs(signed_volume(result.mesh) / 1.437 - 1) < 0.1
    assert edges(result.mesh).watertight
    assert result.report["turned_faces"] == int(turn.sum())


def test_faces_given_twice_and_back_to_back_go():
    whole = ball()
    twice = whole.faces[:100][:, [1, 2, 0]]
    there_and_back = torch.cat([torch.tensor([[0, 1, 2]]), torch.tensor([[2, 1, 0]])])
    known = {tuple(sorted(f)) for f in whole.faces.tolist()}
    assert (0, 1, 2) not in known
    dirty = Mesh(whole.vertices, torch.cat([twice, whole.faces, there_and_back]))
    result = clean(dirty, AS_IT_IS)
    assert is_a_ball(result.mesh) and result.report["duplicate_faces"] == 102


def test_a_leaf_modelled_from_both_sides_keeps_one():
    sheet = of(trimesh.creation.box(extents=(1, 1, 1)))
    one_side = sheet.faces[sheet.vertices[sheet.faces][:, :, 1].amin(dim=1) > 0]
    assert len(one_side) == 2
    leaf = Mesh(sheet.vertices, torch.cat([one_side, one_side.flip(1)]))
    result = clean(leaf, AS_IT_IS)
    assert len(result.mesh.faces) == 2


def test_faces_without_area_go_and_leave_no_gap():
    whole = ball(subdivisions=2)
    # the side of two faces gets a middle corner on one side of it only: a face without area
    a, b, c = whole.faces[0].tolist()
    vertices = torch.cat([whole.vertices, (whole.vertices[a] + whole.vertices[b])[None] / 2])
    middle = len(whole.vertices)
    faces = torch.cat(
        [torch.tensor([[a, middle, c], [middle, b, c], [a, b, middle]]), whole.faces[1:]]
    )
    cracked = Mesh(vertices, faces)
    assert edges(cracked).watertight
    result = clean(cracked, AS_IT_IS)
    assert edges(result.mesh).watertight and result.report["straightened_faces"] == 1
    corners = result.mesh.vertices[result.mesh.faces].double()
    a, b, c = corners.unbind(1)
    assert torch.linalg.cross(b - a, c - a).norm(dim=-1).min() > 1e-4


def test_corners_in_one_place_are_joined():
    whole = ball(subdivisions=2)
    end = int(whole.faces[0, 0])
    # a vertex pulled apart into two in the same place, with two faces without area between
    around = (whole.faces == end).any(dim=1).nonzero().flatten().tolist()
    ring = {v for f in around for v in whole.faces[f].tolist() if v != end}
    first = min(ring)
    result = whole.faces.clone()
    new = len(whole.vertices)
    moved = [f for f in around if first in whole.faces[f].tolist()][:1]
    for face in moved:
        result[face][result[face] == end] = new
    gap = [v for v in whole.faces[moved[0]].tolist() if v != end]
    p, q = gap
    extra = [[end, p, new], [end, new, q]]
    order = whole.faces[moved[0]].tolist()
    if order[(order.index(end) + 1) % 3] != p:
        extra = [[end, q, new], [end, new, p]]
    vertices = torch.cat([whole.vertices, whole.vertices[end][None]])
    split = Mesh(vertices, torch.cat([result, torch.tensor(extra)]))
    assert edges(split).watertight
    cleaned = clean(split, AS_IT_IS)
    assert is_a_ball(cleaned.mesh, faces=320) or len(cleaned.mesh.faces) == 320
    assert edges(cleaned.mesh).watertight and cleaned.report["joined_short_sides"] == 1


@pytest.mark.parametrize("removed", [[10], [10, 11], list(range(40, 46))])
def test_holes_are_filled_and_counted(removed):
    whole = ball()
    keep = torch.ones(1280, dtype=torch.bool)
    keep[removed] = False
    result = clean(Mesh(whole.vertices, whole.faces[keep]), AS_IT_IS)
    assert result.report["watertight"] and result.report["holes_filled"] >= 1
    assert signed_volume(result.mesh) == pytest.approx(signed_volume(whole), rel=0.01)
    opened = clean(Mesh(whole.vertices, whole.faces[keep]), CleanConfig(0, max_hole_edges=0))
    assert not opened.report["watertight"] and opened.report["holes_filled"] == 0


def test_the_rims_of_bowls_and_sheets_are_no_holes():
    whole = ball()
    bowl = Mesh(whole.vertices, whole.faces[whole.vertices[whole.faces].mean(1)[:, 1] < 0.3])
    sheet = Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]), torch.tensor([[0, 1, 2], [0, 2, 3]]))  # fmt: skip
    for mesh in (bowl, sheet):
        result = clean(mesh, AS_IT_IS)
        assert result.report["holes_filled"] == 0 and len(result.mesh.faces) == len(mesh.faces)


def test_specks_and_what_is_hidden_go_but_what_sticks_out_stays():
    scene = joined(
        ball(),
        ball(0.3, (0.1, 0, 0)),  # inside
        inside_out(ball(0.2, (-0.45, 0, 0), 2)),  # a cavity
        box((0.1, 3.0, 0.1)),  # through it
        ball(0.01, (2, 0, 0)),  # a speck
    )
    result = clean(scene, AS_IT_IS)
    assert result.report["hidden_part_faces"] == 1280 + 320
    assert result.report["small_part_faces"] == 1280
    assert len(result.mesh.faces) == 1280 + 12
    kept = clean(scene, CleanConfig(0, drop_hidden=False, min_component_share=0.0))
    assert len(kept.mesh.faces) == len(scene.faces)
    one = clean(scene, CleanConfig(0, max_components=1))
    assert is_a_ball(one.mesh)


def test_two_boxes_that_share_an_edge_come_apart():
    left, right = box(), box(centre=(1.0, 1.0, 0.0))
    both = joined(left, right)
    merged = trimesh.Trimesh(both.vertices.numpy(), both.faces.numpy(), process=True)
    pinched = of(merged)
    assert edges(pinched).shared == 1
    result = clean(pinched, AS_IT_IS)
    assert result.report["shared_edges_before"] == 1 and result.report["watertight"]
    assert signed_volume(result.mesh) == pytest.approx(2.0)


def test_a_wall_inside_a_box_is_cut_off_and_the_box_closes():
    shell = of(trimesh.creation.box().subdivide())
    wall = torch.tensor(
        [i for i, v in enumerate(shell.vertices.tolist()) if abs(v[0]) < 1e-6]
    )  # a ring at x = 0
    corners = [i for i in wall.tolist() if sum(abs(abs(x) - 0.5) < 1e-6 for x in shell.vertices[i].tolist()) == 2]  # fmt: skip
    assert len(corners) == 4
    centre = shell.vertices[corners].mean(dim=0)
    order = sorted(corners, key=lambda i: math.atan2(*(shell.vertices[i] - centre)[1:].tolist()))
    a, b, c, d = order
    spoilt = Mesh(shell.vertices, torch.cat([shell.faces, torch.tensor([[a, b, c], [a, c, d]])]))
    result = clean(spoilt, AS_IT_IS)
    assert edges(result.mesh).shared == 0 and result.report["shared_edges"] == 0


def test_a_moebius_strip_is_reported():
    steps = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    rows = [
        [((1 + s * np.cos(t / 2)) * np.cos(t), s * np.sin(t / 2), (1 + s * np.cos(t / 2)) * np.sin(t)) for s in (-0.3, 0.3)]
        for t in steps
    ]  # fmt: skip
    vertices = torch.tensor(np.array(rows).reshape(-1, 3)).float()
    faces = []
    for i in range(24):
        p, q = 2 * i, 2 * i + 1
        r, s = (2 * i + 2, 2 * i + 3) if i < 23 else (1, 0)
        faces += [[p, q, r], [q, s, r]]
    result = clean(Mesh(vertices, torch.tensor(faces)), AS_IT_IS)
    assert result.report["one_sided_faces"] == 48


def test_smoothing_keeps_the_volume_exactly_and_removes_noise():
    whole = ball(subdivisions=4)
    noise = 0.01 * torch.randn(len(whole.vertices), 1, generator=torch.Generator().manual_seed(0))
    rough = Mesh(whole.vertices * (1 + noise), whole.faces)
    smooth = clean(rough, CleanConfig(0, smooth_iterations=20)).mesh
    assert signed_volume(smooth) == pytest.approx(signed_volume(rough), rel=1e-5)
    assert (smooth.vertices.norm(dim=-1)).std() < 0.4 * rough.vertices.norm(dim=-1).std()


def exact_ball(points):
    length = points.norm(dim=-1)
    return length - 0.7, points / length[:, None]


def test_vertices_are_laid_onto_the_field_and_only_from_nearby():
    whole = ball(subdivisions=4)
    rough = Mesh(whole.vertices * (1 + 0.004 * torch.sin(40 * whole.vertices[:, :1])), whole.faces)
    result = clean(rough, AS_IT_IS, distance=exact_ball)
    assert (result.mesh.vertices.norm(dim=-1) - 0.7).abs().max() < 1e-6
    assert result.report["field_distance"] < 1e-6 < result.report["field_distance_before"]
    far = joined(whole, box((0.4, 0.4, 0.4), (2, 0, 0)))
    kept = clean(far, AS_IT_IS, distance=exact_ball).mesh
    assert torch.equal(kept.vertices[-8:], far.vertices[-8:])


def test_a_broken_field_moves_nothing():
    whole = ball()

    def away(points):
        return torch.full((len(points),), 0.01), torch.nn.functional.normalize(points, dim=-1)

    def folded(points):
        way = torch.zeros_like(points)
        way[:, 0] = torch.where(torch.arange(len(points)) % 2 == 0, 1.0, -1.0)
        return torch.full((len(points),), 0.02), way

    for field in (away, folded):
        result = clean(whole, AS_IT_IS, distance=field)
        assert edges(result.mesh).watertight and signed_volume(result.mesh) > 1.2


def textured(copies=1) -> Mesh:
    """A ball cut along a seam, with the texture (u, v, 0)."""
    shape = trimesh.creation.uv_sphere(radius=0.7, count=[24, 24])
    vertices, faces = np.array(shape.vertices), np.array(shape.faces)
    azimuth = np.arctan2(vertices[:, 1], vertices[:, 0]) / (2 * np.pi) + 0.5
    azimuth[np.isclose(azimuth, 1.0)] = 0.0
    height = vertices[:, 2] / 1.4 + 0.5
    corner_u = azimuth[faces]
    wraps = np.ptp(corner_u, axis=1) > 0.5
    corner_u[wraps] = np.where(corner_u[wraps] < 0.5, corner_u[wraps] + 1, corner_u[wraps])
    key = np.c_[faces.reshape(-1), (corner_u.reshape(-1) > 0.999).astype(int)]
    pairs, first, index = np.unique(key, axis=0, return_index=True, return_inverse=True)
    ramp = (torch.arange(256).float() + 0.5) / 256
    texture = torch.stack(
        [ramp.expand(256, 256), ramp[:, None].expand(256, 256), torch.zeros(256, 256)], -1
    )
    return Mesh(
        torch.from_numpy(vertices[pairs[:, 0]]).float(),
        torch.from_numpy(index.reshape(-1, 3)),
        uvs=torch.from_numpy(np.c_[corner_u.reshape(-1)[first], height[pairs[:, 0]]]).float(),
        texture=texture,
    )


def test_uvs_and_texture_stay_while_faces_are_only_dropped_turned_or_moved():
    whole = textured()
    assert not edges(whole).watertight  # open along the seam
    dirty = Mesh(
        torch.cat([whole.vertices, torch.tensor([[3.0, 0, 0], [3.01, 0, 0], [3, 0.01, 0]])]),
        torch.cat([whole.faces.flip(1), torch.tensor([[0, 1, 2]]) + len(whole.vertices)]),
        uvs=torch.cat([whole.uvs, torch.zeros(3, 2)]),
        texture=whole.texture,
    )
    result = clean(dirty, CleanConfig(0, smooth_iterations=1))
    mesh = result.mesh
    assert result.report["texture"] == "kept" and result.report["small_part_faces"] == 1
    assert mesh.texture is whole.texture and len(mesh.faces) == len(whole.faces)
    assert signed_volume(mesh) > 0
    # every face still has the picture it had
    wanted = {tuple(map(tuple, sorted(f))) for f in whole.uvs[whole.faces].tolist()}
    assert {tuple(map(tuple, sorted(f))) for f in mesh.uvs[mesh.faces].tolist()} == wanted
    # and the seam moved as one
    split = mesh.vertices.unique(dim=0)
    assert len(split) < len(mesh.vertices)
    shape = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=True)
    assert shape.is_watertight


def test_a_decimated_texture_becomes_vertex_colours():
    whole = textured()
    result = clean(whole, CleanConfig(500, max_error=0.02))
    mesh = result.mesh
    assert result.report["texture"] == "became vertex colours" and result.report["watertight"]
    assert mesh.uvs is None and mesh.texture is None and len(mesh.faces) <= 500
    height = mesh.vertices[:, 2] / 1.4 + 0.5
    assert (mesh.vertex_colours[:, 1] - height).abs().max() < 0.02


def test_the_report_has_the_error_of_decimation_and_the_bound_is_kept():
    result = clean(ball(subdivisions=4), CleanConfig(200, max_error=2e-3))
    error = result.report["decimation_error"]
    assert error["mean"] < error["high"] <= 2e-3 <= 2 * error["largest"]
    assert result.report["decimation_stopped_by"] == "max_error"
    assert result.report["faces_before"] == 5120 and result.report["faces"] > 200


def test_cleaning_again_changes_nothing():
    once = clean(soup(ball()), AS_IT_IS).mesh
    twice = clean(once, AS_IT_IS).mesh
    assert torch.equal(once.vertices, twice.vertices) and torch.equal(once.faces, twice.faces)


def test_the_given_mesh_stays_as_it_was():
    given_mesh = soup(inside_out(ball()))
    vertices, faces = given_mesh.vertices.clone(), given_mesh.faces.clone()
    clean(given_mesh, CleanConfig(300, smooth_iterations=2))
    assert torch.equal(given_mesh.vertices, vertices) and torch.equal(given_mesh.faces, faces)


def test_progress_rises_to_the_end_and_cancels():
    steps = []
    clean(ball(), CleanConfig(300), progress=lambda s, t, p=None, text="": steps.append((s, text)))
    assert [s for s, _ in steps] == sorted(s for s, _ in steps) and steps[-1][0] == 100
    assert len({text for _, text in steps}) > 3

    class Stop(Exception):
        pass

    def stop(step, total, preview=None, text=""):
        if step > 30:
            raise Stop

    with pytest.raises(Stop):
        clean(ball(), CleanConfig(300), progress=stop)


def test_long_steps_look_at_cancel_on_the_way():
    # each takes more than a second for a soup of a million faces, and none of its parts does
    whole = ball(subdivisions=2)
    holes = soup(Mesh(whole.vertices, whole.faces[5:]))
    vertices, faces = holes.vertices.double().numpy(), holes.faces.numpy()
    joined_up = weld_borders(vertices, faces, 1e-6)[faces]
    patch = np.zeros(len(faces), np.int64)
    open_ball = Mesh(holes.vertices, torch.from_numpy(joined_up))
    for least, step in (
        (3, lambda tick: weld_borders(vertices, faces, 1e-6, tick)),
        (2, lambda tick: outward_turns(vertices, joined_up, patch, patch > 0, tick)),
        (4, lambda tick: close_holes(open_ball, 64, tick)),
        (10, lambda tick: taubin_smooth(open_ball, 5, lambda share: tick())),
        (5, lambda tick: smooth_keeping_volume(whole, 1, lambda share: tick())),
    ):
        looks: list[int] = []
        step(lambda looks=looks: looks.append(1))
        assert len(looks) >= least


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: Mesh(torch.zeros(4, 3), torch.zeros(0, 3, dtype=torch.int64)), "4 vertices but 0 faces"),
        (lambda: Mesh(torch.zeros(4, 3), torch.zeros(2, 3, dtype=torch.int64)), "2 faces lie in one point"),
        (lambda: Mesh(torch.eye(3), torch.tensor([[0, 1, 1]])), "0 faces are left of the mesh"),
        (lambda: Mesh(torch.full((3, 3), torch.nan), torch.tensor([[0, 1, 2]])), "finite"),
        (lambda: Mesh(torch.eye(3), torch.tensor([[0, 1, 3]])), "index vertices 0 to 3"),
    ],
)  # fmt: skip
def test_meshes_that_cannot_be_cleaned_are_named(build, complaint):
    with pytest.raises(ValueError, match=complaint):
        clean(build(), AS_IT_IS)


@pytest.mark.parametrize(
    ("settings_", "complaint"),
    [
        ({"target_faces": -1}, "target_faces: must lie in 0 to"),
        ({"max_error": 1.5}, r"max_error: must lie in 0 to 1, got 1\.5"),
        ({"max_components": 0}, "max_components: must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_named(settings_, complaint):
    with pytest.raises(ValueError, match=complaint):
        CleanConfig(**settings_)


@pytest.mark.slow
def test_a_million_faces_are_cleaned_with_a_look_at_cancel_every_few_seconds():
    whole = ball(subdivisions=8)
    assert len(whole.faces) > 1_000_000
    looks = [time.process_time()]  # of work: other programs do not count

    def look(*_: object) -> None:
        looks.append(time.process_time())

    result = clean(whole, CleanConfig(smooth_iterations=5), progress=look)
    assert np.diff(looks).max() < 3  # s
    assert result.report["watertight"] and result.report["faces"] <= 20_000
    assert result.report["decimation_error"]["high"] < 1e-3
