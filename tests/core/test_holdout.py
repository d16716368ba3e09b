"""Every Nth view is set aside, the first never, and what is left can be fitted."""

import pytest
import torch

from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.holdout import hold_out_every
from v3d_core.structures import Views


def numbered_views(count):
    images = torch.arange(count).float()[:, None, None, None].expand(-1, 4, 4, 3) / 100
    names = tuple(f"view {index}" for index in range(count))
    cameras = orbit_cameras(Orbit(num_views=count), 4, 4)
    return Views(images, torch.ones(count, 4, 4), cameras, names)


@pytest.mark.parametrize(
    ("count", "every", "held"), [(18, 6, [5, 11, 17]), (18, 10, [9]), (5, 2, [1, 3]), (3, 3, [2])]
)
def test_every_nth_view_is_held_out_with_its_camera_and_name(count, every, held):
    views = numbered_views(count)
    fitted, test = hold_out_every(views, every)
    assert test.names == tuple(f"view {index}" for index in held)
    assert torch.equal(test.cameras.camera_to_world, views.cameras.camera_to_world[held])
    assert fitted.names[0] == "view 0"
    assert sorted(fitted.names + test.names) == sorted(views.names)


def test_zero_holds_nothing_out():
    views = numbered_views(4)
    assert hold_out_every(views, 0) == (views, None)


@pytest.mark.parametrize(
    ("count", "every", "message"),
    [
        (6, 1, "every 1. of 6 views leaves 0 to fit"),
        (2, 2, "every 2. of 2 views leaves 1 to fit"),
        (6, 7, "no 7. view to hold out among 6; choose 2 to 6"),
        (6, -1, "got -1"),
    ],
)
def test_what_leaves_nothing_to_fit_or_to_score_is_refused(count, every, message):
    with pytest.raises(ValueError, match=message):
        hold_out_every(numbered_views(count), every)
