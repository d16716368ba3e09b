"""Compositing, resampling and 8-bit conversion of pictures."""

import pytest
import torch

from v3d_core.cameras import Orbit, orbit_cameras, project_points
from v3d_core.images import (
    compare_side_by_side,
    composite,
    contact_sheet,
    depth_picture,
    from_uint8,
    premultiply,
    resize_views,
    to_uint8,
    unpremultiply,
)
from v3d_core.structures import Views


def random_views(count: int = 2, width: int = 24, height: int = 24, normals: bool = False) -> Views:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, height, width, 3, generator=generator)
    masks = torch.rand(count, height, width, generator=generator)
    cameras = orbit_cameras(Orbit(num_views=count), width, height)
    directions = torch.nn.functional.normalize(images - 0.5, dim=-1) if normals else None
    return Views(images, masks, cameras, ("a", "b")[:count], directions)


def test_composite_mixes_with_the_background_by_coverage():
    image = torch.tensor([[[0.2, 0.4, 0.6]]])
    mask = torch.tensor([[0.25]])
    expected = torch.tensor([[[0.2, 0.325, 0.9]]])
    torch.testing.assert_close(composite(image, mask, (0.2, 0.3, 1.0)), expected)


def test_unpremultiply_undoes_premultiply_where_there_is_coverage():
    views = random_views()
    back = unpremultiply(premultiply(views.images, views.masks), views.masks)
    torch.testing.assert_close(back, views.images)
    assert unpremultiply(torch.zeros(1, 1, 3), torch.zeros(1, 1)).abs().max() == 0


def test_bytes_survive_the_round_trip_and_outside_values_are_clamped():
    every_byte = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(every_byte)), every_byte)
    assert to_uint8(torch.tensor([-0.5, 1.5, 0.5])).tolist() == [0, 255, 128]


def test_shrinking_by_a_whole_factor_averages_premultiplied_blocks():
    views = random_views()
    small = resize_views(views, 8, 8)
    blocks = views.masks.reshape(2, 8, 3, 8, 3).mean((2, 4))
    colours = premultiply(views.images, views.masks).reshape(2, 8, 3, 8, 3, 3).mean((2, 4))
    torch.testing.assert_close(small.masks, blocks)
    torch.testing.assert_close(small.images, colours / blocks[..., None])


@pytest.mark.parametrize("size", [(17, 11), (24, 7), (5, 24)])
def test_shrinking_by_any_factor_keeps_the_mean(size):
    views = random_views()
    small = resize_views(views, *size)
    torch.testing.assert_close(small.masks.mean(), views.masks.mean())


def test_enlarging_is_bicubic_like_torch():
    views = random_views()
    large = resize_views(views, 60, 36)
    expected = torch.nn.functional.interpolate(
        views.masks[:, None], size=(36, 60), mode="bicubic", antialias=True
    )[:, 0]
    inner = (slice(None), slice(6, -6), slice(6, -6))  # torch treats the border differently
    torch.testing.assert_close(large.masks[inner], expected.clamp(0, 1)[inner], atol=1e-4, rtol=0)
    assert large.images.min() >= 0 and large.images.max() <= 1


def test_the_background_colour_never_bleeds_into_the_object():
    views = random_views()
    masks = torch.zeros_like(views.masks)
    masks[:, 5:18, 7:19] = 1
    images = torch.where(masks[..., None] > 0, 0.25, 1.0).expand_as(views.images)
    views = Views(images, masks, views.cameras)
    for size in ((10, 10), (17, 13)):
        resized = resize_views(views, *size)
        torch.testing.assert_close(
            resized.images[resized.masks > 0.01],
            torch.full_like(resized.images[resized.masks > 0.01], 0.25),
        )


def test_cameras_follow_so_that_a_point_stays_at_its_share_of_the_picture():
    views = random_views(width=24, height=12)
    resized = resize_views(views, 36, 6)
    points = torch.tensor([[0.1, 0.2, -0.3]])
    before, _ = project_points(points, views.cameras)
    after, _ = project_points(points, resized.cameras)
    torch.testing.assert_close(after, before * torch.tensor([1.5, 0.5]))
    assert resized.names == views.names


def test_normals_stay_unit_or_zero():
    resized = resize_views(random_views(normals=True), 12, 12)
    length = resized.normals.norm(dim=-1)
    assert bool(((length - 1).abs() < 1e-5).logical_or(length == 0).all())


def test_the_same_size_costs_nothing_and_an_empty_one_is_refused():
    views = random_views()
    assert resize_views(views, 24, 24) is views
    with pytest.raises(ValueError, match="0x24"):
        resize_views(views, 0, 24)


def test_a_contact_sheet_places_pictures_row_by_row_on_white():
    images = torch.arange(5.0)[:, None, None, None].expand(5, 4, 6, 3) / 10
    sheet = contact_sheet(images, columns=3, gap=2)
    assert sheet.shape == (10, 22, 3)
    for index, (top, left) in enumerate([(0, 0), (0, 8), (0, 16), (6, 0), (6, 8)]):
        assert bool((sheet[top : top + 4, left : left + 6] == index / 10).all())
    assert bool((sheet[4:6] == 1).all()) and bool((sheet[6:, 16:] == 1).all())
    assert contact_sheet(images, columns=99, gap=0).shape == (4, 30, 3)
    with pytest.raises(ValueError, match="no pictures"):
        contact_sheet(images[:0])


def test_a_comparison_shows_both_pictures_and_the_amplified_difference():
    first, second = torch.full((2, 3, 4, 3), 0.5), torch.full((2, 3, 4, 3), 0.6)
    second[0, 0, 0] = 1.0
    shown = compare_side_by_side(first, second, gain=4.0)
    assert shown.shape == (2, 3, 12, 3)
    assert torch.equal(shown[:, :, :4], first) and torch.equal(shown[:, :, 4:8], second)
    torch.testing.assert_close(shown[1, :, 8:], torch.full((3, 4, 3), 0.4))
    assert float(shown[0, 0, 8].min()) == 1.0  # clamped


def test_a_depth_picture_is_white_near_and_black_far_and_where_nothing_is():
    depths = torch.tensor([[[1.0, 2.0], [3.0, 0.0]], [[0.0, 0.0], [1.0, 1.5]]])
    grey = depth_picture(depths)
    assert torch.equal(grey[..., 0], grey[..., 2])
    expected = torch.tensor([[[1.0, 0.5], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.75]]])
    torch.testing.assert_close(grey[..., 0], expected)
    assert float(depth_picture(torch.zeros(1, 2, 2)).max()) == 0
    flat = depth_picture(torch.tensor([[[2.0, 0.0]]]))
    assert flat[0, 0, :, 0].tolist() == [1.0, 0.0]
