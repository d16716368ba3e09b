"""Views from folders, videos and data sets, and the round trip through files."""

import errno
import os

import pytest
import torch
from PIL import Image

from v3d_core.cameras import SV3D_ORBIT, V3D_ORBIT, Orbit, orbit_cameras
from v3d_core.formats.atomic import OutputError
from v3d_core.formats.video import write_video
from v3d_core.formats.views import has_split, load_views, save_views
from v3d_core.images import composite, to_uint8
from v3d_core.structures import Views


def ball_views(count: int = 18, width: int = 32, height: int = 32, names: bool = True) -> Views:
    """Soft discs whose brightness tells the view."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    mask = (10 - torch.hypot(x - width / 2, y - height / 2)).clamp(0, 1)
    shade = torch.arange(count)[:, None, None, None] / (2 * count)
    images = (shade + torch.tensor([0.1, 0.0, 0.3])).expand(count, height, width, 3)
    cameras = orbit_cameras(Orbit(num_views=count), width, height)
    stems = tuple(f"shot-{i}" for i in range(count)) if names else ()
    return Views(images, mask.expand(count, height, width), cameras, stems)


def save_pictures(folder, views: Views, alpha: bool = False, suffix: str = ".png"):
    folder.mkdir(parents=True, exist_ok=True)
    pictures = composite(views.images, views.masks)
    if alpha:
        pictures = torch.cat([views.images, views.masks[..., None]], dim=-1)
    for index, picture in enumerate(to_uint8(pictures).numpy()):
        Image.fromarray(picture).save(folder / f"f_{index}{suffix}")
    return folder


def save_masks(folder, masks: torch.Tensor):
    folder.mkdir()
    for index, mask in enumerate(to_uint8(masks).numpy()):
        Image.fromarray(mask).save(folder / f"m_{index}.png")
    return folder


@pytest.mark.parametrize("names", [True, False])
def test_saved_views_are_loaded_back_to_a_255th(tmp_path, names):
    views = ball_views(5, 40, 24, names)
    save_views(tmp_path, views)
    loaded = load_views(tmp_path)
    assert loaded.views.names == (views.names or tuple(f"view_00{i}" for i in range(5)))
    assert loaded.warnings == ()
    torch.testing.assert_close(loaded.views.masks, views.masks, atol=0.5 / 255 + 1e-6, rtol=0)
    torch.testing.assert_close(loaded.views.images, views.images, atol=0.5 / 255 + 1e-6, rtol=0)
    assert torch.equal(loaded.views.cameras.camera_to_world, views.cameras.camera_to_world)
    assert torch.equal(loaded.views.cameras.K, views.cameras.K)
    again = tmp_path / "again"
    save_views(again, loaded.views)
    for name in os.listdir(again):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


def test_an_rgba_folder_gets_the_v3d_orbit_in_natural_order(tmp_path):
    views = ball_views()
    loaded = load_views(save_pictures(tmp_path / "frames", views, alpha=True))
    assert loaded.views.names[:3] == ("f_0", "f_1", "f_2") and loaded.warnings == ()
    torch.testing.assert_close(loaded.views.images, views.images, atol=0.002, rtol=0)
    expected = orbit_cameras(V3D_ORBIT, 32, 32)
    assert torch.equal(loaded.views.cameras.camera_to_world, expected.camera_to_world)


def test_white_backgrounds_are_keyed_with_a_warning(tmp_path):
    views = ball_views()
    loaded = load_views(save_pictures(tmp_path / "frames", views))
    assert "keyed the flat background #ffffff" in loaded.warnings[0]
    assert float((loaded.views.masks - views.masks).abs().max()) < 0.1


@pytest.mark.parametrize("kind", ["folder", "list", "tensor"])
def test_given_masks_are_used(tmp_path, kind):
    views = ball_views()
    frames = save_pictures(tmp_path / "frames", views)
    folder = save_masks(tmp_path / "masks", views.masks)
    files = [folder / f"m_{i}.png" for i in range(18)]
    masks = {"folder": folder, "list": files, "tensor": views.masks}[kind]
    loaded = load_views(frames, masks=masks)
    torch.testing.assert_close(loaded.views.masks, views.masks, atol=0.002, rtol=0)
    assert loaded.warnings == ()


def test_a_video_is_an_orbit_too(tmp_path):
    pytest.importorskip("av")
    views = ball_views(21, 64, 64)
    write_video(tmp_path / "orbit.mp4", composite(views.images, views.masks), fps=7)
    loaded = load_views(tmp_path / "orbit.mp4", orbit=SV3D_ORBIT)
    assert len(loaded.views) == 21 and loaded.views.names[20] == "frame_0020"
    overlap = (loaded.views.masks > 0.5) == (views.masks > 0.5)
    assert float(overlap.float().mean()) > 0.98


def test_frames_spread_evenly_or_by_number(tmp_path):
    views = ball_views(36)
    frames = save_pictures(tmp_path / "frames", views, alpha=True)
    loaded = load_views(frames, frames=18)
    assert loaded.views.names == tuple(f"f_{2 * i}" for i in range(18))
    three = load_views(frames, frames=[5, 0, 7], orbit=Orbit(num_views=3))
    assert three.views.names == ("f_5", "f_0", "f_7")
    masks = save_masks(tmp_path / "masks", views.masks)
    assert len(load_views(save_pictures(tmp_path / "b", views), frames=18, masks=masks).views) == 18
    save_views(tmp_path / "set", views)
    subset = load_views(tmp_path / "set", frames=4).views
    assert subset.names == ("shot-0", "shot-9", "shot-18", "shot-27")
    assert torch.equal(subset.cameras.camera_to_world[3], views.cameras.camera_to_world[27])
    for wrong in (37, 0, [36], []):
        with pytest.raises(ValueError, match="there are 36"):
            load_views(frames, frames=wrong)


def test_a_wrong_number_of_frames_names_both_and_the_option(tmp_path):
    frames = save_pictures(tmp_path / "frames", ball_views(20), alpha=True)
    with pytest.raises(ValueError, match=r"20 pictures but 18 cameras; .*\(frames=18\)"):
        load_views(frames)


def test_non_square_pictures_need_an_orbit_of_their_own(tmp_path):
    frames = save_pictures(tmp_path / "frames", ball_views(18, 48, 32), alpha=True)
    with pytest.raises(ValueError, match="are 48x32 but the orbit preset 'v3d' makes square ones"):
        load_views(frames)
    loaded = load_views(frames, orbit=Orbit(fov_y_deg=50))
    assert (loaded.views.cameras.width, loaded.views.cameras.height) == (48, 32)
    assert loaded.views.cameras.K[0, 0, 0] == loaded.views.cameras.K[0, 1, 1]
    assert len(load_views(frames, cameras=ball_views(18, 48, 32).cameras).views) == 18


def test_splits_and_their_absence(tmp_path):
    save_views(tmp_path / "orbit_train", ball_views(4))
    save_views(tmp_path / "orbit_test", ball_views(1))
    for source in (tmp_path, tmp_path / "orbit_train"):
        assert has_split(source, "test") and not has_split(source, "val")
        assert len(load_views(source).views) == 4
        assert len(load_views(source, split="test").views) == 1
        with pytest.raises(ValueError, match=r"no transforms_val\.json"):
            load_views(source, split="val")


def test_a_single_frame_is_refused(tmp_path):
    frames = save_pictures(tmp_path / "frames", ball_views(1), alpha=True)
    with pytest.raises(ValueError, match="1 view is not enough, at least 2"):
        load_views(frames)


def test_mixed_sizes_name_the_files(tmp_path):
    frames = save_pictures(tmp_path / "frames", ball_views(), alpha=True)
    Image.new("RGB", (16, 16)).save(frames / "f_3.png")
    with pytest.raises(ValueError, match=r"f_0\.png is 32x32, .*f_3\.png is 16x16"):
        load_views(frames)


def test_sources_that_are_nothing_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent: no such file or folder"):
        load_views(tmp_path / "absent")
    with pytest.raises(ValueError, match="no pictures"):
        load_views(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"notes\.txt: not a folder, a transforms \.json or a vid"):
        load_views(tmp_path / "notes.txt")


def test_wrong_masks_are_refused_with_both_numbers(tmp_path):
    views = ball_views()
    frames = save_pictures(tmp_path / "frames", views)
    with pytest.raises(ValueError, match="18 pictures but 17 masks"):
        load_views(frames, masks=views.masks[:17])
    with pytest.raises(ValueError, match="are 32x32 but the masks are 16x16"):
        load_views(frames, masks=torch.ones(18, 16, 16))
    empty = views.masks.clone()
    empty[4] = 0
    with pytest.raises(ValueError, match=r"empty mask in view 4 \(f_4\)"):
        load_views(frames, masks=save_masks(tmp_path / "masks", empty))


def test_names_that_are_no_file_names_are_refused(tmp_path):
    views = ball_views(2)
    for names in (("../a", "b"), ("", "b"), ("a/b", "c"), (".a", "b"), ("a", "A")):
        with pytest.raises(ValueError, match="save_views"):
            save_views(tmp_path, Views(views.images, views.masks, views.cameras, names))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_early_end_of_saving_leaves_nothing(tmp_path, monkeypatch, interruption):
    real, calls = Image.Image.save, []

    def save_some(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise interruption
        real(self, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", save_some)
    with pytest.raises((KeyboardInterrupt, OutputError)):
        save_views(tmp_path / "views", ball_views(5))
    assert os.listdir(tmp_path) == []
