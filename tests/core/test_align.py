"""Alignment of frames that disagree: known warps, shifts and gains are found, agreement is kept."""

import dataclasses
import math

import pytest
import torch

from v3d_core.cameras import Orbit, orbit_cameras, project_points
from v3d_core.splats.align import AlignConfig, FrameAligner, robust_gains
from v3d_core.splats.align_solve import field_basis, square_root_rows, surface_cells
from v3d_core.structures import Views
from v3d_core.view_warps import (
    evaluate_warps,
    node_positions,
    pixel_positions,
    read_displaced,
    spline_basis,
    warp_precision,
)

SIZE = 64
RADIUS = 0.6
# a painted sphere has no model error: a small residual is trusted more than in a real fit
CONFIG = AlignConfig(
    resolution=SIZE, cells=16, blur_px=0.7, residual_std=0.03, least_explained=-math.inf
)
STILL = dataclasses.replace(CONFIG, field_std=1e-6)  # the object must not move


def sphere_points(count: int = 4000) -> torch.Tensor:  # [N, 3]
    """Evenly spread over a sphere (Fibonacci)."""
    index = torch.arange(count) + 0.5
    height = 1 - 2 * index / count
    turn = index * math.pi * (1 + math.sqrt(5))
    ring = (1 - height**2).sqrt()
    return RADIUS * torch.stack([ring * turn.cos(), height, ring * turn.sin()], dim=-1)


def paint(points: torch.Tensor) -> torch.Tensor:  # [..., 3] -> [..., 3]
    """A smooth pattern on a surface, in [0.2, 0.8]."""
    return 0.5 + 0.3 * torch.sin(9 * points + torch.tensor([0.0, 1.0, 2.0]))


def sphere_frames(centre=(0.0, 0.0, 0.0), views: int = 9, over: int = 4):
    """Ray-cast premultiplied pictures of a painted sphere and their cameras."""
    cameras = orbit_cameras(Orbit(num_views=views), SIZE * over, SIZE * over)
    positions = pixel_positions(SIZE * over, SIZE * over, torch.zeros(1)) * SIZE * over
    slopes = positions / cameras.K[0, 0, 0]
    rays = torch.cat([slopes, torch.ones_like(slopes[..., :1])], -1)
    rays = torch.nn.functional.normalize(rays, dim=-1)
    rays = torch.einsum("vij,yxj->vyxi", cameras.camera_to_world[:, :3, :3], rays)
    offset = cameras.centres[:, None, None] - torch.tensor(centre)
    along = (rays * offset).sum(-1)
    inside = along**2 - offset.square().sum(-1) + RADIUS**2
    hit = (inside > 0).float()
    points = offset + rays * (-along - inside.clamp(min=0).sqrt())[..., None]
    picture = torch.cat([paint(points), torch.ones_like(hit[..., None])], -1) * hit[..., None]
    small = torch.nn.functional.avg_pool2d(picture.permute(0, 3, 1, 2), over)
    return small.permute(0, 2, 3, 1).contiguous(), orbit_cameras(Orbit(num_views=views), SIZE, SIZE)


@pytest.fixture(scope="module")
def orbit():
    return sphere_frames()


def aligner_of(frames, cameras, config=CONFIG):
    return FrameAligner(frames, cameras, torch.zeros(3), 0.7, config)


def displaced(frames, displacements):
    planes = read_displaced(frames.permute(0, 3, 1, 2), displacements, bicubic=True)
    return planes.permute(0, 2, 3, 1).clamp(0, 1)


def settle(aligner, consensus, steps=4):
    for _ in range(steps):
        aligner.update(consensus, sphere_points())


def test_spline_rows_sum_to_one_and_reproduce_straight_lines():
    positions = torch.linspace(-0.5, 0.5, 33, dtype=torch.float64)
    basis = spline_basis(8, positions)
    assert torch.allclose(basis.sum(1), torch.ones(33, dtype=torch.float64))
    # Marsden's identity: coefficients equal to the nodes give the position itself
    assert torch.allclose(basis @ node_positions(8, positions), positions)


def test_a_warp_means_the_same_at_every_resolution():
    coefficients = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    coarse = evaluate_warps(coefficients, 32, 32)
    fine = evaluate_warps(coefficients, 96, 96)
    assert torch.allclose(coarse, fine[:, 1::3, 1::3], atol=1e-5)  # same pixel centres


def test_reading_at_no_displacement_returns_the_picture():
    picture = torch.rand(2, 4, 20, 30)
    for bicubic in (False, True):
        same = read_displaced(picture, torch.zeros(2, 20, 30, 2), bicubic=bicubic)
        assert torch.allclose(same, picture, atol=1e-5)


def test_a_displacement_of_one_pixel_shifts_by_one_pixel_on_both_axes():
    picture = torch.rand(1, 1, 12, 24)
    shift = torch.tensor([1.0, -2.0]) / 24  # of the longer side
    read = read_displaced(picture, shift.expand(1, 12, 24, 2))
    assert torch.allclose(read[..., 2:, :-1], picture[..., :-2, 1:], atol=1e-4)


def test_smooth_warps_are_likelier_than_rough_ones_of_the_same_size():
    precision = warp_precision(8, 0.01, 0.2, 0.004, 0.01, torch.zeros(1))
    smooth = torch.full((64,), 0.01, dtype=torch.float64)
    rough = smooth * torch.tensor([1.0, -1.0]).repeat(32)
    assert rough @ precision @ rough > 10 * (smooth @ precision @ smooth)


def test_field_weights_sum_to_one_and_reproduce_positions():
    points = torch.rand(50, 3, dtype=torch.float64) - 0.5
    basis = field_basis(points, torch.zeros(3, dtype=torch.float64), 0.6, 5)
    line = torch.linspace(-0.6, 0.6, 5, dtype=torch.float64)
    nodes = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
    assert torch.allclose(basis @ nodes, points)


def test_square_root_rows_give_back_the_normal_equations():
    slopes = torch.randn(7, 5, 2, dtype=torch.float64)
    residuals = torch.randn(7, 5, dtype=torch.float64)
    tensor = torch.einsum("pci,pcj->pij", slopes, slopes)
    pull = torch.einsum("pci,pc->pi", slopes, residuals)
    rows, right = square_root_rows(tensor, pull)
    assert torch.allclose(rows.mT @ rows, tensor, rtol=1e-4)
    assert torch.allclose((rows.mT @ right[..., None])[..., 0], pull, rtol=1e-4, atol=1e-6)


def test_rows_of_a_picture_without_slopes_ask_for_nothing():
    rows, right = square_root_rows(torch.zeros(3, 2, 2), torch.zeros(3, 2))
    assert torch.isfinite(rows).all() and torch.isfinite(right).all()
    assert float(right.abs().max()) == 0


def test_jacobian_and_surface_points_agree_with_projection(orbit):
    cameras = orbit[1]
    points, jacobian = surface_cells(sphere_points(), cameras, 16, 16)
    pixels = torch.stack([project_points(points[v], cameras[v])[0][0] for v in range(9)])
    wanted = pixel_positions(16, 16, points).reshape(-1, 2) + 0.5
    assert torch.allclose(pixels / SIZE, wanted.expand_as(pixels), atol=1e-5)
    seen = jacobian.abs().sum((-2, -1)) > 0
    assert float(seen.float().mean()) < 0.8  # the sphere and its rim, not the corners
    middle = pixel_positions(16, 16, points).reshape(-1, 2).norm(dim=-1) < 0.2
    assert bool(seen[:, middle].all())
    assert float((points[:, middle].norm(dim=-1) - RADIUS).abs().max()) < 0.1
    move = torch.tensor([0.002, -0.001, 0.0015])
    moved = torch.stack([project_points(points[v] + move, cameras[v])[0][0] for v in range(9)])
    predicted = (jacobian @ move)[seen]
    assert torch.allclose(((moved - pixels) / SIZE)[seen], predicted, atol=2e-5)


def test_residuals_that_no_warp_explains_leave_the_frames_alone(orbit):
    """The consensus shows other paint, as a poor fit does: much residual, and warps of noise."""
    frames, cameras = orbit
    noise = torch.rand(len(frames), 3, 8, 8, generator=torch.Generator().manual_seed(3)) - 0.5
    noise = torch.nn.functional.interpolate(noise, size=SIZE, mode="bilinear").permute(0, 2, 3, 1)
    consensus = frames.clone()
    consensus[..., :3] += 0.5 * noise * frames[..., 3:]
    bold = aligner_of(frames, cameras)
    bold.update(consensus, sphere_points())
    assert bold.disagrees()
    careful = aligner_of(frames, cameras, dataclasses.replace(CONFIG, least_explained=0.3))
    moves = careful.update(consensus, sphere_points())
    assert not careful.disagrees() and not moves.any()
    assert torch.equal(careful.targets, frames)


def test_a_true_warp_explains_enough(orbit):
    frames, cameras = orbit
    config = dataclasses.replace(CONFIG, least_explained=0.3)
    turn = torch.linspace(0, 2 * math.pi, len(frames) + 1)[:-1]
    shifts = 0.02 * torch.stack([turn.sin(), (2 * turn).cos()], dim=-1)
    moved = displaced(frames, shifts[:, None, None].expand(-1, SIZE, SIZE, 2))
    aligner = aligner_of(moved, cameras, config)
    aligner.update(frames, sphere_points())
    assert aligner.disagrees()


def test_frames_that_agree_stay_bit_for_bit(orbit):
    frames, cameras = orbit
    aligner = aligner_of(frames, cameras)
    settle(aligner, frames)
    assert not aligner.disagrees()
    assert torch.equal(aligner.targets, frames)
    assert torch.equal(aligner.weights, torch.ones_like(aligner.weights))
    views = Views(frames[..., :3], frames[..., 3], cameras)
    assert aligner.corrected_views(views) is views


def test_known_smooth_warps_of_zero_mean_are_undone(orbit):
    frames, cameras = orbit
    coefficients = 0.02 * torch.randn(9, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    coefficients = coefficients - coefficients.mean(0)
    warped = displaced(frames, evaluate_warps(coefficients, SIZE, SIZE))
    aligner = aligner_of(warped, cameras, STILL)
    settle(aligner, frames)
    assert aligner.disagrees()
    before = (warped - frames).square().mean()
    after = (aligner.targets - frames).square().mean()
    assert after < before / 10, (before, after)


def test_the_buffers_are_rewritten_in_place(orbit):
    frames, cameras = orbit
    aligner = aligner_of(displaced(frames, torch.full((9, SIZE, SIZE, 2), 0.02)), cameras)
    targets, weights = aligner.targets.data_ptr(), aligner.weights.data_ptr()
    settle(aligner, frames, steps=1)
    assert (targets, weights) == (aligner.targets.data_ptr(), aligner.weights.data_ptr())


def test_a_shift_common_to_all_frames_moves_the_object_and_not_the_frames(orbit):
    """The gauge: all frames down by the same amount is an object that stands lower."""
    frames, cameras = orbit
    lower, _ = sphere_frames((0.0, -0.04, 0.0))
    aligner = aligner_of(lower, cameras)
    move = aligner.update(frames, sphere_points())
    assert float((move.mean(0) - torch.tensor([0.0, -0.04, 0.0])).abs().max()) < 0.012
    assert float(evaluate_warps(aligner.warps, 8, 8)[..., 1].abs().mean()) * SIZE < 0.2


def test_a_shift_of_one_frame_is_found_and_the_others_stay(orbit):
    frames, cameras = orbit
    spoiled = frames.clone()
    shift = torch.tensor([2.0, -1.5]) / SIZE
    spoiled[4] = displaced(frames[4:5], shift.expand(1, SIZE, SIZE, 2))[0]
    aligner = aligner_of(spoiled, cameras, STILL)
    settle(aligner, frames)
    moved = [row["moved_px"] for row in aligner.report()]
    assert moved[4] == pytest.approx(2.5, abs=0.3)
    assert max(moved[:4] + moved[5:]) < 0.5
    rows = aligner.report(longer_side=2 * SIZE)
    assert rows[4]["moved_px"] == pytest.approx(2 * moved[4], abs=0.01)
    assert rows[4]["db_after"] > rows[4]["db_before"] + 6


def test_frames_that_are_not_square_are_aligned_as_well(orbit):
    frames, cameras = orbit
    wide = frames[:, 8:56].contiguous()
    K = cameras.K - torch.tensor([[0.0, 0, 0], [0, 0, 8], [0, 0, 0]])
    cameras = dataclasses.replace(cameras, K=K, height=48)
    spoiled = wide.clone()
    spoiled[3] = displaced(wide[3:4], (torch.tensor([2.0, -1.5]) / SIZE).expand(1, 48, SIZE, 2))[0]
    aligner = aligner_of(spoiled, cameras, STILL)
    settle(aligner, wide)
    moved = [row["moved_px"] for row in aligner.report()]
    assert moved[3] == pytest.approx(2.5, abs=0.3)
    assert max(moved[:3] + moved[4:]) < 0.5


def test_gains_are_found_up_to_their_common_factor(orbit):
    frames, _ = orbit
    true = 1 + 0.05 * torch.randn(9, 3, generator=torch.Generator().manual_seed(2))
    dimmed = torch.cat([frames[..., :3] / true[:, None, None], frames[..., 3:]], -1)
    planes, consensus = dimmed.permute(0, 3, 1, 2), frames.permute(0, 3, 1, 2)
    gains = robust_gains(planes, consensus, torch.ones(9, 3))
    assert torch.allclose(gains.median(0).values, torch.ones(3), atol=1e-5)
    assert torch.allclose(gains, true / true.median(0).values, atol=2e-3)


def test_colour_alone_is_noticed_and_corrected(orbit):
    frames, cameras = orbit
    true = 1 + 0.05 * torch.randn(9, 1, generator=torch.Generator().manual_seed(3))
    dimmed = torch.cat([frames[..., :3] / true[:, None, None], frames[..., 3:]], -1)
    aligner = aligner_of(dimmed, cameras)
    settle(aligner, frames)
    assert aligner.disagrees()
    # the colours' common factor is free; shapes agreed and stay where they were
    common = (aligner.gains / true).log().mean()
    assert torch.allclose(aligner.gains / common.exp(), true, atol=5e-3)
    assert float(aligner.warps.abs().max()) == 0
    assert torch.equal(aligner.targets[..., 3], frames[..., 3])


def test_a_frame_of_another_object_gets_little_confidence(orbit):
    frames, cameras = orbit
    spoiled = frames.clone()
    spoiled[2, ..., :3] = frames[2, ..., 3:] - frames[2, ..., :3]  # colours turned round
    aligner = aligner_of(spoiled, cameras, STILL)
    settle(aligner, frames, steps=2)
    confidence = [row["confidence"] for row in aligner.report()]
    assert confidence[2] < 0.6 < 0.95 < min(confidence[:2] + confidence[3:])


def test_corrected_views_keep_straight_colours_and_masks_in_range(orbit):
    frames, cameras = orbit
    shifted = frames.clone()
    shifted[1, 3:] = frames[1, :-3]
    shifted[1, :3] = 0
    aligner = aligner_of(shifted, cameras)
    settle(aligner, frames)
    alpha = shifted[..., 3]
    straight = torch.where(alpha[..., None] > 1e-4, shifted[..., :3] / alpha[..., None], 0)
    corrected = aligner.corrected_views(Views(straight.clamp(0, 1), alpha, cameras))
    premultiplied = corrected.images * corrected.masks[..., None]
    assert torch.allclose(premultiplied, aligner.targets[..., :3], atol=2e-3)
    assert float(corrected.masks.min()) >= 0 and float(corrected.masks.max()) <= 1
