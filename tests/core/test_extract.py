"""Meshes of fields whose surface is known."""

import math

import numpy as np
import pytest
import torch
import trimesh
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from v3d_core.neus import extract_blocks
from v3d_core.neus.extract import ExtractConfig, extract_mesh, keep_unfolded, surface_box
from v3d_core.structures import Mesh


class Analytic:
    """A field from a formula; refuses points outside its cube."""

    def __init__(self, formula, centre=(0.0, 0.0, 0.0), half_size=1.0, device="cpu"):
        self.formula, self.half_size, self.device = formula, half_size, torch.device(device)
        self.centre = torch.tensor(centre, device=device)
        self.evaluated = 0

    def sdf(self, points):
        assert ((points - self.centre).abs() <= self.half_size * (1 + 1e-5)).all()
        self.evaluated += len(points)
        return self.formula(points)

    def sdf_and_gradient(self, points):
        with torch.enable_grad():
            points = points.clone().requires_grad_(True)
            sdf = self.formula(points)
            (gradient,) = torch.autograd.grad(sdf.sum(), points)
        return sdf, gradient  # still with a graph, which nobody shall keep

    def colours(self, points, gradients):
        return 0.5 + 0.5 * torch.nn.functional.normalize(gradients, dim=-1)


def ball(radius=0.7, centre=(0.0, 0.0, 0.0)):
    return lambda p: (p - torch.tensor(centre)).norm(dim=-1) - radius


def union(*formulas):
    return lambda p: torch.stack([formula(p) for formula in formulas]).amin(dim=0)


def torus(p, ring=0.6, tube=0.25):
    return ((p[:, [0, 2]].norm(dim=-1) - ring).square() + p[:, 1].square()).sqrt() - tube


def box(x, y, z):
    half = torch.tensor([x, y, z])

    def formula(p):
        beyond = p.abs() - half
        return beyond.clamp_min(0).norm(dim=-1) + beyond.amax(dim=-1).clamp_max(0)

    return formula


def gyroid_shell(p, waves=7.0, wall=0.35, radius=0.85):
    x, y, z = (p * waves).unbind(-1)
    level = x.sin() * y.cos() + y.sin() * z.cos() + z.sin() * x.cos()
    return torch.maximum((level.abs() - wall) / waves / 1.5, p.norm(dim=-1) - radius)


def noise(samples=24, seed=0):
    """No distance at all: values of random sign on a lattice, in every case of marching cubes."""
    values = torch.randn(1, 1, samples, samples, samples, generator=torch.manual_seed(seed)) / 20

    def formula(p):
        place = p.flip(-1)[None, :, None, None]
        return torch.nn.functional.grid_sample(values, place, align_corners=True)[0, 0, :, 0, 0]

    return formula


def as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)


def fans(mesh: Mesh) -> int:
    """Rings of faces around vertices; as many as vertices where the surface is a manifold."""
    faces = mesh.faces.numpy()
    count = len(faces)
    corners = np.arange(3 * count).reshape(count, 3)
    ends = {}  # directed edge -> corners of its face at start and end
    for side in range(3):
        a, b = side, (side + 1) % 3
        for face in range(count):
            ends[faces[face, a], faces[face, b]] = corners[face, a], corners[face, b]
    links = []
    for (a, b), (start, end) in ends.items():
        other_start, other_end = ends[b, a]
        links += [(start, other_end), (end, other_start)]
    rows, columns = np.array(links).T
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(3 * count, 3 * count))
    return connected_components(graph, directed=False)[0]


def assert_closed_manifold(mesh: Mesh) -> None:
    solid = as_trimesh(mesh)
    assert solid.is_watertight and solid.is_winding_consistent and solid.volume > 0
    assert len(torch.unique(mesh.faces)) == len(mesh.vertices)


@pytest.mark.parametrize(
    ("formula", "euler"),
    [
        (ball(), 2),
        (torus, 0),
        (union(ball(0.3, (-0.5, 0.0, 0.0)), ball(0.25, (0.4, 0.1, 0.0))), 4),
        (box(0.5, 0.02, 0.3), 2),
    ],
)
def test_surfaces_are_closed_manifolds_of_the_right_kind(formula, euler):
    mesh = extract_mesh(Analytic(formula), 48)
    assert_closed_manifold(mesh)
    assert as_trimesh(mesh).euler_number == euler
    assert fans(mesh) == len(mesh.vertices)


@pytest.mark.parametrize("formula", [gyroid_shell, noise()])
def test_tangled_surfaces_are_closed_manifolds(formula):
    mesh = extract_mesh(Analytic(formula), 40)
    assert_closed_manifold(mesh)
    assert fans(mesh) == len(mesh.vertices)


def test_area_volume_normals_and_colours_are_those_of_the_sphere():
    mesh = extract_mesh(Analytic(ball(0.7)), 64)
    solid = as_trimesh(mesh)
    assert solid.volume == pytest.approx(4 / 3 * math.pi * 0.343, rel=2e-3)
    assert solid.area == pytest.approx(4 * math.pi * 0.49, rel=1e-3)
    outward = mesh.vertices / mesh.vertices.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(mesh.normals, outward, atol=1e-5, rtol=0)
    torch.testing.assert_close(mesh.vertex_colours, 0.5 + 0.5 * outward, atol=1e-5, rtol=0)
    assert not mesh.vertices.requires_grad and not mesh.normals.requires_grad


def test_newton_steps_put_every_vertex_on_the_surface():
    raw = extract_mesh(Analytic(torus), 48, config=ExtractConfig(newton_steps=0))
    once = extract_mesh(Analytic(torus), 48)
    twice = extract_mesh(Analytic(torus), 48, config=ExtractConfig(newton_steps=2))
    assert torus(raw.vertices).abs().max() > 1e-4
    assert torus(once.vertices).abs().max() < 1e-5
    assert torus(twice.vertices).abs().max() < 1e-6
    assert torch.equal(once.faces, raw.faces)


def test_an_overstated_and_an_understated_distance_give_the_same_surface():
    """Three times too long is beyond the bound: the surface is followed from leaf to leaf."""
    exact = extract_mesh(Analytic(torus), 48)
    for scale in (0.3, 3.0):
        mesh = extract_mesh(Analytic(lambda p, scale=scale: torus(p) * scale), 48)
        assert_closed_manifold(mesh)
        assert as_trimesh(mesh).euler_number == 0
        assert as_trimesh(mesh).volume == pytest.approx(as_trimesh(exact).volume, rel=5e-3)


def test_blocks_are_welded_as_if_the_lattice_were_one(monkeypatch):
    field = Analytic(gyroid_shell)
    parts = extract_mesh(field, 90)
    monkeypatch.setattr(extract_blocks, "BLOCK", 128)
    whole = extract_mesh(field, 90)

    assert len(parts.vertices) == len(whole.vertices) and len(parts.faces) == len(whole.faces)
    middles = [mesh.vertices[mesh.faces].mean(dim=1).numpy() for mesh in (parts, whole)]
    distances, partners = cKDTree(middles[0]).query(middles[1])
    assert distances.max() < 1e-6 and len(np.unique(partners)) == len(partners)


def test_moving_and_scaling_the_world_moves_and_scales_the_mesh():
    near = extract_mesh(Analytic(torus), 32)
    centre = torch.tensor([30.0, -20.0, 10.0])
    far = extract_mesh(
        Analytic(lambda p: 8 * torus((p - centre) / 8), centre.tolist(), half_size=8.0), 32
    )
    assert torch.equal(near.faces, far.faces)
    torch.testing.assert_close((far.vertices - centre) / 8, near.vertices, atol=2e-5, rtol=0)
    torch.testing.assert_close(far.normals, near.normals, atol=1e-3, rtol=0)


@pytest.mark.parametrize("resolution", [16, 33, 64])
def test_resolution_counts_voxels_along_the_longest_side(resolution):
    mesh = extract_mesh(Analytic(box(0.5, 0.2, 0.1)), resolution)
    xs = torch.unique(
        extract_mesh(
            Analytic(box(0.5, 0.2, 0.1)), resolution, config=ExtractConfig(newton_steps=0)
        ).vertices[:, 0]
    )
    assert_closed_manifold(mesh)
    steps = xs.diff()
    voxel = float(steps[steps > 1e-5].median())
    assert 1.0 / voxel == pytest.approx(resolution, rel=0.1)  # the box is a little wider than 1


def test_the_box_holds_the_surface_and_little_else():
    formula = union(ball(0.1, (0.6, 0.5, -0.2)), ball(0.2, (0.2, 0.0, 0.1)))
    low, high = surface_box(Analytic(formula))
    for got, true, side in ((low, [0.0, -0.2, -0.3], 1), (high, [0.7, 0.6, 0.3], -1)):
        beyond = side * (torch.tensor(true, dtype=torch.float64) - got)
        assert (beyond >= -1e-6).all() and (beyond < 2 / 64).all()


def test_a_thin_plate_between_the_samples_of_the_search_is_found():
    mesh = extract_mesh(Analytic(box(0.6, 0.002, 0.5)), 320, config=ExtractConfig(newton_steps=1))
    assert_closed_manifold(mesh)
    assert as_trimesh(mesh).volume == pytest.approx(1.2 * 0.004 * 1.0, rel=0.02)


def test_what_the_cube_cuts_off_is_closed_on_its_faces():
    mesh = extract_mesh(Analytic(ball(0.8, (0.5, 0.0, 0.0))), 48)
    assert_closed_manifold(mesh)
    cap = math.pi * 0.3**2 * (3 * 0.8 - 0.3) / 3
    assert as_trimesh(mesh).volume == pytest.approx(4 / 3 * math.pi * 0.8**3 - cap, rel=0.01)
    assert float(mesh.vertices[:, 0].max()) == pytest.approx(1.0, abs=1e-3)


def test_small_parts_and_cavities_go():
    shell = lambda p: torch.maximum(ball(0.6)(p), -ball(0.3)(p))  # noqa: E731
    formula = union(shell, ball(0.04, (0.9, 0.0, 0.0)))
    mesh = extract_mesh(Analytic(formula), 64)
    assert as_trimesh(mesh).body_count == 1 and float(mesh.vertices.abs().max()) < 0.61
    all_parts = extract_mesh(Analytic(formula), 64, config=ExtractConfig(min_component_share=0.0))
    assert as_trimesh(all_parts).body_count == 2
    one = ExtractConfig(min_component_share=0.0, max_components=1)
    assert as_trimesh(extract_mesh(Analytic(formula), 64, config=one)).body_count == 1


def test_a_fine_mesh_of_a_sphere_asks_for_a_share_of_its_samples():
    field = Analytic(ball(0.7))
    extract_mesh(field, 128, config=ExtractConfig(newton_steps=0))
    assert field.evaluated < 0.3 * 128**3 + 33**3 * 8


@pytest.mark.parametrize("value", [0.5, -0.5])
def test_a_field_without_a_surface_is_an_error_that_says_so(value):
    formula = lambda p: 0 * p[:, 0] + value  # noqa: E731
    if value > 0:
        with pytest.raises(ValueError, match=r"no surface.*half its side 1"):
            extract_mesh(Analytic(formula), 32)
    else:  # solid everywhere: the cube itself
        mesh = extract_mesh(Analytic(formula), 32)
        assert as_trimesh(mesh).volume == pytest.approx(8.0, rel=0.02)


@pytest.mark.parametrize("resolution", [8, 4096])
def test_a_resolution_out_of_range_is_named(resolution):
    with pytest.raises(ValueError, match=f"16 to 2048 voxels, got {resolution}"):
        extract_mesh(Analytic(ball()), resolution)


def test_cancelling_in_any_report_stops_the_work():
    class Stop(Exception):
        pass

    reports = []
    extract_mesh(Analytic(ball()), 32, progress=lambda *a: reports.append(a))
    steps = [report[0] for report in reports]
    assert steps == sorted(steps) and steps[-1] == 100 and {r[1] for r in reports} == {100}
    for last in range(len(reports)):
        seen = []

        def progress(*report, last=last, seen=seen):
            seen.append(report)
            if len(seen) > last:
                raise Stop

        with pytest.raises(Stop):
            extract_mesh(Analytic(ball()), 32, progress=progress)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_field_on_the_gpu_gives_the_mesh_of_the_cpu():
    here = extract_mesh(Analytic(torus), 64)
    there = extract_mesh(Analytic(torus, device="cuda"), 64)
    assert there.device.type == "cpu"
    assert_closed_manifold(there)
    for figure in ("volume", "area"):
        on_cpu, on_gpu = (getattr(as_trimesh(mesh), figure) for mesh in (here, there))
        assert on_gpu == pytest.approx(on_cpu, rel=1e-5)


def test_vertices_whose_faces_would_fold_stay():
    fan = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 1]])
    moved = fan.clone()
    moved[0] = torch.tensor([0.1, 0.1, 0.0])
    assert torch.equal(keep_unfolded(fan, moved, faces), moved)
    moved[0] = torch.tensor([2.0, 0.5, 0.0])
    assert torch.equal(keep_unfolded(fan, moved, faces)[0], fan[0])
