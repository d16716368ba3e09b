"""The visual hull of shapes whose silhouettes are known."""

import dataclasses
import math

import pytest
import torch

from v3d_core import visual_hull
from v3d_core.cameras import V3D_ORBIT, Orbit, orbit_cameras, project_points
from v3d_core.demo_object import demo_robot
from v3d_core.procedural import render_object
from v3d_core.structures import Views
from v3d_core.visual_hull import (
    INSIDE_MASK,
    VisualHull,
    carve_visual_hull,
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


def count_misses(points, views):
    """Views that see a point inside their frame but outside their mask, by looking at all pairs.

    Also whether rounding may decide: a coverage near `INSIDE_MASK`, a pixel near the frame's edge
    or a point near the camera's plane.
    """
    pixels, depth = project_points(points, views.cameras)
    size = pixels.new_tensor([views.cameras.width, views.cameras.height])
    in_frame = (depth > 0) & ((pixels > 0) & (pixels < size)).all(-1)
    coverage = sample_pictures(views.masks[..., None], pixels)[..., 0]
    misses = (in_frame & (coverage < INSIDE_MASK)).sum(0)
    near = (torch.minimum(pixels.abs(), (pixels - size).abs()) < 1e-3).any(-1) | (
        depth.abs() < 1e-4
    )
    return misses, (near | ((coverage - INSIDE_MASK).abs() < 1e-3)).any(0)


def carve_by_brute_force(views, resolution, centre, half_size):
    """Misses of all voxels, and whether rounding may decide. [R, R, R] each"""
    line = (torch.arange(resolution, dtype=centre.dtype) + 0.5) * (2 * half_size / resolution)
    cube = torch.cartesian_prod(*[line - half_size] * 3) + centre
    return [part.view(resolution, resolution, resolution) for part in count_misses(cube, views)]


def in_double(views):
    cameras = views.cameras.to("cpu", torch.float64)
    return Views(views.images.double(), views.masks.double(), cameras)


def smooth_noise_views(width, height, orbit, seed=0):
    """Masks of soft blobs: every value between 0 and 1, outlines of all kinds."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(orbit.num_views, 1, height, width, generator=generator)
    blurred = torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)[:, 0]
    masks = ((blurred - 0.45) * 8 + 0.5).clamp(0, 1)
    return Views(torch.zeros(*masks.shape, 3), masks, orbit_cameras(orbit, width, height))


def inverted(views):
    return dataclasses.replace(views, masks=1 - views.masks)


def shifted_principal_point(views):
    K = views.cameras.K.clone()
    K[:, 0, 2] += 7.3
    K[:, 1, 2] -= 4.1
    return dataclasses.replace(views, cameras=dataclasses.replace(views.cameras, K=K))


@pytest.mark.parametrize(
    ("views", "resolution", "centre", "half_size"),
    [
        pytest.param(disc_views(0.5, 61, Orbit(7, elevation_deg=13)), 40, None, None, id="sphere"),
        pytest.param(disc_views(0.2, 300, Orbit(5)), 12, None, None, id="cells of many pixels"),
        pytest.param(disc_views(0.4, 16, Orbit(5)), 61, None, None, id="voxels below a pixel"),
        pytest.param(smooth_noise_views(70, 41, Orbit(4)), 37, None, None, id="noise, not square"),
        pytest.param(
            smooth_noise_views(50, 50, Orbit(6, elevation_deg=20), 1),
            33, (0.2, -0.1, 0.15), 3.1, id="cameras inside the cube",
        ),
        pytest.param(
            disc_views(1.2, 40, Orbit(2, elevation_deg=15, fov_y_deg=164)),
            46, (0.1, 0.2, -0.15), 3.0, id="nearly half a world in view",
        ),
        pytest.param(
            inverted(disc_views(1.2, 40, Orbit(2, elevation_deg=15, fov_y_deg=164))),
            46, (0.1, 0.2, -0.15), 3.0, id="a hole in nearly half a world",
        ),
        pytest.param(
            shifted_principal_point(disc_views(0.4, 48, Orbit(6, elevation_deg=-20))),
            31, (0.1, 0.05, -0.02), 1.2, id="principal point off centre",
        ),
        pytest.param(disc_views(0.7, 1, Orbit(3)), 9, None, None, id="one pixel"),
        pytest.param(smooth_noise_views(1, 30, Orbit(3), 2), 14, None, None, id="one column"),
        pytest.param(smooth_noise_views(30, 1, Orbit(3), 3), 14, None, None, id="one row"),
    ],
)  # fmt: skip
def test_every_voxel_is_as_by_brute_force(views, resolution, centre, half_size):
    """In double precision to the last voxel; in single precision where rounding cannot decide."""
    double = in_double(views)
    seen_centre, seen_half_size = seen_volume(double.cameras)
    # off the symmetry planes, or coverages of exactly one half abound
    centre = seen_centre + 0.0123 if centre is None else torch.tensor(centre, dtype=torch.float64)
    half_size = 0.97 * seen_half_size if half_size is None else half_size
    misses, ambiguous = carve_by_brute_force(double, resolution, centre, half_size)
    assert ambiguous.float().mean() < 0.1
    for tolerated in (0, 1, 2):
        truth = misses <= tolerated
        assert bool(truth.any())
        options = {"half_size": half_size, "tolerated_misses": tolerated}
        exact = carve_visual_hull(double, resolution, centre=centre, **options)
        assert torch.equal(exact.occupied, truth)
        single = carve_visual_hull(views, resolution, centre=centre.float(), **options)
        assert not bool(((single.occupied != truth) & ~ambiguous).any())


def test_hull_of_an_object_with_thin_parts_is_as_by_brute_force():
    cameras = orbit_cameras(Orbit(num_views=5, elevation_deg=8), 80, 80)
    views = render_object(cameras, demo_robot(), supersample=1)
    hull = tight_visual_hull(views, 60)
    misses, ambiguous = carve_by_brute_force(
        in_double(views), 60, hull.centre.double(), hull.half_size
    )
    differ = hull.occupied != (misses == 0)
    assert not bool((differ & ~ambiguous).any()) and int(differ.sum()) <= 10


def test_chunks_change_nothing(monkeypatch):
    views = disc_views(0.5, size=48, orbit=Orbit(7, elevation_deg=10), centre=(0.1, 0.0, 0.05))
    whole = carve_visual_hull(views, 30)
    for chunk in (1, 1000, 5000):
        monkeypatch.setattr(visual_hull, "CHUNK", chunk)
        monkeypatch.setattr(visual_hull, "CHUNK_ON_CUDA", chunk)
        assert torch.equal(carve_visual_hull(views, 30).occupied, whole.occupied)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_carves_the_same_within_its_memory():
    views = disc_views(0.5, size=1024, orbit=Orbit(100, elevation_deg=10), centre=(0.1, 0.0, 0.05))
    on_cuda = Views(views.images.cuda(), views.masks.cuda(), views.cameras.to("cuda"))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    hull = tight_visual_hull(on_cuda, 128)
    assert torch.cuda.max_memory_allocated() - before < 300e6
    on_cpu = tight_visual_hull(views, 128)
    assert int((hull.occupied.cpu() ^ on_cpu.occupied).sum()) <= 20


def test_progress_counts_up_and_can_cancel():
    class Cancelled(BaseException):
        pass

    told = []

    def progress(step, total, preview=None, text=""):
        told.append((step, total))
        if stop and step == stop:
            raise Cancelled

    views, stop = disc_views(0.6, size=128), 0
    carve_visual_hull(views, 128, progress=progress)
    assert len(told) >= 4
    assert told == [(step, len(told)) for step in range(1, len(told) + 1)]
    told.clear()
    stop = 2
    with pytest.raises(Cancelled):
        carve_visual_hull(views, 128, progress=progress)
    assert [step for step, _ in told] == [1, 2]


def test_what_no_frame_shows_is_kept():
    views = disc_views(0.3, size=64, orbit=Orbit(2, azimuth_step_deg=180.0))
    hull = carve_visual_hull(views, 16, centre=torch.tensor([5.0, 0.0, 0.0]), half_size=0.5)
    assert bool(hull.occupied.all())  # 5 to the side of cameras that look along the axis


def test_surface_voxels_are_those_with_an_empty_neighbour():
    occupied = torch.zeros(4, 4, 4, dtype=torch.bool)
    occupied[:3, :3, :3] = True
    surface = {
        tuple(v) for v in VisualHull(occupied, torch.zeros(3), 1.0).surface_voxels().tolist()
    }
    # the cube lies against the volume's border, beyond which is nothing
    assert len(surface) == 26 and (1, 1, 1) not in surface


def test_samples_at_pixel_centres_are_the_pixels():
    picture = torch.rand(2, 5, 7, 3, generator=torch.Generator().manual_seed(0))
    y, x = torch.meshgrid(torch.arange(5) + 0.5, torch.arange(7) + 0.5, indexing="ij")
    pixels = torch.stack([x, y], dim=-1).reshape(1, -1, 2).expand(2, -1, -1)
    torch.testing.assert_close(sample_pictures(picture, pixels), picture.reshape(2, -1, 3))
