"""Views from pictures: where the mask comes from, and every refusal with its numbers."""

import pytest
import torch

from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.images import composite
from v3d_core.pose_views import pose_views

SIZE = 48


def cameras(count: int = 3, size: int = SIZE):
    return orbit_cameras(Orbit(num_views=count), size, size)


def square_masks(count: int = 3) -> torch.Tensor:
    masks = torch.zeros(count, SIZE, SIZE)
    masks[:, 12:36, 12:36] = 1
    return masks


def red_pictures(count: int = 3) -> torch.Tensor:
    return torch.tensor([0.6, 0.1, 0.2]).expand(count, SIZE, SIZE, 3)


def test_alpha_is_the_mask_and_colours_stay_straight():
    rgba = torch.cat([red_pictures(), square_masks()[..., None] * 0.75], dim=-1)
    loaded = pose_views(rgba, cameras(), names=("a", "b", "c"))
    assert torch.equal(loaded.views.masks, square_masks() * 0.75)
    assert torch.equal(loaded.views.images, red_pictures())
    assert loaded.views.names == ("a", "b", "c") and loaded.warnings == ()


def test_alpha_goes_before_masks_and_says_so():
    rgba = torch.cat([red_pictures(), square_masks()[..., None]], dim=-1)
    loaded = pose_views(rgba, cameras(), masks=torch.ones(3, SIZE, SIZE))
    assert torch.equal(loaded.views.masks, square_masks())
    assert "given masks are not used" in loaded.warnings[0]


def test_opaque_alpha_says_nothing_so_masks_are_used():
    rgba = torch.cat([red_pictures(), torch.ones(3, SIZE, SIZE, 1)], dim=-1)
    loaded = pose_views(rgba, cameras(), masks=square_masks())
    assert torch.equal(loaded.views.masks, square_masks()) and loaded.warnings == ()


def test_without_alpha_and_masks_the_background_is_keyed_with_a_warning():
    loaded = pose_views(composite(red_pictures(), square_masks()), cameras())
    torch.testing.assert_close(loaded.views.masks, square_masks())
    assert "keyed the flat background #ffffff" in loaded.warnings[0]


def test_half_precision_pictures_are_accepted():
    loaded = pose_views(red_pictures().half(), cameras(), masks=square_masks())
    assert loaded.views.masks.dtype == torch.float16


def test_a_wrong_number_of_pictures_names_both_numbers_and_the_remedy():
    with pytest.raises(ValueError, match=r"3 pictures but 18 cameras; .*number of views to 3$"):
        pose_views(red_pictures(), cameras(18), square_masks())
    with pytest.raises(ValueError, match="3 pictures but 2 masks"):
        pose_views(red_pictures(), cameras(), square_masks(2))


def test_wrong_sizes_name_both_sizes():
    with pytest.raises(ValueError, match="pictures are 48x48 but the cameras are made for 64x64"):
        pose_views(red_pictures(), cameras(size=64), square_masks())
    with pytest.raises(ValueError, match="pictures are 48x48 but the masks are 40x20"):
        pose_views(red_pictures(), cameras(), torch.ones(3, 20, 40))
    with pytest.raises(ValueError, match=r"\[V, H, W, 3 or 4\], got \[3, 48, 48, 2\]"):
        pose_views(torch.zeros(3, SIZE, SIZE, 2), cameras())
    with pytest.raises(ValueError, match=r"masks: expected \[V, H, W\]"):
        pose_views(red_pictures(), cameras(), torch.ones(3, SIZE, SIZE, 1))


def test_a_single_picture_is_refused_unless_asked_for():
    with pytest.raises(ValueError, match="1 view is not enough, at least 2 are needed"):
        pose_views(red_pictures(1), cameras(1), square_masks(1))
    assert len(pose_views(red_pictures(1), cameras(1), square_masks(1), min_views=1).views) == 1


def test_nan_pixels_name_the_view():
    pictures = red_pictures().clone()
    pictures[1, 5, 5, 0] = float("nan")
    pictures[1, 5, 6] = float("inf")
    with pytest.raises(ValueError, match=r"view 1 \(b\) has 4 NaN or infinite values"):
        pose_views(pictures, cameras(), square_masks(), ("a", "b", "c"))
    masks = square_masks()
    masks[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="masks contain NaN"):
        pose_views(red_pictures(), cameras(), masks)


def test_empty_masks_name_the_views():
    masks = square_masks()
    masks[1:] = 0
    with pytest.raises(ValueError, match=r"empty mask in view 1 \(b\), 2 \(c\): .*invert them"):
        pose_views(red_pictures(), cameras(), masks, ("a", "b", "c"))
    with pytest.raises(ValueError, match="empty mask in view 1, 2"):
        pose_views(red_pictures(), cameras(), masks)


def test_full_masks_are_refused_when_all_are_and_warned_of_when_some_are():
    with pytest.raises(ValueError, match=r"all 3 masks are full.*Remove the background"):
        pose_views(red_pictures(), cameras(), torch.ones(3, SIZE, SIZE))
    masks = square_masks()
    masks[2] = 1
    loaded = pose_views(red_pictures(), cameras(), masks)
    assert loaded.warnings == ("The mask of view 2 is full: every pixel counts as object.",)
