"""What a NeuS fit starts from, on balls whose surface is known."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from v3d_core.cameras import (
    Orbit,
    camera_rays,
    intrinsics_from_fov,
    look_at,
    orbit_cameras,
    resize_cameras,
)
from v3d_core.neus.config import ALIGNED_MEMBRANE, NeusFitConfig
from v3d_core.neus.start import (
    CLEARANCE,
    carve_in_front_of,
    distance_to_occupied,
    sphere_distance,
    start_shape,
)
from v3d_core.structures import Cameras, Views
from v3d_core.visual_hull import VisualHull, seen_volume

CONFIG = NeusFitConfig(start_resolution=48)


def spread(count):
    """Directions all over the sphere (Fibonacci's spiral), none of them straight up."""
    k = torch.arange(count) + 0.5
    y, turn = 1 - 2 * k / count, k * math.pi * (3 - math.sqrt(5))
    flat = (1 - y * y).sqrt()
    return torch.stack([flat * turn.sin(), y, flat * turn.cos()], dim=-1)


def cameras_around(count, size=64, target=(0.0, 0.0, 0.0)):
    poses = look_at(torch.tensor(target) + 2 * spread(count), torch.tensor(target))
    K = intrinsics_from_fov(math.radians(60), size, size).expand(count, 3, 3).contiguous()
    return Cameras(poses, K, size, size)


def views_of_ball(radius, count=24, centre=(0.0, 0.0, 0.0), cameras=None):
    """Exact silhouettes, not antialiased."""
    cameras = cameras_around(count, target=centre) if cameras is None else cameras
    origins, directions = camera_rays(cameras)
    offset, directions = origins - torch.tensor(centre), F.normalize(directions, dim=-1)
    off_axis = torch.linalg.cross(offset, directions).norm(dim=-1)
    masks = (off_axis < radius).float()
    return Views(torch.full((*masks.shape, 3), 0.5), masks, cameras)


def depths_of_ball(radius, cameras):
    """Depths along the optical axes, 0 beside the ball."""
    origins, directions = camera_rays(cameras)
    a, b = directions.square().sum(-1), (origins * directions).sum(-1)
    under = b * b - a * (origins.square().sum(-1) - radius**2)
    return torch.where(under > 0, (-b - under.clamp(min=0).sqrt()) / a, 0.0)


def cell_centres(start):
    size = len(start.distance)
    along = (torch.arange(size) + 0.5) / size * 2 - 1
    unit = torch.stack(torch.meshgrid(along, along, along, indexing="ij"), dim=-1)
    return start.centre + unit * start.half_size


def test_sphere_fills_half_of_what_the_cameras_see():
    views = views_of_ball(0.3)
    start = start_shape(views, dataclasses.replace(CONFIG, start="sphere"))
    centre, half_size = seen_volume(views.cameras)
    assert torch.equal(start.centre, centre) and start.half_size == half_size
    exact = (cell_centres(start) - centre).norm(dim=-1) / half_size - CONFIG.sphere_radius
    torch.testing.assert_close(start.distance, exact, rtol=0, atol=1e-6)
    assert start.grid.shape == (4, 48, 48, 48)


@pytest.mark.parametrize("resolution", [40, 49])
def test_hull_of_a_ball_is_about_the_ball(resolution):
    """Where it is not at the origin either."""
    centre, radius = (0.2, 0.1, -0.3), 0.5
    views = views_of_ball(radius, centre=centre)
    start = start_shape(views, dataclasses.replace(CONFIG, start_resolution=resolution))
    points = cell_centres(start) - torch.tensor(centre)
    exact = points.norm(dim=-1) - radius
    got, cell = start.distance * start.half_size, 2 * start.half_size / len(start.distance)
    near = exact.abs() < 0.15
    assert float((got - exact)[near].abs().max()) < 1.5 * cell
    gradients = start.grid[1:].permute(1, 2, 3, 0)[near]
    radial = F.normalize(points[near], dim=-1)
    assert float((gradients * radial).sum(-1).mean()) > 0.9
    assert float(F.cosine_similarity(gradients, radial, dim=-1).min()) > 0.7


def test_band_around_the_start_fits_into_the_cube():
    start = start_shape(views_of_ball(0.5, count=8), NeusFitConfig())
    faces = torch.stack([start.distance.select(d, e) for d in range(3) for e in (0, -1)])
    assert float(faces.min()) > NeusFitConfig().band


def test_masks_without_a_common_volume_are_refused():
    views = views_of_ball(0.5)
    with pytest.raises(ValueError, match="no point lies inside the masks of all 24 views"):
        start_shape(dataclasses.replace(views, masks=torch.zeros_like(views.masks)), CONFIG)


def test_one_wrong_mask_is_forgiven_if_it_may_be():
    views = views_of_ball(0.5)
    masks = views.masks.clone()
    masks[5, :, :32] = 0
    wrong = dataclasses.replace(views, masks=masks)

    def solid(views, misses):
        start = start_shape(views, dataclasses.replace(CONFIG, mask_misses=misses))
        return float((start.distance < 0).sum()) * (2 * start.half_size / 48) ** 3

    whole = solid(views, 0)
    assert solid(wrong, 0) < 0.6 * whole
    assert solid(wrong, 1) == pytest.approx(whole, rel=0.1)


def test_a_higher_membrane_leaves_less_of_what_no_view_saw_and_all_that_is_seen():
    """Cameras that all look down leave a cone under a ball; higher levels cut more of it."""
    views = views_of_ball(0.5, cameras=orbit_cameras(Orbit(num_views=12, elevation_deg=20), 64, 64))
    cones, seen = [], []
    for level in (0.0, 0.2, ALIGNED_MEMBRANE, 0.5):
        config = dataclasses.replace(CONFIG, membrane_level=level, start_film_steps=0)
        start = start_shape(views, config)
        cell, solid = 2 * start.half_size / 48, start.distance < 0
        off = cell_centres(start).norm(dim=-1)
        cones.append(float((solid & (off > 0.5)).sum()) * cell**3)
        belt = (off < 0.45) & (cell_centres(start)[..., 1].abs() < 0.2)
        seen.append(float((solid & belt).sum() / belt.sum()))
    assert cones[0] > cones[1] > cones[2] > cones[3]
    assert min(seen) == 1


def test_a_film_takes_the_cone_that_no_view_saw_and_nothing_that_is_seen():
    """Cameras that look down leave a cone under a ball; a film across its rim is far flatter."""
    views = views_of_ball(0.5, cameras=orbit_cameras(Orbit(num_views=12, elevation_deg=20), 64, 64))
    bare = start_shape(views, dataclasses.replace(CONFIG, start_film_steps=0))
    drawn = start_shape(views, CONFIG)
    off = cell_centres(bare).norm(dim=-1)
    belt = (off < 0.45) & (cell_centres(bare)[..., 1].abs() < 0.2)
    assert bool((drawn.distance[belt] < 0).all())
    assert torch.equal(drawn.centre, bare.centre) and drawn.half_size == bare.half_size
    cone = (bare.distance < 0) & (off > 0.5)
    assert int((cone & (drawn.distance < 0)).sum()) < 0.85 * int(cone.sum())
    assert not bool((~cone & (off > 0.52) & (drawn.distance < 0)).any())  # and nothing is added


def test_distance_to_a_wall_is_exact_in_spite_of_the_blur():
    occupied = torch.zeros(32, 32, 32, dtype=torch.bool)
    occupied[:12] = True
    distance = distance_to_occupied(occupied)
    expected = (torch.arange(32) - 11.5)[:, None, None].expand(32, 32, 32)
    torch.testing.assert_close(distance[5:-5], expected[5:-5], rtol=0, atol=1e-4)


def test_sphere_distance_is_the_distance_at_cell_centres():
    distance = sphere_distance(4, 0.5)
    assert float(distance[0, 1, 3]) == pytest.approx(math.sqrt(0.75**2 + 0.25**2 + 0.75**2) - 0.5)


@pytest.fixture(scope="module")
def block():
    """A hull that fills a cube of side 1, 30 voxels."""
    return VisualHull(torch.ones(30, 30, 30, dtype=torch.bool), torch.zeros(3), 0.5)


@pytest.mark.parametrize("size", [64, 150])
def test_voxels_in_front_of_the_depths_go_and_those_behind_stay(block, size):
    """Whatever size the depth maps have; corners go too where enough views look past them."""
    radius, cameras = 0.3, cameras_around(200)
    depths = depths_of_ball(radius, resize_cameras(cameras, size, size))
    carved = carve_in_front_of(depths, block, cameras)
    off = block.voxel_centres(torch.nonzero(block.occupied)).norm(dim=-1)
    kept = carved.occupied.flatten()
    assert bool(kept[off < radius].all())
    assert not bool(kept[off > radius + (CLEARANCE + 1) * block.voxel].any())
    assert carved.half_size == block.half_size and bool(block.occupied.all())  # not changed


def test_a_fit_with_depths_starts_at_their_surface():
    views = views_of_ball(0.6, count=100)
    start = start_shape(views, CONFIG, depths=depths_of_ball(0.35, views.cameras))
    cell = 2 * start.half_size / 48
    off, inside = cell_centres(start).norm(dim=-1), start.distance < 0
    assert bool(inside[off < 0.35].all())
    assert float(off[inside].max()) < 0.35 + (CLEARANCE + 2) * cell


def from_the_front(count):
    """Cameras at z = 3, a little beside each other."""
    x = torch.linspace(-0.2, 0.2, count)
    poses = look_at(torch.stack([x, 0 * x, 0 * x + 3], dim=-1), torch.zeros(3))
    K = intrinsics_from_fov(math.radians(60), 64, 64).expand(count, 3, 3).contiguous()
    return Cameras(poses, K, 64, 64)


def test_depths_behind_the_whole_hull_are_of_another_object(block):
    with pytest.raises(ValueError, match=r"all 27,000 voxels .* lie in front of the given depths"):
        carve_in_front_of(torch.full((2, 64, 64), 5.0), block, from_the_front(2))


def test_depth_maps_must_be_as_many_as_views(block):
    with pytest.raises(ValueError, match="3 depth maps but 2 views"):
        carve_in_front_of(torch.full((3, 64, 64), 5.0), block, from_the_front(2))


@pytest.mark.parametrize("depth", [0.0, 2.4], ids=["nothing known", "at the front"])
def test_depths_that_say_nothing_carve_nothing(block, depth):
    depths = torch.full((2, 64, 64), depth)
    assert bool(carve_in_front_of(depths, block, from_the_front(2)).occupied.all())


def test_one_view_alone_carves_nothing(block):
    depths = torch.full((3, 64, 64), 5.0)
    depths[1:] = 2.4
    assert bool(carve_in_front_of(depths, block, from_the_front(3)).occupied.all())


def test_what_stands_at_the_rim_of_the_depths_is_left_alone(block):
    """The nearest depth around a pixel counts: thin things in front of a wall stay."""
    depths = torch.full((2, 64, 64), 5.0)
    depths[:, :, ::4] = 2.4  # no pixel is farther than 2 from one of these columns
    assert bool(carve_in_front_of(depths, block, from_the_front(2)).occupied.all())
