"""Unwrapping: geometry stays, charts lie flat, nothing overlaps, and it can be cancelled."""

import time

import numpy as np
import pytest
import torch
import trimesh
from scipy import ndimage

from v3d_core import backends
from v3d_core.mesh import unwrap as unwrap_module
from v3d_core.mesh.atlas_report import measure_atlas
from v3d_core.mesh.chart_overlaps import covered_cells, covered_spans
from v3d_core.mesh.charts import connected_labels
from v3d_core.mesh.unwrap import unwrap
from v3d_core.mesh.unwrap_config import UnwrapConfig
from v3d_core.structures import Mesh

XATLAS = pytest.param(
    "xatlas", marks=pytest.mark.skipif(not backends.is_installed("xatlas"), reason="no xatlas")
)
ENGINES = [XATLAS, "charts"]


def mesh_of(shape: trimesh.Trimesh) -> Mesh:
    faces = torch.tensor(np.asarray(shape.faces), dtype=torch.int64)
    return Mesh(torch.tensor(np.asarray(shape.vertices), dtype=torch.float32), faces)


def joined(*meshes: Mesh) -> Mesh:
    counts = np.cumsum([0, *(len(m.vertices) for m in meshes)])
    faces = [m.faces + int(c) for m, c in zip(meshes, counts[:-1], strict=True)]
    return Mesh(torch.cat([m.vertices for m in meshes]), torch.cat(faces))


def sphere(subdivisions: int = 3) -> Mesh:
    return mesh_of(trimesh.creation.icosphere(subdivisions=subdivisions))


def torus() -> Mesh:
    return mesh_of(trimesh.creation.torus(1.0, 0.3, major_sections=32, minor_sections=16))


def plate(side: int) -> Mesh:
    x, y = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    vertices = torch.stack([x, y, torch.zeros_like(x)], dim=-1).reshape(-1, 3).float()
    corner = (torch.arange(side - 1)[:, None] * side + torch.arange(side - 1)).reshape(-1)
    lower = torch.stack([corner, corner + side, corner + 1], dim=1)
    upper = torch.stack([corner + side, corner + side + 1, corner + 1], dim=1)
    return Mesh(vertices, torch.cat([lower, upper]))


def fins() -> Mesh:
    # three faces at one edge
    vertices = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0], [-1, 1, 0], [-1, -1, 0]]).float()
    return Mesh(vertices, torch.tensor([[0, 1, 2], [0, 1, 3], [0, 1, 4]]))


def with_degenerate_faces() -> Mesh:
    ball = sphere(2)
    lonely = torch.tensor([[5.0, 5.0, 5.0]]).expand(3, 3)  # three vertices at one place
    vertices = torch.cat([ball.vertices, lonely])
    first = len(ball.vertices)
    extra = torch.tensor([[0, 0, 1], [2, 2, 2], [first, first + 1, first + 2]])
    return Mesh(vertices, torch.cat([extra[:1], ball.faces, extra[1:]]))


def spiral(turns: float = 2.5, steps: int = 100) -> Mesh:
    # a ramp that winds over itself: seen from above all its faces look up and overlap
    angle = torch.linspace(0, turns * 2 * torch.pi, steps)
    rims = [
        torch.stack([r * angle.cos(), r * angle.sin(), 0.05 * angle], dim=1) for r in (1.0, 2.0)
    ]
    here = torch.arange(steps - 1)
    faces = [
        torch.stack([here, here + steps, here + 1], dim=1),
        torch.stack([here + 1, here + steps, here + steps + 1], dim=1),
    ]
    return Mesh(torch.cat(rims), torch.cat(faces))


def noisy_ball() -> Mesh:
    ball = sphere(3)
    noise = torch.randn(ball.vertices.shape, generator=torch.Generator().manual_seed(0))
    return Mesh(ball.vertices + 0.03 * noise, ball.faces)


SHAPES = {
    "triangle": lambda: Mesh(torch.eye(3), torch.tensor([[0, 1, 2]])),
    "sphere": sphere,
    "torus": torus,
    "two parts": lambda: joined(sphere(2), torus()),
    "fins": fins,
    "degenerate faces": with_degenerate_faces,
    "spiral": spiral,
    "noise": noisy_ball,
    "plate": lambda: plate(30),
    "far and large": lambda: Mesh(sphere(2).vertices * 1e4 + 1e5, sphere(2).faces),
    "tiny": lambda: Mesh(sphere(2).vertices * 1e-5, sphere(2).faces),
    "needle": lambda: Mesh(
        torch.tensor([[0, 0, 0], [100, 0, 0], [50, 1e-3, 0], [50, -1e-3, 0]]).float(),
        torch.tensor([[0, 1, 2], [1, 0, 3]]),
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_corner_stays_where_it_is_and_no_texel_has_two_faces(shape, engine):
    mesh = SHAPES[shape]()
    config = UnwrapConfig(engine=engine, resolution=256, padding=3)
    result = unwrap(mesh, config)
    assert torch.equal(result.vertices[result.faces], mesh.vertices[mesh.faces])
    assert result.faces.dtype == torch.int64 and result.texture is None
    assert float(result.uvs.min()) >= 0 and float(result.uvs.max()) <= 1
    assert len(result.faces.unique()) == len(result.vertices)
    report = measure_atlas(result, config.resolution)
    assert report.doubled_texels == 0
    assert report.mirrored_faces == 0
    assert gaps_are_kept(result, config)


def chart_picture(mesh: Mesh, resolution: int, finer: int) -> np.ndarray:
    """Number of the chart, from 1, at the middles of a grid `finer` times that of the texture."""
    faces, side = mesh.faces.numpy(), resolution * finer
    labels = connected_labels(faces, len(mesh.vertices)) + 1
    picture = np.zeros((side, side), np.int64)
    corners = mesh.uvs.double().numpy()[faces] * side
    for which, row, column in covered_cells(covered_spans(corners)):
        picture[row, column] = labels[which]
    return picture


def gaps_are_kept(mesh: Mesh, config: UnwrapConfig, finer: int = 3) -> bool:
    """Whether a square as large as the padding, anywhere, meets at most one chart."""
    picture = chart_picture(mesh, config.resolution, finer)
    window, nothing = config.padding * finer, 1 << 30
    highest = ndimage.maximum_filter(picture, window, mode="constant", cval=0)
    empty = np.where(picture > 0, picture, nothing)
    lowest = ndimage.minimum_filter(empty, window, mode="constant", cval=nothing)
    return bool((lowest[highest > 0] == highest[highest > 0]).all())


def test_the_test_of_gaps_sees_a_gap_that_is_too_small():
    square = torch.tensor([[0.0, 0], [0, 40], [40, 0], [40, 40]])
    uvs = torch.cat([square, square + torch.tensor([43.0, 0])]) / 256
    faces = torch.tensor([[0, 1, 2], [2, 1, 3], [4, 5, 6], [6, 5, 7]])
    mesh = Mesh(torch.rand(8, 3), faces, uvs=uvs)
    assert gaps_are_kept(mesh, UnwrapConfig(resolution=256, padding=3))
    assert not gaps_are_kept(mesh, UnwrapConfig(resolution=256, padding=4))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_plate_becomes_one_square_without_any_stretch(engine):
    report = measure_atlas(unwrap(plate(30), UnwrapConfig(engine=engine, padding=0)), 1024)
    assert report.charts == 1
    assert report.utilisation > 0.95
    assert report.area_stretch == pytest.approx(1, abs=1e-4)
    assert report.angle_stretch == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_round_shapes_are_stretched_little_and_fill_the_texture(engine):
    report = measure_atlas(unwrap(sphere(4), UnwrapConfig(engine=engine)), 1024)
    assert report.area_stretch < 1.15 and report.angle_stretch < 1.15
    assert report.utilisation > 0.45
    assert report.charts < 60


@pytest.mark.parametrize("engine", ENGINES)
def test_the_picture_of_a_face_is_not_mirrored(engine):
    # seen from outside corners run counter-clockwise, with v downwards that is a negative area
    result = unwrap(torus(), UnwrapConfig(engine=engine))
    a, b, c = result.uvs[result.faces].unbind(1)
    first, second = b - a, c - a
    assert bool((first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0] < 0).all())


@pytest.mark.parametrize("engine", ENGINES)
def test_normals_and_colours_travel_with_their_corners(engine):
    ball = sphere(2)
    colours = torch.rand(len(ball.vertices), 3, generator=torch.Generator().manual_seed(1))
    mesh = Mesh(ball.vertices, ball.faces, normals=ball.vertices, vertex_colours=colours)
    result = unwrap(mesh, UnwrapConfig(engine=engine))
    assert torch.equal(result.normals[result.faces], mesh.normals[mesh.faces])
    assert torch.equal(result.vertex_colours[result.faces], colours[mesh.faces])


@pytest.mark.parametrize("engine", ENGINES)
def test_vertices_of_no_face_go(engine):
    ball = sphere(2)
    mesh = Mesh(torch.cat([torch.full((3, 3), 9.0), ball.vertices]), ball.faces + 3)
    result = unwrap(mesh, UnwrapConfig(engine=engine))
    assert torch.equal(result.vertices[result.faces], mesh.vertices[mesh.faces])
    assert float(result.vertices.abs().max()) < 1.01


@pytest.mark.parametrize("engine", ENGINES)
def test_a_soup_of_faces_is_cut_like_the_mesh_with_shared_vertices(engine):
    ball = sphere(3)
    soup = Mesh(
        ball.vertices[ball.faces].reshape(-1, 3), torch.arange(3 * len(ball.faces)).reshape(-1, 3)
    )
    config = UnwrapConfig(engine=engine)
    result = unwrap(soup, config)
    assert torch.equal(result.vertices[result.faces], soup.vertices[soup.faces])
    figures = measure_atlas(result, 1024)
    assert figures.charts == measure_atlas(unwrap(ball, config), 1024).charts


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_mesh_gives_the_same_uvs(engine):
    first, second = (unwrap(torus(), UnwrapConfig(engine=engine)) for _ in range(2))
    assert torch.equal(first.uvs, second.uvs) and torch.equal(first.faces, second.faces)


def test_float64_stays_float64():
    ball = sphere(2)
    result = unwrap(Mesh(ball.vertices.double(), ball.faces), UnwrapConfig(engine="charts"))
    assert result.vertices.dtype == result.uvs.dtype == torch.float64


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_mesh_on_the_gpu_comes_back_on_the_gpu():
    mesh = sphere(2).to("cuda")
    result = unwrap(mesh)
    assert result.uvs.device.type == result.faces.device.type == "cuda"
    assert torch.equal(result.vertices[result.faces], mesh.vertices[mesh.faces])


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("engine", ENGINES)
def test_it_can_be_cancelled_at_any_moment_within_a_second(engine):
    mesh = sphere(3)
    ends: list[float] = []
    unwrap(mesh, UnwrapConfig(engine=engine), progress=lambda *_: ends.append(time.perf_counter()))
    steps = len(ends)
    assert np.diff(ends).max() < 1.0
    for moment in np.random.default_rng(0).integers(0, steps, 3).tolist():
        count = 0

        def stop(*_: object, last: int = moment) -> None:
            nonlocal count
            count += 1
            if count > last:
                raise Cancelled

        with pytest.raises(Cancelled):
            unwrap(mesh, UnwrapConfig(engine=engine), progress=stop)


@pytest.mark.parametrize("engine", ENGINES)
def test_progress_only_grows_and_ends_full(engine):
    seen = []
    unwrap(torus(), UnwrapConfig(engine=engine), progress=lambda *args: seen.append(args[:2]))
    steps = [step for step, _ in seen]
    assert steps == sorted(steps) and seen[-1][0] == seen[-1][1] and len(set(seen)) > 3


def test_keep_returns_the_mesh_as_it_is_without_its_texture():
    mesh = Mesh(
        torch.eye(3),
        torch.tensor([[0, 1, 2]]),
        uvs=torch.eye(3)[:, :2],
        texture=torch.ones(2, 2, 3),
    )
    result = unwrap(mesh, UnwrapConfig(engine="keep"))
    assert torch.equal(result.uvs, mesh.uvs) and result.faces is mesh.faces
    assert result.texture is None


def test_keep_tells_why_uvs_cannot_be_kept():
    triangle = Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]))
    with pytest.raises(ValueError, match="has none; choose engine auto"):
        unwrap(triangle, UnwrapConfig(engine="keep"))
    tiled = Mesh(triangle.vertices, triangle.faces, uvs=torch.eye(3)[:, :2] * 2.5)
    with pytest.raises(ValueError, match=r"reach from 0 to 2\.5"):
        unwrap(tiled, UnwrapConfig(engine="keep"))


def test_keep_does_not_mind_uvs_of_vertices_that_no_face_uses():
    uvs = torch.cat([torch.eye(3)[:, :2], torch.full((1, 2), 7.0)])
    mesh = Mesh(torch.ones(4, 3), torch.tensor([[0, 1, 2]]), uvs=uvs)
    assert float(unwrap(mesh, UnwrapConfig(engine="keep")).uvs.max()) == 1


def test_a_mesh_without_faces_is_an_error():
    with pytest.raises(ValueError, match="0 faces"):
        unwrap(Mesh(torch.zeros(3, 3), torch.zeros(0, 3, dtype=torch.int64)))


def test_too_many_faces_are_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(unwrap_module, "MAX_FACES", 100)
    with pytest.raises(ValueError, match=r"320 faces, at most 100.*V3D Clean Mesh"):
        unwrap(sphere(2))


def test_only_degenerate_faces_still_get_coordinates():
    mesh = Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2], [0, 0, 0]]))
    for engine in ("auto", "charts"):
        result = unwrap(mesh, UnwrapConfig(engine=engine))
        assert torch.equal(result.vertices[result.faces], mesh.vertices[mesh.faces])


def test_charts_that_cannot_fit_are_named_with_the_texture():
    islands = joined(*[Mesh(torch.eye(3) + 5.0 * i, torch.tensor([[0, 1, 2]])) for i in range(400)])
    with pytest.raises(ValueError, match=r"400 charts with 16 texels .* 64 x 64; raise"):
        unwrap(islands, UnwrapConfig(engine="charts", resolution=64, padding=16))


def test_auto_takes_our_own_charts_where_xatlas_is_missing(monkeypatch):
    monkeypatch.setattr(unwrap_module, "problem", lambda module: f"no {module}")
    own = unwrap(torus(), UnwrapConfig(engine="charts"))
    assert torch.equal(unwrap(torus()).uvs, own.uvs)


def test_xatlas_by_name_is_an_error_where_it_is_missing(monkeypatch):
    def missing(module: str) -> None:
        raise backends.MissingPackageError("xatlas (texture unwrapping) is not installed")

    monkeypatch.setattr(unwrap_module, "load", missing)
    with pytest.raises(backends.MissingPackageError, match="xatlas"):
        unwrap(torus(), UnwrapConfig(engine="xatlas"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": "blender"}, "one of auto, xatlas, charts, keep"),
        ({"resolution": 16}, "64 to 8192, got 16"),
        ({"padding": -1}, "0 to 64, got -1"),
        ({"max_tilt_deg": 90}, "10 to 80, got 90"),
    ],
)
def test_settings_out_of_range_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        UnwrapConfig(**change)
