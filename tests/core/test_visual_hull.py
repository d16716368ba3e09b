"""The visual hull of shapes whose silhouettes are known."""

import dataclasses
import math

import pytest
import torch

from v3d_core.cameras import V3D_ORBIT, Orbit, orbit_cameras, project_points
from v3d_core.structures import Views
from v3d_core.visual_hull import (
    carve_visual_hull,
    count_silhouette_misses,
    sample_pictures,
    seen_volume,
    tight_visual_hull,
)


def disc_views(radius=0.6, size=128, orbit=V3D_ORBIT, centre=(0.0, 0.0, 0.0)):
    """Exact silhouettes of a sphere: a pixel is inside when its ray passes the centre closely."""
    from v3d_core.cameras import camera_rays

    cameras = orbit_cameras(orbit, size, size)
    origins, directions = camera_rays(cameras)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    to_centre = torch.tensor(centre) - origins
    along = (to_centre * directions).sum(-1, keepdim=True)
    distance = (to_centre - along * directions).norm(dim=-1)
    masks = (distance < radius).float()
    return Views(torch.zeros(*masks.shape, 3), masks, cameras)


def test_hull_of_a_sphere_holds_it_tightly():
    views = disc_views(0.6)
    hull = tight_visual_hull(views, 96)
    points = hull.voxel_centres(torch.nonzero(hull.occupied))
    radii = points.norm(dim=-1)
    # contains the sphere (a voxel of slack for the drawn outline) ...
    generator = torch.Generator().manual_seed(0)
    inside = torch.nn.functional.normalize(torch.randn(2000, 3, generator=generator), dim=-1) * 0.57
    index = ((inside - hull.centre + hull.half_size) / hull.voxel).long()
    assert bool(hull.occupied[index[:, 0], index[:, 1], index[:, 2]].all())
    # ... and on the equator, where all cameras are, nothing but it
    equator = points[:, 1].abs() < 0.02
    assert radii[equator].max() < 0.6 * 1.03 + hull.voxel
    # a polygon of 18 tangent cones about the circle: the area of the cut is a little larger
    cut = int(hull.occupied[:, hull.occupied.shape[1] // 2].sum()) * hull.voxel**2
    assert 1.0 < cut / (math.pi * 0.36) < 1.05


def test_hull_is_perspective_correct():
    """A small sphere off the axis is found where it is, not where a parallel projection puts it."""
    centre = (0.5, 0.1, -0.2)
    hull = tight_visual_hull(disc_views(0.15, centre=centre), 64)
    points = hull.voxel_centres(torch.nonzero(hull.occupied))
    torch.testing.assert_close(points.mean(0), torch.tensor(centre), rtol=0, atol=0.01)
    assert hull.half_size < 0.15 + 3 * 2 * 1.1547 / 32  # the sphere and the coarse pass's margin


def test_normals_of_a_sphere_point_outward():
    hull = tight_visual_hull(disc_views(0.6), 64)
    surface = hull.surface_voxels()
    points = hull.voxel_centres(surface)
    equator = points[:, 1].abs() < 0.3
    cosine = (hull.outward_normals(surface) * torch.nn.functional.normalize(points, dim=-1)).sum(-1)
    assert cosine[equator].min() > 0.85 and cosine[equator].mean() > 0.97


def test_hull_moves_with_the_world():
    views = disc_views(0.3, size=64, centre=(0.2, 0.0, 0.0))
    shift = torch.tensor([3.0, -1.0, 2.0])
    moved = views.cameras.camera_to_world.clone()
    moved[:, :3, 3] += shift
    shifted = dataclasses.replace(
        views, cameras=dataclasses.replace(views.cameras, camera_to_world=moved)
    )
    first, second = tight_visual_hull(views, 48), tight_visual_hull(shifted, 48)
    torch.testing.assert_close(second.centre, first.centre + shift, rtol=0, atol=1e-4)
    assert (first.occupied ^ second.occupied).float().mean() < 1e-3


def test_seen_volume_is_where_the_cameras_look():
    centre, half_size = seen_volume(orbit_cameras(Orbit(elevation_deg=25), 100, 100))
    torch.testing.assert_close(centre, torch.zeros(3), rtol=0, atol=1e-5)
    assert half_size == pytest.approx(2 * math.tan(math.radians(30)), rel=1e-5)


def test_cameras_that_look_away_are_refused():
    cameras = orbit_cameras(V3D_ORBIT, 32, 32)
    backwards = cameras.camera_to_world.clone()
    backwards[:, :3, [0, 2]] *= -1
    away = dataclasses.replace(cameras, camera_to_world=backwards)
    views = Views(torch.zeros(18, 32, 32, 3), torch.ones(18, 32, 32), away)
    with pytest.raises(ValueError, match="18 of 18 look away"):
        carve_visual_hull(views, 16)


def test_masks_without_common_volume_are_refused_with_the_likely_causes():
    views = disc_views(0.1, size=64, centre=(0.5, 0.0, 0.0))
    # a mere shift of the order would be a turned object, which is consistent
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    shuffled = dataclasses.replace(views, masks=views.masks[order])
    with pytest.raises(ValueError, match="inside the masks of all 18 views"):
        carve_visual_hull(shuffled, 64)


def test_a_missing_mask_is_forgiven_when_asked():
    views = disc_views(0.4, size=64)
    masks = views.masks.clone()
    masks[3] = 0
    broken = dataclasses.replace(views, masks=masks)
    with pytest.raises(ValueError, match="no point lies inside"):
        carve_visual_hull(broken, 32)
    hull = carve_visual_hull(broken, 32, tolerated_misses=1)
    whole = carve_visual_hull(views, 32)
    assert bool((hull.occupied | ~whole.occupied).all())


def test_misses_are_counted_only_inside_the_frame():
    views = disc_views(0.3, size=64)
    far_right = torch.tensor([[5.0, 0.0, 0.0]])
    _, depths = project_points(far_right, views.cameras)
    misses = count_silhouette_misses(far_right, views)
    assert int((depths > 0).sum()) > int(misses[0])


def test_samples_at_pixel_centres_are_the_pixels():
    picture = torch.rand(2, 5, 7, 3, generator=torch.Generator().manual_seed(0))
    y, x = torch.meshgrid(torch.arange(5) + 0.5, torch.arange(7) + 0.5, indexing="ij")
    pixels = torch.stack([x, y], dim=-1).reshape(1, -1, 2).expand(2, -1, -1)
    torch.testing.assert_close(sample_pictures(picture, pixels), picture.reshape(2, -1, 3))
