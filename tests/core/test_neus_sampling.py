"""Rays and samples of the NeuS fit: what they cover, where they gather, which pixels they come from."""

import math

import pytest
import torch
import torch.nn.functional as F

from v3d_core.cameras import Orbit, camera_rays, orbit_cameras, project_points
from v3d_core.neus.sampling import MARGIN, PixelPool, place_samples
from v3d_core.neus.torch_sampling import STEPS_ALONG
from v3d_core.structures import Views

CENTRE, HALF_SIZE, BAND = torch.tensor([0.1, -0.2, 0.3]), 0.9, 0.1
CELLS = 64


def distances_of(*spheres):
    """Distance to the nearest of spheres (centre from the cube's, radius), at cell centres."""
    along = ((torch.arange(CELLS) + 0.5) / CELLS * 2 - 1) * HALF_SIZE
    points = torch.stack(torch.meshgrid(along, along, along, indexing="ij"), dim=-1)
    return torch.stack([(points - torch.tensor(c)).norm(dim=-1) - r for c, r in spheres]).amin(0)


BALL = distances_of(((0.0, 0.0, 0.0), 0.5))
TWO_BALLS = distances_of(((-0.45, 0.0, 0.0), 0.2), ((0.45, 0.0, 0.0), 0.2))


def rays_at_cube(count=60, seed=0):
    """From a sphere around the cube to points in and around it; the last of them miss it."""
    generator = torch.Generator().manual_seed(seed)
    origins = CENTRE + 3 * F.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    targets = CENTRE + 1.1 * HALF_SIZE * (2 * torch.rand(count, 3, generator=generator) - 1)
    directions = F.normalize(targets - origins, dim=-1)
    directions[-3:] = -directions[-3:]
    return origins, directions, torch.rand(count, generator=generator)


def place(origins, directions, jitter, known=None, start=BALL, count=16, share=0.75):
    both = torch.stack([start if known is None else known, start])
    return place_samples(origins, directions, jitter, both, CENTRE, HALF_SIZE, BAND, count, share)


def steps_of(origin, direction, start):
    """Entry into the cube, length of a step, and which steps lie in the band, by brute force."""
    near, far = 0.0, math.inf
    for o, d, c in zip(origin.tolist(), direction.tolist(), CENTRE.tolist(), strict=True):
        ends = sorted(((c - HALF_SIZE - o) / d, (c + HALF_SIZE - o) / d))
        near, far = max(near, ends[0]), min(far, ends[1])
    if far <= near:
        return near, 0.0, [False] * STEPS_ALONG
    step = (far - near) / STEPS_ALONG
    middles = near + (torch.arange(STEPS_ALONG) + 0.5) * step
    unit = (origin + direction * middles[:, None] - CENTRE) / HALF_SIZE
    values = F.grid_sample(
        start[None, None], unit.flip(-1)[None, None, None], align_corners=False,
        padding_mode="border",
    ).flatten()  # fmt: skip
    return near, step, (values < BAND).tolist()


def in_band_before(distance, near, step, inside):
    """Length of the band along a ray up to a distance."""
    total = 0.0
    for k, counts in enumerate(inside):
        total += counts * min(max(distance - near - k * step, 0.0), step)
    return total


@pytest.mark.parametrize("start", [BALL, TWO_BALLS], ids=["ball", "two balls"])
@pytest.mark.parametrize("share", [0.0, 0.75])
def test_sections_tile_exactly_the_part_of_a_ray_inside_the_band(start, share):
    origins, directions, jitter = rays_at_cube()
    samples = place(origins, directions, jitter, start=start, share=share)
    assert bool((samples.deltas >= 0).all())
    met = 0
    for ray in range(len(origins)):
        _, step, inside = steps_of(origins[ray], directions[ray], start)
        length = step * sum(inside)
        assert float(samples.deltas[ray].sum()) == pytest.approx(length, abs=2e-5)
        met += length > 0
    assert 8 < met < len(origins)


def test_sections_follow_each_other_and_samples_lie_between_their_ends():
    """Going by lengths in the band, a section begins where the one before ends."""
    origins, directions, jitter = rays_at_cube()
    samples = place(origins, directions, jitter)
    assert bool((samples.distances.diff(dim=1) >= 0).all())
    for ray in range(len(origins)):
        near, step, inside = steps_of(origins[ray], directions[ray], BALL)
        ends = samples.deltas[ray].cumsum(0)
        for k in torch.nonzero(samples.inside[ray])[:, 0].tolist():
            place_in_band = in_band_before(float(samples.distances[ray, k]), near, step, inside)
            begin = float(ends[k - 1]) if k else 0.0
            assert begin - 2e-5 <= place_in_band <= float(ends[k]) + 2e-5


@pytest.mark.parametrize("start", [BALL, TWO_BALLS], ids=["ball", "two balls"])
def test_samples_that_count_lie_in_the_band_and_in_the_cube(start):
    origins, directions, jitter = rays_at_cube(300)
    samples = place(origins, directions, jitter, start=start)
    points = origins[:, None] + directions[:, None] * samples.distances[..., None]
    unit = ((points - CENTRE) / HALF_SIZE)[samples.inside]
    assert float(unit.abs().max()) <= 1 + 1e-5
    values = F.grid_sample(
        start[None, None], unit.flip(-1)[None, None, None], align_corners=False,
        padding_mode="border",
    ).flatten()  # fmt: skip
    # a step is looked up at its middle
    assert float(values.max()) < BAND + 2 * math.sqrt(3) * HALF_SIZE / STEPS_ALONG / 2


def test_rays_past_the_cube_or_past_the_band_have_nothing_inside():
    origins = CENTRE + torch.tensor([[0.0, 0.0, -3.0]] * 4)
    aims = torch.tensor([[0.0, 2.0, 0.0], [0.9, 0.9, 0.0], [0.0, 0.0, -9.0], [0.0, 0.0, 0.0]])
    directions = F.normalize(CENTRE + aims - origins, dim=-1)
    samples = place(origins, directions, torch.full((4,), 0.5))
    assert samples.inside.any(dim=1).tolist() == [False, False, False, True]
    assert samples.deltas.sum(1)[:3].tolist() == [0, 0, 0]
    assert all(bool(t.isfinite().all()) for t in samples)


def test_a_ray_that_begins_inside_the_cube_looks_forward_only():
    origins, directions = CENTRE[None], torch.tensor([[0.0, 0.0, 1.0]])
    samples = place(origins, directions, torch.zeros(1))
    assert float(samples.distances.min()) >= 0
    assert float(samples.deltas.sum()) == pytest.approx(0.6, abs=HALF_SIZE / STEPS_ALONG)


def test_rays_along_an_axis_are_as_good_as_any():
    """A direction of 0 along an axis divides by nothing."""
    origins = CENTRE + torch.tensor([[0.0, 0.0, -3.0]])
    straight = place(origins, torch.tensor([[0.0, 0.0, 1.0]]), torch.zeros(1))
    nearly = F.normalize(torch.tensor([[1e-5, 1e-5, 1.0]]), dim=-1)
    torch.testing.assert_close(
        straight.deltas, place(origins, nearly, torch.zeros(1)).deltas, rtol=0, atol=1e-3
    )
    beside = place(origins + torch.tensor([2.0, 0, 0]), torch.tensor([[0.0, 0, 1]]), torch.zeros(1))
    assert not beside.inside.any() and not beside.deltas.any()


def test_most_samples_lie_near_the_surface_known_last():
    """Which is another one than the start's: a smaller ball in it."""
    found = distances_of(((0.05, 0.0, 0.0), 0.3))
    generator = torch.Generator().manual_seed(4)
    aims = CENTRE + 0.15 * (2 * torch.rand(100, 3, generator=generator) - 1)
    origins = CENTRE + 3 * F.normalize(torch.randn(100, 3, generator=generator), dim=-1)
    directions, jitter = F.normalize(aims - origins, dim=-1), torch.rand(100, generator=generator)

    def near(share):
        samples = place(origins, directions, jitter, known=found, share=share, count=32)
        points = origins[:, None] + directions[:, None] * samples.distances[..., None]
        off = (points - CENTRE - torch.tensor([0.05, 0, 0])).norm(dim=-1) - 0.3
        first = samples.distances < (3 - 0.05)  # the front, not the back
        return float(((off.abs() < 0.08) & first & samples.inside).float().sum(1).mean()) / 32

    assert near(0.75) > 0.7
    assert near(0.0) < 0.3


def test_gap_between_two_shells_is_skipped():
    """A ray through two balls: nothing is asked between them, and both are looked at."""
    origins = CENTRE + torch.tensor([[-3.0, 0.02, 0.01]])
    directions = torch.tensor([[1.0, 0.0, 0.0]])
    for jitter in (0.0, 0.3, 0.7):
        for share in (0.0, 0.75):
            samples = place(
                origins, directions, torch.tensor([jitter]), start=TWO_BALLS, count=40, share=share
            )
            x = (origins[0, 0] + samples.distances - CENTRE[0])[samples.inside]
            step = 2 * HALF_SIZE / STEPS_ALONG
            assert not bool((x.abs() < 0.15 - step).any())
            assert bool((x < 0).any()) and bool((x > 0).any())
            # each ball with the band around it is 0.6 long
            assert float(samples.deltas.sum()) == pytest.approx(1.2, abs=2 * step)


def test_jitter_moves_the_samples_over_one_section():
    origins, directions = CENTRE + torch.tensor([[-3.0, 0.0, 0.0]]), torch.tensor([[1.0, 0, 0]])
    at = [place(origins, directions, torch.tensor([j]), share=0.0) for j in (0.0, 0.25, 0.5)]
    section = float(at[0].deltas[0, 3])
    for later, sooner in ((at[0], at[1]), (at[1], at[2])):
        moved = later.distances[0, 2:-2] - sooner.distances[0, 2:-2]
        torch.testing.assert_close(moved, torch.full((12,), section / 4), rtol=0, atol=1e-4)


# the pixels


def views_with(masks, normals=None):
    count, height, width = masks.shape
    cameras = orbit_cameras(Orbit(num_views=count, elevation_deg=20.0), width, height)
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(count, height, width, 3, generator=generator)
    return Views(images, masks, cameras, normals=normals)


def some_masks(width=100, height=80):
    masks = torch.zeros(3, height, width)
    masks[0, 20:40, 30:50] = 1
    masks[1, 60:, 90:] = 0.3  # at the corner of the frame
    masks[2, 5, 7] = 1
    return masks


def pool_of(views, seed=0):
    return PixelPool(views, torch.Generator().manual_seed(seed))


def test_every_pixel_near_a_mask_comes_once_before_any_comes_again():
    masks = some_masks()
    pool = pool_of(views_with(masks))
    reach = math.ceil(MARGIN * 100)
    expected = torch.zeros(3, 80, 100, dtype=torch.bool)
    for v, y, x in torch.nonzero(masks).tolist():
        expected[v, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = True
    wanted = torch.nonzero(expected.flatten())[:, 0]
    assert torch.equal(pool.order.sort().values.long(), wanted)
    assert not torch.equal(pool.order.long(), wanted)  # in no order


def test_batches_go_round_the_pool():
    pool = pool_of(views_with(some_masks()))
    count, size = 97, len(pool.order)
    batches = -(-2 * size // count)
    seen = [pool.rays(torch.tensor([k]), count) for k in range(batches)]
    targets = torch.cat([torch.cat([r.colours, r.masks[:, None]], dim=-1) for r in seen])
    expected = pool.pictures[pool.order.long()]
    assert torch.equal(targets[: 2 * size], torch.cat([expected, expected]))
    jitter = torch.cat([r.jitter for r in seen])
    assert 0 <= float(jitter.min()) and float(jitter.max()) < 1
    counts = torch.histc(jitter, 10, 0, 1) / len(jitter)
    assert float((counts - 0.1).abs().max()) < 0.005  # evenly
    assert float((jitter[:size] - jitter[size : 2 * size]).abs().median()) > 0.01  # anew each time


def test_order_follows_the_generator():
    views = views_with(some_masks())
    first, again, other = pool_of(views), pool_of(views), pool_of(views, seed=1)
    assert torch.equal(first.order, again.order) and not torch.equal(first.order, other.order)


def test_rays_project_to_the_centres_of_their_pixels_and_carry_what_was_seen_there():
    views = views_with(some_masks())
    pool = pool_of(views)
    rays = pool.rays(torch.zeros(1, dtype=torch.int64), 200)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(200))
    flat = pool.order[:200].long()
    view, y, x = flat // 8000, flat % 8000 // 100, flat % 100
    pixels, depths = project_points(rays.origins + 1.7 * rays.directions, views.cameras)
    rows = torch.arange(200)
    centres = torch.stack([x, y], dim=-1) + 0.5
    torch.testing.assert_close(pixels[view, rows], centres, rtol=0, atol=1e-3)
    assert bool((depths[view, rows] > 0).all())
    torch.testing.assert_close(rays.origins, views.cameras.centres[view])
    assert torch.equal(rays.colours, views.images[view, y, x])
    assert torch.equal(rays.masks, views.masks[view, y, x])
    directions = F.normalize(camera_rays(views.cameras)[1][view, y, x], dim=-1)
    torch.testing.assert_close(rays.directions, directions, rtol=0, atol=1e-6)


def test_normals_of_camera_axes_come_in_world_axes():
    """A normal towards the camera is against the optical axis; unknown ones stay zero."""
    masks = some_masks()
    normals = torch.zeros(3, 80, 100, 3)
    normals[..., 2] = -1.0
    normals[1, :, :, :] = torch.tensor([0.0, -1.0, 0.0])  # up in the picture
    normals[2] = 0
    views = views_with(masks, normals)
    pool = pool_of(views)
    rays = pool.rays(torch.zeros(1, dtype=torch.int64), len(pool.order))
    view = pool.order.long() // 8000
    towards = -views.cameras.camera_to_world[0, :3, 2]
    up = -views.cameras.camera_to_world[1, :3, 1]
    assert float(up[1]) > 0.9
    expected = torch.stack([towards, up, torch.zeros(3)])[view]
    torch.testing.assert_close(rays.normals, expected, rtol=0, atol=1e-6)
    assert pool_of(views_with(masks)).rays(torch.zeros(1, dtype=torch.int64), 5).normals is None


@pytest.mark.parametrize("start", [BALL, TWO_BALLS], ids=["ball", "two balls"])
@pytest.mark.parametrize("share", [0.0, 0.75])
def test_no_section_with_a_length_is_left_out(start, share):
    """Not the last one either, nor one on both sides of a gap."""
    samples = place(*rays_at_cube(200), start=start, share=share)
    torch.testing.assert_close(
        (samples.deltas * samples.inside).sum(1), samples.deltas.sum(1), rtol=0, atol=2e-5
    )
