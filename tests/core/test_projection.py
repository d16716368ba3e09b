"""Footprints against the formula written out, and what a cut-out camera must not change."""

import dataclasses

import pytest
import torch

from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.images import crop_views
from v3d_core.splats import engines
from v3d_core.splats.projection import (
    FRUSTUM_MARGIN,
    LOW_PASS_VARIANCE,
    MIN_ALPHA,
    Pinholes,
    project_gaussians,
    quats_to_rotations,
)
from v3d_core.splats.raster import rasterize
from v3d_core.structures import Cameras, Views


def scene(count=60, spread=0.6, size=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    opacities = torch.rand(count, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    scales = torch.exp(0.5 * normal(count, 3)) * size
    return normal(count, 3) * spread, normal(count, 4), scales, opacities


def in_double(cameras):
    return cameras.to("cpu", torch.float64)


def with_principal_point(cameras, cx, cy):
    K = cameras.K.clone()
    K[:, 0, 2], K[:, 1, 2] = cx, cy
    return dataclasses.replace(cameras, K=K)


def covariance_by_hand(mean, quat, scale, camera: Cameras, clamp=True):
    """Picture covariance of one Gaussian: the Jacobian of the pinhole, one number at a time."""
    pose, K = camera.world_to_camera[0], camera.K[0]
    rotation = quats_to_rotations(quat[None])[0]
    shape = pose[:3, :3] @ rotation @ torch.diag(scale)
    x, y, z = pose[:3, :3] @ mean + pose[:3, 3]
    slopes = []
    for place, focal, centre, size in (
        (x / z, K[0, 0], K[0, 2], camera.width), (y / z, K[1, 1], K[1, 2], camera.height)
    ):  # fmt: skip
        margin = (FRUSTUM_MARGIN - 1) * size / 2
        low, high = (-margin - centre) / focal, (size + margin - centre) / focal
        slopes.append(min(max(place, low), high) if clamp else place)
    jacobian = torch.zeros(2, 3, dtype=mean.dtype)
    jacobian[0, 0], jacobian[0, 2] = K[0, 0] / z, -K[0, 0] * slopes[0] / z
    jacobian[1, 1], jacobian[1, 2] = K[1, 1] / z, -K[1, 1] * slopes[1] / z
    across = jacobian @ shape
    return across @ across.T + LOW_PASS_VARIANCE * torch.eye(2, dtype=mean.dtype)


PRINCIPAL_POINTS = [(20.0, 15.0), (3.0, 28.5), (-25.0, 10.0), (70.0, -40.0)]


@pytest.mark.parametrize(("cx", "cy"), PRINCIPAL_POINTS)
def test_footprints_are_those_of_the_formula_wherever_the_principal_point(cx, cy):
    cameras = in_double(orbit_cameras(Orbit(num_views=2, elevation_deg=12), 40, 30))
    cameras = with_principal_point(cameras, cx, cy)
    means, quats, scales, opacities = scene(spread=0.9)
    projected = project_gaussians(means, quats, scales, opacities, cameras)
    clamped = 0
    for v in range(2):
        for n in torch.nonzero(projected.extents[v, :, 0] > 0)[:, 0].tolist():
            covariance = covariance_by_hand(means[n], quats[n], scales[n], cameras[v : v + 1])
            free = covariance_by_hand(means[n], quats[n], scales[n], cameras[v : v + 1], False)
            clamped += not torch.equal(covariance, free)
            a, b, c = projected.conics[v, n]
            conic = torch.stack([torch.stack([a, b]), torch.stack([b, c])])
            torch.testing.assert_close(conic, torch.linalg.inv(covariance), rtol=1e-9, atol=0)
            reach = 2 * torch.log(opacities[n] / MIN_ALPHA)
            torch.testing.assert_close(
                projected.extents[v, n], (reach * covariance.diagonal()).sqrt()
            )
    assert clamped > 5  # the test is about these, too


@pytest.mark.parametrize(("cx", "cy"), PRINCIPAL_POINTS)
def test_the_jacobian_in_the_frame_is_that_of_the_pinhole(cx, cy):
    """Nothing in sight is clamped, even far from the optical axis: autograd gives the Jacobian."""
    camera = in_double(orbit_cameras(Orbit(num_views=1), 40, 30))
    camera = with_principal_point(camera, cx, cy)
    pose, K = camera.world_to_camera[0], camera.K[0]

    def pixel(point):
        in_camera = K @ (pose[:3, :3] @ point + pose[:3, 3])
        return in_camera[:2] / in_camera[2]

    corners = torch.tensor([[0.0, 0.0], [40.0, 0.0], [0.0, 30.0], [40.0, 30.0], [20.0, 15.0]])
    for corner in corners.double():
        ray = torch.linalg.solve(K, torch.cat([corner, corner.new_ones(1)]))
        point = torch.linalg.solve(pose[:3, :3], 1.7 * ray - pose[:3, 3])
        torch.testing.assert_close(pixel(point), corner)
        jacobian = torch.autograd.functional.jacobian(pixel, point)
        scale = torch.full((1, 3), 0.05, dtype=torch.float64)
        quat = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)
        one = torch.ones(1, dtype=torch.float64)
        a, b, c = project_gaussians(point[None], quat, scale, one, camera).conics[0, 0]
        covariance = 0.05**2 * jacobian @ jacobian.T + LOW_PASS_VARIANCE * torch.eye(2)
        conic = torch.stack([torch.stack([a, b]), torch.stack([b, c])])
        torch.testing.assert_close(conic @ covariance, torch.eye(2, dtype=torch.float64))


def views_of_boxes(boxes, width=64, height=52):
    """One view per box (left, top, right, bottom) whose mask fills it."""
    cameras = orbit_cameras(Orbit(num_views=len(boxes), elevation_deg=9), width, height)
    images = torch.rand(len(boxes), height, width, 3, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(len(boxes), height, width)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    return Views(images, masks, cameras)


# masks whose common box and a margin of 4 lie: inside, at a corner, at the other, everywhere
BOXES = [
    pytest.param([(20, 18, 40, 30), (24, 15, 36, 28)], (16, 11, 44, 34), id="middle"),
    pytest.param([(0, 0, 20, 12), (2, 1, 9, 25)], (0, 0, 24, 29), id="top left"),
    pytest.param([(41, 40, 64, 52), (50, 33, 63, 50)], (37, 29, 64, 52), id="bottom right"),
    pytest.param([(0, 0, 64, 52), (10, 10, 20, 20)], (0, 0, 64, 52), id="whole"),
]


@pytest.mark.parametrize(("boxes", "expected"), BOXES)
def test_a_cut_out_holds_the_objects_and_the_margin(boxes, expected):
    views = views_of_boxes(boxes)
    left, top, right, bottom = expected
    cropped = crop_views(views, 4)
    assert (cropped.cameras.width, cropped.cameras.height) == (right - left, bottom - top)
    assert torch.equal(cropped.images, views.images[:, top:bottom, left:right])
    assert torch.equal(cropped.masks, views.masks[:, top:bottom, left:right])
    assert torch.equal(cropped.cameras.camera_to_world, views.cameras.camera_to_world)
    assert cropped.masks.sum() == views.masks.sum()


def test_a_cut_out_of_empty_masks_is_the_whole():
    views = views_of_boxes([(0, 0, 0, 0), (0, 0, 0, 0)])
    assert crop_views(views, 4) is views


@pytest.mark.parametrize(
    "engine", engines.available_engines(torch.device("cpu")), ids=lambda e: e.name
)
@pytest.mark.parametrize(("boxes", "expected"), BOXES)
def test_a_cut_out_shows_the_same_pixels_as_the_whole(engine, boxes, expected, monkeypatch):
    monkeypatch.setenv(engines.ENGINE_VARIABLE, engine.name)
    left, top, right, bottom = expected
    views = views_of_boxes(boxes)
    views = dataclasses.replace(  # the scene stands where the boxes are
        views, cameras=with_principal_point(views.cameras, (left + right) / 2, (top + bottom) / 2)
    )
    dtype = torch.float64 if engine.name == "torch" else torch.float32
    means, quats, scales, opacities = (part.to(dtype) for part in scene(300, spread=0.25))
    cameras, cropped = (c.to("cpu", dtype) for c in (views.cameras, crop_views(views, 4).cameras))
    # the object of a fit lies in the cut-out; what is far beside it is clamped there
    projected = project_gaussians(means, quats, scales, opacities, cropped)
    size = torch.tensor([right - left, bottom - top])
    margin = (FRUSTUM_MARGIN - 1) * 0.5 * size
    near = ((projected.means2d > -margin) & (projected.means2d < size + margin)).all(-1).all(0)
    assert int(near.sum()) > 100
    sh = torch.rand(300, 4, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    gaussians = [part[near].requires_grad_() for part in (means, quats, scales, opacities, sh)]
    whole = rasterize(*gaussians, cameras)[:, top:bottom, left:right]
    part = rasterize(*gaussians, cropped)
    assert float(part.detach()[..., 3].mean()) > 0.05
    error = (part - whole).abs().detach()
    if dtype == torch.float64:
        assert float(error.max()) < 1e-10
    else:  # an alpha at the cut of 1/255 may fall on either side
        assert float(error.max()) < 1.5 / 255 and float(error.mean()) < 1e-6
        assert float((error > 1e-5).float().mean()) < 2e-3
    weights = torch.rand(part.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
    for mine, true in zip(
        torch.autograd.grad((part * weights).sum(), gaussians),
        torch.autograd.grad((whole * weights).sum(), gaussians),
        strict=True,
    ):
        assert float((mine - true).norm()) <= 2e-3 * float(true.norm())


def test_pinholes_know_their_centres():
    cameras = orbit_cameras(Orbit(num_views=5, elevation_deg=30), 16, 16)
    torch.testing.assert_close(Pinholes.of(cameras).centres, cameras.centres)
