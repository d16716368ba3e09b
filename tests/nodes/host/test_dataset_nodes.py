"""V3D Load Views and V3D Save Views keep inside the host's folders and notice changed files."""

import pytest
import torch
from PIL import Image
from scenes import orbit_frames, pack

SIZE, VIEWS = 48, 6


@pytest.fixture(autouse=True)
def inference_mode():
    """Nodes always run in it."""
    with torch.inference_mode():
        yield


def write_frames(folder, count=VIEWS):
    folder.mkdir(parents=True)
    colours, _, _ = orbit_frames(VIEWS, SIZE)
    for index, frame in enumerate(colours[:count]):
        pixels = (frame * 255).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"frame_{index}.png")


def load(folder, cameras=None, split="train"):
    node = pack("nodes.datasets").V3DLoadViews
    return node.execute(folder=folder, split=split, cameras=cameras).args


def save(views, prefix="v3d/test", colmap=False):
    node = pack("nodes.datasets").V3DSaveViews
    return node.execute(views=views, filename_prefix=prefix, colmap=colmap)


SHIPPED = ["demo orbit (shipped)", "demo picture (shipped)"]


def demo_views():
    return load("demo orbit (shipped)")[0]


def test_the_demo_is_18_views_with_images_that_are_white_outside_the_masks():
    views, images, masks, cameras = load("demo orbit (shipped)")
    assert len(views) == len(cameras) == 18
    assert images.shape[:3] == masks.shape
    assert bool((images[masks == 0] == 1).all())


def test_plain_frames_take_the_connected_cameras_in_their_own_size(host_folders):
    write_frames(host_folders / "input" / "set" / "frames")
    cameras = pack("v3d_core.cameras").resize_cameras(orbit_frames(VIEWS, SIZE)[2], 512, 512)
    views = load("set/frames", cameras)[0]
    assert (views.cameras.width, views.cameras.height) == (SIZE, SIZE)
    torch.testing.assert_close(views.cameras.K, orbit_frames(VIEWS, SIZE)[2].K)
    with pytest.raises(ValueError, match=r"^V3D Load Views: .*6 pictures but 18 cameras"):
        load("set/frames")
    with pytest.raises(ValueError, match=r"^V3D Load Views: 6 images but 3 cameras"):
        load("set/frames", cameras[:3])


def test_choices_are_folders_with_frames_in_input_and_saved_views_in_output(host_folders):
    write_frames(host_folders / "input" / "a" / "b")
    write_frames(host_folders / "input" / "single", count=1)
    write_frames(host_folders / "input" / ".hidden")
    write_frames(host_folders / "output" / "pictures")
    (host_folders / "input" / "empty").mkdir()
    name = save(demo_views()).args[0]
    found = pack("nodes.paths").view_folders()
    assert found == [*SHIPPED, "a/b", name]


def test_a_folder_that_may_not_be_read_is_left_out_of_the_choices(host_folders, monkeypatch):
    write_frames(host_folders / "input" / "locked")
    write_frames(host_folders / "input" / "open")
    paths = pack("nodes.paths")
    scandir = paths.os.scandir

    def refusing(folder):
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(paths.os, "scandir", refusing)
    assert paths.view_folders() == [*SHIPPED, "open"]


def test_saved_views_come_back_the_same_and_numbers_count_up(host_folders):
    views = demo_views()
    first, second = save(views).args[0], save(views).args[0]
    assert (first, second) == ("v3d/test_00001_ [output]", "v3d/test_00002_ [output]")
    back = load(second)[0]
    inside = views.masks > 0
    torch.testing.assert_close(back.images[inside], views.images[inside], atol=1 / 255, rtol=0)
    torch.testing.assert_close(back.masks, views.masks, atol=1 / 255, rtol=0)
    torch.testing.assert_close(back.cameras.camera_to_world, views.cameras.camera_to_world)
    torch.testing.assert_close(back.cameras.K, views.cameras.K)
    assert back.names == views.names


def test_a_folder_or_file_that_is_not_there_is_no_warning_of_the_host(host_folders):
    """It asks for the fingerprint of every node, also of those that do not run."""
    reasons = [
        pack("nodes.datasets").V3DLoadViews.fingerprint_inputs(folder="gone", split="train"),
        pack("nodes.neus").V3DLoadSDF.fingerprint_inputs(file=None),
        pack("nodes.models").V3DLoadModel.fingerprint_inputs("gone.ckpt", "auto", "auto"),
    ]
    told = ("there is no folder", "no file is chosen", "")
    assert all(isinstance(r, str) and r.startswith(t) for r, t in zip(reasons, told, strict=True))
    with pytest.raises(ValueError, match="V3D Load SDF: no file is chosen"):
        pack("nodes.neus").V3DLoadSDF.execute(file=None)


def test_a_changed_frame_changes_the_fingerprint(host_folders):
    write_frames(host_folders / "input" / "frames")
    fingerprint = pack("nodes.datasets").V3DLoadViews.fingerprint_inputs
    before = fingerprint(folder="frames", split="train")
    assert before == fingerprint(folder="frames", split="train")
    Image.new("RGB", (SIZE, SIZE), "red").save(host_folders / "input" / "frames" / "frame_3.png")
    assert before != fingerprint(folder="frames", split="train")


@pytest.mark.parametrize("folder", ["..", "../output", "/etc", "a/../../x", "../input [output]"])
def test_folders_outside_are_refused(folder, host_folders):
    with pytest.raises(ValueError, match=r"^V3D Load Views: the folder .* lies outside"):
        load(folder)


def test_a_folder_that_is_gone_is_named(host_folders):
    with pytest.raises(ValueError, match=r"^V3D Load Views: there is no folder .*gone"):
        load("gone")


@pytest.mark.parametrize("prefix", ["../evil", "v3d/../../evil", "/tmp/evil", ".."])
def test_saving_outside_the_output_folder_is_refused(prefix, host_folders):
    with pytest.raises(ValueError, match=r"^V3D Save Views: .*leads out of the output folder"):
        save(demo_views(), prefix)
    assert not list(host_folders.rglob("*evil*"))


def test_an_output_folder_that_cannot_be_made_is_named(host_folders):
    (host_folders / "output" / "v3d").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"^V3D Save Views: .*v3d"):
        save(demo_views())
    assert (host_folders / "output" / "v3d").is_file()
