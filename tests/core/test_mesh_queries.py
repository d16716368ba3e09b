"""Ray casts and nearest points: closed forms, engines against each other, odd meshes."""

import logging
import math

import pytest
import torch

from v3d_core import backends
from v3d_core.cameras import Orbit, camera_rays, orbit_cameras, project_points
from v3d_core.mesh_queries import MeshQueries, cast_pixels

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
each_device = pytest.mark.parametrize("device", DEVICES)
each_engine = pytest.mark.parametrize("engine", ["warp", "torch"])


def tetrahedron():
    vertices = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    return vertices, torch.tensor([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])


def soup(count=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(count, 1, 3, generator=generator) * 2 - 1
    corners = centres + torch.randn(count, 3, 3, generator=generator) * 0.15
    return corners.reshape(-1, 3), torch.arange(3 * count).view(-1, 3)


def octahedron():
    """Every face lies in |x| + |y| + |z| = 1."""
    vertices = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    faces = [[x, y, z] for x in (0, 1) for y in (2, 3) for z in (4, 5)]
    return vertices, torch.tensor(faces)


@each_engine
@each_device
def test_hits_are_where_plane_geometry_says(engine, device):
    vertices, faces = octahedron()
    queries = MeshQueries(vertices.to(device), faces.to(device), engine)
    generator = torch.Generator().manual_seed(1)
    towards = torch.randn(500, 3, generator=generator).to(device)
    directions = -towards * torch.rand(500, 1, generator=generator).to(device).add(0.2)
    origins = towards / towards.norm(dim=-1, keepdim=True) * 3
    hits = queries.cast(origins, directions)
    # along the line through the centre the surface is at |x|_1 = 1
    expected = (3 - 1 / (origins / 3).abs().sum(-1)) / directions.norm(dim=-1)
    torch.testing.assert_close(hits.distance, expected, rtol=1e-5, atol=1e-5)
    points = queries.points(hits.face, hits.barycentric)
    torch.testing.assert_close(points, origins + hits.distance[:, None] * directions, atol=2e-6, rtol=0)  # fmt: skip
    assert bool((hits.barycentric >= 0).all())
    torch.testing.assert_close(hits.barycentric.sum(-1), torch.ones(500, device=device))


@each_device
def test_engines_agree_on_a_soup_of_faces(device):
    vertices, faces = (t.to(device) for t in soup())
    warp, plain = MeshQueries(vertices, faces, "warp"), MeshQueries(vertices, faces, "torch")
    generator = torch.Generator().manual_seed(2)
    origins = torch.randn(2000, 3, generator=generator).to(device)
    directions = torch.randn(2000, 3, generator=generator).to(device)
    a, b = warp.cast(origins, directions), plain.cast(origins, directions)
    assert (a.face == b.face).float().mean() > 0.998  # the rest grazes an edge
    same = (a.face == b.face) & (a.face >= 0)
    assert same.sum() > 400
    torch.testing.assert_close(a.distance[same], b.distance[same], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        warp.points(*a[:2])[same], plain.points(*b[:2])[same], rtol=0, atol=1e-4
    )
    c, d = warp.closest(origins), plain.closest(origins)
    torch.testing.assert_close(c.distance, d.distance, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(warp.points(*c[:2]), plain.points(*d[:2]), rtol=0, atol=1e-4)


@each_engine
@each_device
def test_nearest_point_on_a_face_an_edge_and_a_corner(engine, device):
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]], device=device)
    queries = MeshQueries(vertices, torch.tensor([[0, 1, 2]], device=device), engine)
    points = torch.tensor([[0.2, 0.3, -0.7], [0.5, -2, 0], [3, -1, 0], [1, 1, 0]], device=device)
    found = queries.closest(points)
    torch.testing.assert_close(
        found.distance.cpu(), torch.tensor([0.7, 2.0, math.sqrt(5), math.sqrt(0.5)])
    )
    expected = torch.tensor([[0.5, 0.2, 0.3], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5]])
    torch.testing.assert_close(found.barycentric.cpu(), expected, atol=1e-6, rtol=0)


@each_engine
def test_no_ray_slips_through_edges_and_corners(engine):
    vertices, faces = tetrahedron()
    queries = MeshQueries(vertices, faces, engine)
    a, b = vertices[[0, 0, 0, 1, 1, 2]], vertices[[1, 2, 3, 2, 3, 3]]
    share = torch.linspace(0, 1, 33)[:, None, None]
    targets = (a + share * (b - a)).reshape(-1, 3)
    hits = queries.cast(torch.zeros_like(targets), targets)  # from inside onto every edge
    torch.testing.assert_close(hits.distance, torch.ones(len(targets)), rtol=1e-5, atol=0)


@each_engine
def test_rays_that_miss_or_look_away_hit_nothing(engine):
    queries = MeshQueries(*tetrahedron(), engine)
    origins = torch.tensor([[0.0, 0, 5], [0, 0, 5], [9, 9, 9]])
    hits = queries.cast(origins, torch.tensor([[0.0, 0, 1], [0, 3, -1], [0, 0, -1]]))
    assert hits.face.tolist() == [-1, -1, -1]
    assert bool(torch.isinf(hits.distance).all()) and bool((hits.barycentric == 0).all())


@each_engine
def test_faces_without_area_are_ignored_and_numbers_stay(engine):
    vertices, faces = tetrahedron()
    flat = torch.tensor([[0, 0, 1], [2, 2, 2]])
    more = torch.cat([flat, faces[:2], flat, faces[2:]])
    whole, odd = MeshQueries(vertices, faces, engine), MeshQueries(vertices, more, engine)
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(3)) * 3
    number = torch.tensor([2, 3, 6, 7])
    for a, b in (
        (whole.cast(points, -points), odd.cast(points, -points)),
        (whole.closest(points), odd.closest(points)),
    ):
        assert torch.equal(torch.where(a[0] < 0, -1, number[a[0]]), b[0])
        torch.testing.assert_close(a[1:], b[1:])


@each_engine
def test_a_mesh_without_faces_is_never_hit(engine):
    for faces in (torch.zeros(0, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64)):
        queries = MeshQueries(torch.zeros(1, 3), faces, engine)
        assert queries.cast(torch.ones(4, 3), -torch.ones(4, 3)).face.tolist() == [-1] * 4
        assert bool(torch.isinf(queries.closest(torch.ones(4, 3)).distance).all())
    assert len(queries.cast(torch.ones(0, 3), torch.ones(0, 3)).face) == 0


@each_device
def test_pixels_show_the_depth_of_what_is_under_them(device):
    vertices, faces = octahedron()
    cameras = orbit_cameras(Orbit(num_views=3, elevation_deg=20), 40, 30)
    queries = MeshQueries(vertices.to(device), faces.to(device))
    hits = cast_pixels(queries, cameras)
    assert hits.face.shape == (3, 30, 40)
    for v in range(3):
        seen = hits.face[v] >= 0
        points = queries.points(hits.face[v], hits.barycentric[v])[seen].cpu()
        pixels, depth = project_points(points, cameras[v])
        torch.testing.assert_close(depth[0], hits.distance[v][seen].cpu(), rtol=1e-5, atol=1e-5)
        rows, columns = seen.cpu().nonzero().unbind(-1)
        torch.testing.assert_close(
            pixels[0], torch.stack([columns, rows], -1) + 0.5, atol=1e-3, rtol=0
        )


def test_shifted_pixels_look_beside_the_centres():
    cameras = orbit_cameras(Orbit(num_views=1), 16, 16)
    queries = MeshQueries(*octahedron())
    origins, directions = camera_rays(cameras)
    step = directions[0, 0, 1] - directions[0, 0, 0]
    expected = queries.cast(origins.reshape(-1, 3), (directions + 0.25 * step).reshape(-1, 3))
    hits = cast_pixels(queries, cameras, shift=(0.25, 0.0))
    assert torch.equal(hits.face.flatten(), expected.face)


def test_without_warp_torch_answers_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(backends, "is_installed", lambda module: False)
    with caplog.at_level(logging.WARNING):
        queries = MeshQueries(*tetrahedron())
    assert queries.engine == "torch" and "pip install warp-lang" in caplog.text
    assert int(queries.cast(torch.tensor([[0.0, 0, 5]]), torch.tensor([[0.0, 0, -1]])).face) >= 0


@pytest.mark.parametrize(
    ("vertices", "faces", "engine", "complaint"),
    [
        (torch.tensor([[math.nan, 0, 0]]), torch.zeros(1, 3, dtype=torch.int64), "auto", "1 of 1"),
        (torch.zeros(3, 3), torch.tensor([[0, 1, 3]]), "auto", "vertices 0 to 3, but there are 3"),
        (torch.zeros(3, 2), torch.tensor([[0, 1, 2]]), "auto", r"\[3, 3\], got \[3, 2\]"),
        (torch.zeros(3, 3), torch.tensor([[0, 1, 2]]), "embree", "'embree' is not known"),
    ],
)
def test_bad_input_is_named(vertices, faces, engine, complaint):
    with pytest.raises(ValueError, match=complaint):
        MeshQueries(vertices, faces, engine)


def test_rays_of_two_counts_are_refused():
    with pytest.raises(ValueError, match=r"directions must be \[2, 3\], got \[3, 3\]"):
        MeshQueries(*tetrahedron()).cast(torch.zeros(2, 3), torch.ones(3, 3))
