"""What a splat tells a surface fit, on a sphere whose pictures are known."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from v3d_core.cameras import Orbit, camera_rays, orbit_cameras
from v3d_core.neus.guides import (
    cameras_between,
    guided,
    normals_from_depth,
    with_normals_of_splats,
    with_views_between,
)
from v3d_core.splats.raster import Rendered
from v3d_core.structures import Views

RADIUS = 0.6


def sphere_maps(cameras):
    """Depth and coverage of a sphere about the origin, from a ray through each pixel centre."""
    origins, directions = camera_rays(cameras)
    along = (origins * directions).sum(-1)
    steepness = (directions * directions).sum(-1)
    inside = along**2 - steepness * ((origins * origins).sum(-1) - RADIUS**2)
    depths = torch.where(inside > 0, (-along - inside.clamp(min=0).sqrt()) / steepness, 0.0)
    return depths, (inside > 0).float()


def render_sphere(splats, cameras, background):
    assert background == (0.0, 0.0, 0.0)
    depths, alphas = sphere_maps(cameras)
    return Rendered(alphas[..., None] * torch.tensor([0.2, 0.4, 0.8]), alphas, depths)


def sphere_views(cameras):
    _, masks = sphere_maps(cameras)
    return Views(torch.full((*masks.shape, 3), 0.5), masks, cameras)


def test_views_between_an_orbits_are_the_orbit_turned_by_half_a_step():
    orbit = Orbit(num_views=18, elevation_deg=12.0)
    between = cameras_between(orbit_cameras(orbit, 32, 32))
    turned = orbit_cameras(dataclasses.replace(orbit, azimuth_start_deg=10.0), 32, 32)
    # the mean of two equally raised cameras is raised a little more; without elevation it is exact
    level = orbit_cameras(Orbit(num_views=18), 32, 32)
    exact = orbit_cameras(Orbit(num_views=18, azimuth_start_deg=10.0), 32, 32)
    torch.testing.assert_close(
        cameras_between(level).camera_to_world, exact.camera_to_world, rtol=0, atol=1e-5
    )
    apart = (between.camera_to_world - turned.camera_to_world).abs().max()
    assert apart < 0.02
    torch.testing.assert_close(between.centres.norm(dim=-1), torch.full((18,), 2.0))
    rotation = between.camera_to_world[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(18, 3, 3))
    assert (torch.linalg.det(rotation) > 0).all()


def test_normals_of_a_spheres_depth_point_away_from_its_centre():
    cameras = orbit_cameras(Orbit(num_views=5, elevation_deg=20.0), 96, 80)
    depths, alphas = sphere_maps(cameras)
    normals = normals_from_depth(depths, alphas, cameras)
    known = normals.norm(dim=-1) > 0
    world = (cameras.camera_to_world[:, None, None, :3, :3] @ normals[..., None])[..., 0]
    origins, directions = camera_rays(cameras)
    outward = F.normalize(origins + directions * depths[..., None], dim=-1)
    assert (world * outward).sum(-1)[known].min() > 0.999
    assert known.sum() > 0.85 * alphas.sum()
    assert not known[alphas == 0].any()


def test_pictures_from_between_come_after_the_views_and_bring_normals_only_if_those_have_some():
    cameras = orbit_cameras(Orbit(num_views=4), 48, 48)
    views = sphere_views(cameras)
    joined = with_views_between(views, None, render_sphere)
    assert len(joined) == 8 and joined.normals is None
    torch.testing.assert_close(joined[:4].images, views.images)
    solid = joined.masks[4:] == 1
    torch.testing.assert_close(
        joined.images[4:][solid], torch.tensor([0.2, 0.4, 0.8]).expand(int(solid.sum()), 3)
    )
    guided = with_views_between(
        with_normals_of_splats(views, None, render_sphere), None, render_sphere
    )
    assert guided.normals is not None and guided.normals.shape == (8, 48, 48, 3)


def test_normals_that_came_with_the_views_are_kept():
    views = sphere_views(orbit_cameras(Orbit(num_views=3), 32, 32))
    own = dataclasses.replace(views, normals=torch.zeros(3, 32, 32, 3))
    assert with_normals_of_splats(own, None, render_sphere) is own
    seen = with_normals_of_splats(views, None, render_sphere).normals
    assert seen.norm(dim=-1)[views.masks == 0].max() == pytest.approx(0.0)


@pytest.mark.parametrize("between, expected", [(False, [4]), (True, [4, 4])])
def test_a_splat_is_drawn_once_for_its_depth_and_its_normals(between, expected):
    """Its depth takes seconds on a CPU."""
    drawn = []

    def render(splats, cameras, background):
        drawn.append(len(cameras))
        return render_sphere(splats, cameras, background)

    views = sphere_views(orbit_cameras(Orbit(num_views=4), 32, 32))
    guided(views, None, render, normals=True, between=between)
    assert drawn == expected


def test_guides_give_the_depth_of_every_view_that_is_fitted():
    views = sphere_views(orbit_cameras(Orbit(num_views=4), 32, 32))
    same, depths = guided(views, None, render_sphere)
    assert same is views
    torch.testing.assert_close(depths, sphere_maps(views.cameras)[0])
    more, depths = guided(views, None, render_sphere, normals=True, between=True)
    assert len(more) == len(depths) == 8 and more.normals is not None
    torch.testing.assert_close(depths, sphere_maps(more.cameras)[0])
