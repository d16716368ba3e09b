"""The plain torch rasteriser against a per-pixel brute-force picture, and its gradients."""

import math

import pytest
import torch

from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.splats.projection import (
    LOW_PASS_VARIANCE,
    MAX_ALPHA,
    MIN_ALPHA,
    Projected,
    project_gaussians,
    quats_to_rotations,
)
from v3d_core.splats.torch_raster import rasterize_torch, surface_depths_torch


def brute_force(projected: Projected, features, opacities, width, height):
    """Every pixel visits every Gaussian, near to far: the definition, pixel by pixel."""
    views = []
    for v in range(len(projected.means2d)):
        order = torch.argsort(projected.depths[v], stable=True).tolist()
        pixels = []
        for row in range(height):
            for column in range(width):
                transmittance = features.new_ones(())
                total = features.new_zeros(features.shape[-1])
                for n in order:
                    if projected.extents[v, n, 0] <= 0:
                        continue
                    dx = column + 0.5 - projected.means2d[v, n, 0]
                    dy = row + 0.5 - projected.means2d[v, n, 1]
                    a, b, c = projected.conics[v, n]
                    power = -0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy
                    alpha = (opacities[n] * torch.exp(power)).clamp(max=MAX_ALPHA)
                    if alpha < MIN_ALPHA:
                        continue
                    total = total + alpha * transmittance * features[v, n]
                    transmittance = transmittance * (1 - alpha)
                pixels.append(total)
        views.append(torch.stack(pixels).reshape(height, width, -1))
    return torch.stack(views)


def random_scene(count, seed=0, dtype=torch.float64, spread=0.4, size=0.15):
    """Gaussians about the origin: centres, quats, scales, opacities, colours."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return (
        normal(count, 3) * spread,
        normal(count, 4),
        torch.exp(normal(count, 3) * 0.5) * size,
        torch.sigmoid(normal(count) * 1.5),
        torch.rand(count, 3, generator=generator, dtype=dtype),
    )


def cameras_of(views, width, height, dtype=torch.float64):
    return orbit_cameras(Orbit(num_views=views, elevation_deg=15), width, height).to(dtype)


def render(scene, cameras, engine=rasterize_torch):
    means, quats, scales, opacities, colours = scene
    projected = project_gaussians(means, quats, scales, opacities, cameras)
    features = torch.cat([colours, torch.ones_like(colours[:, :1])], dim=-1)
    features = features.expand(len(cameras), -1, -1)
    return engine(projected, features, opacities, cameras.width, cameras.height)


@pytest.mark.parametrize(
    ("width", "height", "count", "spread", "size"),
    [
        (16, 16, 12, 0.4, 0.15),
        (13, 7, 12, 0.4, 0.15),  # no multiple of anything
        (9, 9, 6, 0.4, 0.002),  # smaller than a pixel
        (8, 8, 5, 0.4, 3.0),  # larger than the picture
        (8, 8, 40, 0.01, 0.05),  # many on one pixel
        (8, 8, 12, 2.5, 0.2),  # some behind the camera and off the picture
        (1, 1, 3, 0.1, 0.3),
    ],
)
def test_picture_equals_brute_force(width, height, count, spread, size):
    scene = random_scene(count, seed=count, spread=spread, size=size)
    cameras = cameras_of(2, width, height)
    fast = render(scene, cameras)
    slow = render(scene, cameras, brute_force)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_gradient_of_every_input_is_numerically_right():
    cameras = cameras_of(2, 6, 5)
    means, quats, scales, opacities, colours = random_scene(4, seed=3)
    inputs = [t.clone().requires_grad_() for t in (means, quats, scales, opacities, colours)]
    torch.autograd.gradcheck(
        lambda *scene: render(scene, cameras), inputs, eps=1e-7, atol=1e-5, rtol=1e-4
    )


def test_gradient_equals_autograd_through_brute_force_with_saturated_alpha():
    cameras = cameras_of(1, 5, 5)
    means, quats, scales, opacities, colours = random_scene(6, seed=5, spread=0.1, size=0.3)
    opacities = opacities.clone()
    opacities[:3] = 0.999  # clamped at MAX_ALPHA near the centre
    weight = torch.rand(1, 5, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = []
    for engine in (rasterize_torch, brute_force):
        inputs = [t.clone().requires_grad_() for t in (means, quats, scales, opacities, colours)]
        (render(inputs, cameras, engine) * weight).sum().backward()
        gradients.append([t.grad for t in inputs])
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-10)


def test_float32_agrees_with_float64():
    scene = random_scene(300, seed=7, size=0.05)
    cameras = cameras_of(3, 40, 40)
    single = render([t.float() for t in scene], cameras.to(torch.float32))
    double = render(scene, cameras)
    # a pair at the 1/255 cut may flip between precisions: at most a few 8-bit half steps
    assert (single.double() - double).abs().max() < 1.5 / 255
    assert (single.double() - double).abs().mean() < 1e-5


def test_rotating_world_and_cameras_leaves_the_picture_unchanged():
    means, quats, scales, opacities, colours = random_scene(50, seed=2)
    cameras = cameras_of(2, 24, 24)
    turn = quats_to_rotations(torch.tensor([[0.3, 0.5, -0.7, 0.2]], dtype=torch.float64))[0]
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = turn
    import dataclasses

    turned_cameras = dataclasses.replace(cameras, camera_to_world=pose @ cameras.camera_to_world)
    q = torch.nn.functional.normalize(
        torch.tensor([0.3, 0.5, -0.7, 0.2], dtype=torch.float64), dim=0
    )
    turned_quats = hamilton(q, quats)
    turned = render((means @ turn.T, turned_quats, scales, opacities, colours), turned_cameras)
    torch.testing.assert_close(turned, render((means, quats, scales, opacities, colours), cameras))


def hamilton(p, q):
    """Quaternion product p q, wxyz."""
    pw, px, py, pz = p.unbind(-1)
    qw, qx, qy, qz = q.unbind(-1)
    return torch.stack(
        [
            pw * qw - px * qx - py * qy - pz * qz,
            pw * qx + px * qw + py * qz - pz * qy,
            pw * qy - px * qz + py * qw + pz * qx,
            pw * qz + px * qy - py * qx + pz * qw,
        ],
        dim=-1,
    )


def test_isotropic_gaussian_has_the_closed_form_footprint():
    sigma, opacity = 0.1, 0.8
    cameras = orbit_cameras(Orbit(num_views=1), 65, 65).to(torch.float64)
    one = torch.ones(1, 3, dtype=torch.float64)
    scene = (
        one * 0,
        torch.tensor([[1.0, 0, 0, 0]]).double(),
        one * sigma,
        one[:, 0] * opacity,
        one,
    )
    alpha = render(scene, cameras)[0, ..., 3]
    focal = float(cameras.K[0, 0, 0])
    variance = (focal * sigma / 2.0) ** 2 + LOW_PASS_VARIANCE
    for offset in range(0, 20, 4):
        expected = opacity * math.exp(-0.5 * offset**2 / variance)
        got = float(alpha[32, 32 + offset])
        assert got == pytest.approx(expected if expected >= MIN_ALPHA else 0, abs=1e-9)


def test_empty_scene_and_transparent_splats_give_an_empty_picture():
    cameras = cameras_of(2, 8, 8)
    means, quats, scales, opacities, colours = random_scene(5)
    assert render((means, quats, scales, opacities * 0, colours), cameras).abs().max() == 0
    empty = [t[:0] for t in (means, quats, scales, opacities, colours)]
    assert render(empty, cameras).abs().max() == 0


def test_surface_depth_of_a_flat_opaque_disc_is_its_plane():
    """A wide, thin, tilted Gaussian: the depth in every pixel is that of the plane it lies in."""
    cameras = orbit_cameras(Orbit(num_views=1, fov_y_deg=10, radius=8.0), 33, 33).to(torch.float64)
    angle = math.radians(35)
    quat = torch.tensor([[math.cos(angle / 2), 0, math.sin(angle / 2), 0]]).double()  # about +Y
    scales = torch.tensor([[0.6, 0.6, 1e-4]]).double()
    opacity = torch.tensor([0.95]).double()
    projected = project_gaussians(torch.zeros(1, 3).double(), quat, scales, opacity, cameras)
    depth = surface_depths_torch(projected, opacity, 33, 33)[0]
    x = (torch.arange(33) + 0.5 - 16.5).double() / cameras.K[0, 0, 0] * 8.0
    normal_x, normal_z = math.sin(angle), math.cos(angle)
    expected = 8.0 + x * normal_x / normal_z  # to first order in the angle of the ray
    hit = depth[16] > 0
    assert hit.sum() > 15
    torch.testing.assert_close(depth[16][hit], expected[hit], rtol=0, atol=0.02)
    slope = (depth[16][20] - depth[16][12]) / (x[20] - x[12])
    assert float(slope) == pytest.approx(normal_x / normal_z, rel=0.02)


def test_pictures_and_gradients_repeat_bit_for_bit():
    scene = random_scene(200, seed=9, dtype=torch.float32, size=0.05)
    cameras = cameras_of(2, 32, 32, torch.float32)
    results = []
    for _ in range(2):
        inputs = [t.clone().requires_grad_() for t in scene]
        picture = render(inputs, cameras)
        picture.square().sum().backward()
        results.append([picture.detach(), *(t.grad for t in inputs)])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
