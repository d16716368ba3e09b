"""Views laid on a known surface: known warps and gains are undone, agreement and wrong meshes kept."""

import dataclasses
import math

import pytest
import torch

from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.mesh.align_equations import (
    SurfaceReadings,
    conjugate_gradients,
    own_blocks,
    read_colours,
    solve_gains,
    solve_warps,
    spline_taps,
)
from v3d_core.mesh.align_views import AlignViewsConfig, align_views, colour_planes
from v3d_core.mesh_queries import MeshQueries, cast_pixels
from v3d_core.structures import Mesh, Views
from v3d_core.view_warps import evaluate_warps, read_displaced, spline_basis, warp_precision

SIZE, COUNT = 96, 9
CAMERAS = orbit_cameras(Orbit(num_views=COUNT), SIZE, SIZE)
CONFIG = AlignViewsConfig(resolution=SIZE, lattice=32, blurs_px=(2.0, 1.0, 1.0))


def ball(dents: float = 0.0, steps: int = 48) -> Mesh:
    """A sphere of radius 0.6 that bulges smoothly by `dents`, faces outward."""
    down = torch.linspace(0, math.pi, steps + 1)
    turn = torch.arange(2 * steps) * (math.pi / steps)
    theta, phi = torch.meshgrid(down, turn, indexing="ij")
    ring = theta.sin()
    way = torch.stack([ring * phi.cos(), theta.cos(), ring * phi.sin()], -1).reshape(-1, 3)
    radius = 0.6 + dents * torch.sin(7 * way + torch.tensor([0.0, 2.0, 4.0])).sum(-1, keepdim=True)
    row, column = torch.meshgrid(torch.arange(steps), torch.arange(2 * steps), indexing="ij")
    across = (column + 1) % (2 * steps)
    a, b = row * 2 * steps + column, row * 2 * steps + across
    c, d = a + 2 * steps, b + 2 * steps
    faces = torch.cat([torch.stack([a, b, c], -1), torch.stack([b, d, c], -1)]).reshape(-1, 3)
    return Mesh(radius * way, faces)


def paint(points: torch.Tensor) -> torch.Tensor:  # [..., 3] -> [..., 3]
    """A smooth pattern in [0.2, 0.8]."""
    return 0.5 + 0.3 * torch.sin(11 * points + torch.tensor([0.0, 1.0, 2.0]))


def pictures(mesh: Mesh, over: int = 3) -> Views:
    fine = orbit_cameras(Orbit(num_views=COUNT), SIZE * over, SIZE * over)
    queries = MeshQueries(mesh.vertices, mesh.faces)
    hits = cast_pixels(queries, fine)
    hit = (hits.face >= 0)[..., None].float()
    planes = torch.cat([paint(queries.points(hits.face, hits.barycentric)) * hit, hit], -1)
    small = torch.nn.functional.avg_pool2d(planes.permute(0, 3, 1, 2), over).permute(0, 2, 3, 1)
    return as_views(small)


def as_views(planes: torch.Tensor) -> Views:  # [V, H, W, 4], premultiplied
    alpha = planes[..., 3:].clamp(0, 1)
    straight = torch.where(alpha > 1e-3, planes[..., :3] / alpha.clamp(min=1e-3), 0.0)
    return Views(straight.clamp(0, 1), alpha[..., 0], CAMERAS)


def bent(views: Views, strength: float, seed: int = 0) -> tuple[Views, torch.Tensor]:
    """Views read through random smooth warps, and the displacements. [V, H, W, 2]"""
    coefficients = torch.randn(COUNT, 2, 7, 7, generator=torch.Generator().manual_seed(seed))
    displacements = evaluate_warps(strength * coefficients, SIZE, SIZE)
    planes = torch.cat([views.images * views.masks[..., None], views.masks[..., None]], -1)
    planes = read_displaced(planes.permute(0, 3, 1, 2), displacements, bicubic=True)
    return as_views(planes.permute(0, 2, 3, 1).clamp(0, 1)), displacements


def error(views: Views, truth: Views) -> float:
    """Mean square over the object's inside."""
    inside = (truth.masks > 0.99) & (views.masks > 0.9)
    return float((views.images - truth.images)[inside].square().mean())


@pytest.fixture(scope="module")
def mesh():
    return ball()


@pytest.fixture(scope="module")
def truth(mesh):
    return pictures(mesh)


def readings_of(mesh: Mesh, nodes: int = 6) -> SurfaceReadings:
    return SurfaceReadings.of(
        MeshQueries(mesh.vertices, mesh.faces),
        CAMERAS,
        lattice=20,
        resolution=SIZE,
        least_facing=0.2,
        edge_px=1.0,
        edge_depth=0.05,
        nodes=nodes,
    )


def planes_of(views: Views) -> torch.Tensor:
    frames = torch.cat([views.images * views.masks[..., None], views.masks[..., None]], -1)
    return colour_planes(frames.permute(0, 3, 1, 2), 1.0)


def test_views_that_agree_come_back_as_they_are(mesh, truth):
    result = align_views(mesh, truth, CONFIG)
    assert result.views is truth
    assert not result.moved and not result.shaded
    assert all(row["moved_px"] == 0 and row["gain"] == [1, 1, 1] for row in result.per_view)


def test_a_slightly_wrong_mesh_bends_nothing(truth):
    """2 % of the radius: outlines and colours disagree with it, but no warp explains the colours."""
    result = align_views(ball(dents=0.006), truth, CONFIG)
    assert result.views is truth


def test_known_warps_are_undone(mesh, truth):
    spoiled, _ = bent(truth, 0.012)
    result = align_views(mesh, spoiled, CONFIG)
    assert result.moved and not result.shaded
    assert error(result.views, truth) < error(spoiled, truth) / 10
    iou = (result.views.masks - truth.masks).abs().mean() / (
        spoiled.masks - truth.masks
    ).abs().mean()
    assert float(iou) < 0.25
    assert all(row["db_after"] > row["db_before"] + 6 for row in result.per_view)


def test_a_common_warp_is_found_because_the_mesh_is_known(mesh, truth):
    """All pictures shifted alike agree with each other about another object, not about this one."""
    planes = torch.cat([truth.images * truth.masks[..., None], truth.masks[..., None]], -1)
    shift = torch.tensor([2.0, -1.0]) / SIZE
    planes = read_displaced(planes.permute(0, 3, 1, 2), shift.expand(COUNT, SIZE, SIZE, 2))
    spoiled = as_views(planes.permute(0, 2, 3, 1))
    result = align_views(mesh, spoiled, dataclasses.replace(CONFIG, least_explained=-math.inf))
    assert result.moved
    assert [row["moved_px"] for row in result.per_view] == pytest.approx([5**0.5] * COUNT, abs=0.3)
    assert error(result.views, truth) < error(spoiled, truth) / 10


def test_gains_alone_leave_the_masks_bit_for_bit(mesh, truth):
    factors = 1 - 0.1 * torch.rand(COUNT, 3, generator=torch.Generator().manual_seed(1))
    spoiled = dataclasses.replace(truth, images=truth.images * factors[:, None, None])
    result = align_views(mesh, spoiled, CONFIG)
    assert result.shaded and not result.moved
    assert torch.allclose(result.views.masks, truth.masks, atol=1e-6)
    product = result.gains * factors  # the same for all views, whatever it is
    assert float((product / product.mean(0) - 1).abs().max()) < 8e-3


def test_warps_and_gains_together(mesh, truth):
    spoiled, _ = bent(truth, 0.01, seed=2)
    factors = 1 - 0.1 * torch.rand(COUNT, 1, generator=torch.Generator().manual_seed(3))
    spoiled = dataclasses.replace(spoiled, images=spoiled.images * factors[:, None, None])
    result = align_views(mesh, spoiled, CONFIG)
    assert result.moved and result.shaded
    common = (result.gains * factors).log().mean().exp()
    graded = dataclasses.replace(result.views, images=result.views.images / common)
    assert error(graded, truth) < error(spoiled, truth) / 8


def test_masks_and_colours_stay_in_range_and_names_are_kept(mesh, truth):
    spoiled, _ = bent(truth, 0.012)
    named = dataclasses.replace(spoiled, names=tuple(f"v{i}" for i in range(COUNT)))
    views = align_views(mesh, named, CONFIG).views
    assert views.names == named.names
    assert 0 <= float(views.masks.min()) and float(views.masks.max()) <= 1
    assert 0 <= float(views.images.min()) and float(views.images.max()) <= 1


def test_the_order_of_the_views_does_not_matter(mesh, truth):
    spoiled, _ = bent(truth, 0.01)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(4)).tolist()
    config = dataclasses.replace(CONFIG, solver_iterations=60)
    straight = align_views(mesh, spoiled, config).views
    mixed = align_views(mesh, spoiled[order], config).views
    assert float((straight.images[order] - mixed.images).abs().mean()) < 1e-3


def test_an_inside_out_mesh_serves_as_well(mesh, truth):
    spoiled, _ = bent(truth, 0.01)
    turned = dataclasses.replace(mesh, faces=mesh.faces.flip(1))
    first = align_views(mesh, spoiled, CONFIG).views
    assert torch.allclose(
        first.images, align_views(turned, spoiled, CONFIG).views.images, atol=1e-3
    )


def test_one_view_alone_is_laid_on_the_outline(mesh, truth):
    result = align_views(mesh, truth[0], CONFIG)
    assert result.views is not None and len(result.per_view) == 1
    assert result.gains.tolist() == [[1, 1, 1]]


def test_progress_can_cancel(mesh, truth):
    def stop(step, total, preview=None, text=""):
        if step == 3:
            raise InterruptedError(text)

    with pytest.raises(InterruptedError):
        align_views(mesh, truth, CONFIG, progress=stop)


def test_bad_input_is_named(mesh, truth):
    with pytest.raises(ValueError, match="0 faces"):
        align_views(dataclasses.replace(mesh, faces=mesh.faces[:0]), truth)
    far = dataclasses.replace(mesh, vertices=mesh.vertices + 100)
    with pytest.raises(ValueError, match="none of the 9 cameras sees"):
        align_views(far, truth, CONFIG)
    with pytest.raises(ValueError, match="blurs_px"):
        AlignViewsConfig(blurs_px=())
    with pytest.raises(ValueError, match=r"resolution.*32 to 4096, got 8"):
        AlignViewsConfig(resolution=8)


def test_sixteen_taps_are_the_whole_basis():
    places = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    index, weight = spline_taps(places, 7)
    dense = torch.zeros(50, 49).scatter_add_(1, index, weight)
    across, down = spline_basis(7, places[:, 0].clone()), spline_basis(7, places[:, 1].clone())
    whole = (down[:, :, None] * across[:, None]).flatten(1)
    assert torch.allclose(dense, whole, atol=1e-6)


def test_readings_share_the_pixels_of_a_point(mesh):
    readings = readings_of(mesh)
    total = torch.zeros(readings.positions.shape[1]).index_add_(0, readings.point, readings.share)
    pixels = (SIZE / 20) ** 2
    assert torch.allclose(total[total > 0], torch.tensor(pixels))
    assert int(torch.bincount(readings.point)[readings.point].min()) >= 2
    # a ball hides its far half
    assert len(readings.view) < 0.5 * readings.positions[..., 0].numel()


def test_gathering_is_the_adjoint_of_displacing(mesh):
    readings = readings_of(mesh)
    warps, pulls = torch.randn(COUNT, 2, 6, 6), torch.randn(len(readings.view), 2)
    left = (readings.displacements(warps) * pulls).sum()
    assert float(left) == pytest.approx(float((readings.gathered(pulls) * warps).sum()), rel=1e-3)


def test_the_step_solves_the_dense_equations(mesh, truth):
    """Twin: rows written out in full, colours of the points as unknowns, solved directly."""
    readings, nodes = readings_of(mesh, 5), 5
    spoiled, _ = bent(truth, 0.01)
    warps, gains = torch.zeros(COUNT, 2, nodes, nodes), torch.ones(COUNT, 3)
    rows = read_colours(readings, planes_of(spoiled), warps, gains, 0.3)
    within = warp_precision(nodes, 0.01, 0.2, 0.004, 0.01, torch.zeros(1))
    between = torch.eye(COUNT, dtype=torch.float64)
    size = 2 * nodes**2
    outline = (torch.zeros(COUNT, size, size), torch.zeros(COUNT, size))
    step = solve_warps(readings, rows, 50.0, outline, between, within, warps, 80)

    count = len(readings.view)
    index, weight = spline_taps(readings.positions[readings.view, readings.point], nodes)
    basis = torch.zeros(count, nodes**2).scatter_add_(1, index, weight).double()
    points = readings.positions.shape[1]
    matrix = torch.block_diag(*[within] * (2 * COUNT))
    right = torch.zeros(COUNT * size, dtype=torch.float64)
    root = (50 * rows.weight.double()).sqrt()
    share = torch.zeros(count, points, dtype=torch.float64)
    share[torch.arange(count), readings.point] = root
    for channel in range(3):
        row = torch.zeros(count, COUNT, 2, nodes**2, dtype=torch.float64)
        slope = rows.slope[:, channel].double() * root[:, None]
        row[torch.arange(count), readings.view] = slope[:, :, None] * basis[:, None]
        row, residual = row.flatten(1), rows.residual[:, channel].double() * root
        inverse = 1 / share.square().sum(0).clamp(min=1e-12)
        matrix += row.T @ row - (row.T @ share) * inverse @ (share.T @ row)
        right += row.T @ residual - (row.T @ share) @ (inverse * (share.T @ residual))
    wanted = -torch.linalg.solve(matrix, right).view_as(warps)
    assert torch.allclose(step.double(), wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))
    blocks = 50 * own_blocks(readings, rows).double()
    prior = torch.block_diag(within, within)
    for view in range(COUNT):
        part = matrix[view * size : (view + 1) * size, view * size : (view + 1) * size] - prior
        assert torch.allclose(blocks[view], part, atol=1e-3 * float(part.abs().max()))


def test_conjugate_gradients_solve_a_small_system_exactly():
    root = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix, right = root @ root.T + torch.eye(12, dtype=torch.float64), root[0]
    found = conjugate_gradients(lambda x: matrix @ x, right, lambda x: x / matrix.diagonal(), 40)
    assert torch.allclose(matrix @ found, right, atol=1e-8)


def test_a_dark_channel_gets_no_gain(mesh, truth):
    dark = truth.images * torch.tensor([1.0, 1.0, 0.0])
    dark = dark + 0.01 * torch.rand(dark.shape, generator=torch.Generator().manual_seed(5))
    readings = readings_of(mesh)
    planes = planes_of(dataclasses.replace(truth, images=dark.clamp(0, 1)))
    rows = read_colours(readings, planes, torch.zeros(COUNT, 2, 6, 6), torch.ones(COUNT, 3), 0.15)
    assert float((solve_gains(readings, rows) - 1).abs().max()) < 0.02
