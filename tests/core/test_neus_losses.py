"""The terms of the NeuS fit's loss: closed forms, and V3D's formula for normals by a loop."""

import math

import pytest
import torch
import torch.nn.functional as F

from v3d_core.neus.losses import (
    colour_loss,
    curvature_loss,
    eikonal_loss,
    mask_loss,
    normal_loss,
    smoothness_loss,
    sparsity_loss,
    trimmed_mean,
)

Z = torch.tensor([0.0, 0.0, 1.0])


def directions(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 3, generator=generator), dim=-1)


def test_colour_loss_is_the_mean_distance_of_all_channels():
    pictures = torch.tensor([[0.5, 0.5, 0.5], [1.0, 0.0, 0.2]])
    targets = torch.tensor([[0.5, 0.2, 0.5], [0.7, 0.0, 0.8]])
    assert float(colour_loss(pictures, targets)) == pytest.approx((0.3 + 0.3 + 0.6) / 6)
    assert float(colour_loss(pictures, targets, 0.5)) == pytest.approx(0.1)  # the better ray's
    assert float(colour_loss(targets, targets)) == 0


@pytest.mark.parametrize("trimmed", [0.0, 0.1, 0.25, 0.5, 0.99])
def test_trimmed_mean_leaves_out_exactly_the_worst(trimmed):
    errors = torch.randperm(40, generator=torch.Generator().manual_seed(0)).float() + 1
    errors.requires_grad_()
    kept = max(1, round(40 * (1 - trimmed)))
    mean = trimmed_mean(errors, trimmed)
    assert mean.item() == pytest.approx(sum(range(1, kept + 1)) / kept)
    mean.backward()
    torch.testing.assert_close(errors.grad, (errors.detach() <= kept) / kept)


def test_mask_loss_is_the_cross_entropy_and_is_least_where_opacity_is_the_mask():
    opacities, masks = torch.tensor([0.25, 0.9, 0.5]), torch.tensor([0.0, 1.0, 0.3])
    expected = -(math.log(0.75) + math.log(0.9) + 0.3 * math.log(0.5) + 0.7 * math.log(0.5)) / 3
    assert float(mask_loss(opacities, masks)) == pytest.approx(expected, rel=1e-6)
    soft = torch.full((1,), 0.3)
    best = min(range(1, 100), key=lambda k: float(mask_loss(torch.tensor([k / 100]), soft)))
    assert best == 30


def test_mask_loss_of_wrong_opaque_and_clear_rays_is_finite():
    opacities = torch.tensor([0.0, 1.0, 1.0 + 1e-6], requires_grad=True)
    loss = mask_loss(opacities, torch.tensor([1.0, 0.0, 0.0]))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-3), rel=1e-4)
    assert bool(opacities.grad.isfinite().all())


def test_eikonal_loss_is_the_mean_square_where_it_counts():
    gradients = torch.tensor([[2.0, 0, 0], [0, 0.5, 0], [0.6, 0.8, 0], [9.0, 9.0, 9.0]])
    counts = torch.tensor([True, True, True, False])
    assert float(eikonal_loss(gradients, counts)) == pytest.approx((1 + 0.25 + 0) / 3, abs=1e-6)
    assert float(eikonal_loss(directions(50), torch.ones(50, dtype=torch.bool))) < 1e-12
    assert float(eikonal_loss(gradients, torch.zeros(4, dtype=torch.bool))) == 0


def test_eikonal_loss_has_a_finite_gradient_where_the_field_is_flat():
    flat = torch.zeros(3, 3, requires_grad=True)
    eikonal_loss(flat, torch.ones(3, dtype=torch.bool)).backward()
    assert bool(flat.grad.isfinite().all())


def normal_loss_by_a_loop(normals, priors, rays):
    """V3D's sum, with its weights divided by those of the rays that count."""
    total = weight = 0.0
    for normal, prior, ray in zip(normals.tolist(), priors.tolist(), rays.tolist(), strict=True):
        cosine = sum(a * b for a, b in zip(prior, ray, strict=True))
        if cosine > -0.1:
            continue
        length = math.sqrt(sum(a * a for a in normal))
        agreement = sum(a * b for a, b in zip(normal, prior, strict=True)) / length
        total += (1 - agreement) * math.exp(abs(cosine))
        weight += math.exp(abs(cosine))
    return total / weight


def test_normal_loss_has_the_weights_of_v3ds_formula():
    normals, priors, rays = directions(200, 1) * 0.7, directions(200, 2), directions(200, 3)
    expected = normal_loss_by_a_loop(normals, priors, rays)
    assert float(normal_loss(normals, priors, rays)) == pytest.approx(expected, rel=1e-5)


def test_normal_loss_is_0_for_equal_2_for_opposite_and_ignores_lengths():
    priors = F.normalize(directions(100, 1) - 3 * Z, dim=-1)
    rays = Z.expand(100, 3)
    assert float(normal_loss(0.3 * priors, priors, rays)) == pytest.approx(0, abs=1e-6)
    assert float(normal_loss(-priors, priors, rays)) == pytest.approx(2, rel=1e-6)


def test_normals_that_are_unknown_sideways_or_face_away_say_nothing():
    rays = Z.expand(5, 3)
    sideways = torch.tensor([math.sqrt(1 - 0.09**2), 0, -0.09])
    just_counts = torch.tensor([math.sqrt(1 - 0.11**2), 0, -0.11])
    priors = torch.stack([-Z, torch.zeros(3), sideways, Z, just_counts])
    normals = directions(5, 4).requires_grad_()
    normal_loss(normals, priors, rays).backward()
    assert normals.grad.any(dim=-1).tolist() == [True, False, False, False, True]
    alone = normal_loss(normals[[1, 2, 3]], priors[[1, 2, 3]], rays[:3])
    assert alone.item() == 0


def test_normal_loss_is_finite_where_the_ray_meets_no_surface():
    normals = torch.zeros(3, 3, requires_grad=True)
    loss = normal_loss(normals, -Z.expand(3, 3), Z.expand(3, 3))
    loss.backward()
    assert loss.item() == pytest.approx(1) and bool(normals.grad.isfinite().all())


def test_trimmed_normal_loss_leaves_out_the_worst_of_those_that_count():
    """Ten rays count, nine do not; of the ten, the worst fifth is left out."""
    angles = torch.arange(1, 11) * 0.1
    good = torch.stack([angles.sin(), torch.zeros(10), -angles.cos()], dim=-1)
    normals = torch.cat([directions(9, 5), good]).requires_grad_()
    priors = torch.cat([torch.zeros(9, 3), -Z.expand(10, 3)])
    loss = normal_loss(normals, priors, Z.expand(19, 3), trimmed=0.2)
    assert loss.item() == pytest.approx(float((1 - angles[:8].cos()).mean()), rel=1e-4)
    loss.backward()
    assert torch.nonzero(normals.grad.any(dim=-1))[:, 0].tolist() == list(range(9, 17))


def test_sparsity_loss_is_1_on_the_surface_and_nothing_far_from_it():
    assert float(sparsity_loss(torch.zeros(4))) == 1
    assert float(sparsity_loss(torch.tensor([0.01, -0.01]))) == pytest.approx(math.exp(-1))
    assert float(sparsity_loss(torch.tensor([1.0, -0.5]))) < 1e-20


def test_smoothness_loss_is_the_mean_change_and_0_in_a_plane():
    gradients = directions(30)
    assert float(smoothness_loss(gradients, gradients)) == 0
    change = torch.tensor([0.3, -0.6, 0.0])
    assert float(smoothness_loss(gradients, gradients + change)) == pytest.approx(0.3, rel=1e-5)


def tangents_at(normals, seed=9):
    return F.normalize(torch.linalg.cross(normals, directions(len(normals), seed)), dim=-1)


@pytest.mark.parametrize("radius", [0.2, 0.5, 2.0])
def test_curvature_of_a_sphere_is_one_by_its_radius(radius):
    normals, step = directions(200), 0.01
    tangents = tangents_at(normals)
    beside = normals * radius + tangents * step  # gradients need no unit length
    for scale in (1.0, 3.0):
        curvature = float(curvature_loss(normals * scale, beside, tangents, step))
        assert curvature == pytest.approx(1 / radius, rel=0.002)


def test_curvature_of_a_cylinder_is_the_mean_over_the_directions_along_it():
    """Euler's theorem: cos^2 of the angle to the round direction, one half on average."""
    angles = torch.arange(4000) / 4000 * 2 * math.pi
    normals = torch.tensor([1.0, 0.0, 0.0]).expand(4000, 3)
    tangents = torch.stack([torch.zeros(4000), angles.sin(), angles.cos()], dim=-1)
    beside = normals * 0.5 + tangents * torch.tensor([1.0, 1.0, 0.0]) * 1e-3
    assert float(curvature_loss(normals, beside, tangents, 1e-3)) == pytest.approx(1.0, rel=1e-3)
    assert float(curvature_loss(normals, normals, tangents, 1e-3)) == 0
