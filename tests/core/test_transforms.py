"""transforms.json: every known form gives the same cameras, hostile ones are refused."""

import json
import math

import pytest
import torch

from v3d_core.cameras import Orbit, flip_camera_yz, orbit_cameras
from v3d_core.formats.transforms import (
    cameras_for,
    find_transforms,
    read_transforms,
    transforms_document,
)

SIZE = 64


def orbit(count: int = 3):
    return orbit_cameras(Orbit(num_views=count, elevation_deg=10), SIZE, SIZE)


def data_set(folder, top=None, frame=None, names=("r_0", "r_1", "r_2"), **changes):
    """A data set of empty picture files with the orbit's poses; returns the json's path."""
    poses = flip_camera_yz(orbit().camera_to_world).tolist()
    frames = []
    for name, pose in zip(names, poses):
        (folder / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.png").touch()
        frames.append({"file_path": f"./{name}", "transform_matrix": pose} | (frame or {}))
    path = folder / "transforms.json"
    top = {"camera_angle_x": math.radians(60)} if top is None else top
    path.write_text(json.dumps(top | {"frames": frames} | changes))
    return path


def link(path, target):
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("this system lets only administrators make links")


FOCAL = 0.5 * SIZE / math.tan(math.radians(30))


@pytest.mark.parametrize(
    "top, frame",
    [
        ({"camera_angle_x": math.radians(60)}, {}),
        ({"camera_angle_y": math.radians(60)}, {}),
        ({"fl_x": FOCAL, "fl_y": FOCAL, "cx": 32, "cy": 32, "w": 64, "h": 64}, {}),
        ({"fl_x": 2 * FOCAL, "cx": 64, "cy": 64, "w": 128, "h": 128}, {}),
        ({"camera_angle_x": 1.0}, {"fl_x": FOCAL}),
        ({}, {"camera_angle_x": math.radians(60), "w": 256, "h": 256}),
    ],
)
def test_every_form_of_intrinsics_gives_the_orbits_cameras(tmp_path, top, frame):
    cameras = cameras_for(read_transforms(data_set(tmp_path, top, frame)), SIZE, SIZE)
    torch.testing.assert_close(cameras.K, orbit().K)
    torch.testing.assert_close(cameras.camera_to_world, orbit().camera_to_world)


def test_what_is_written_is_read_back_exactly(tmp_path):
    varied = orbit()
    varied.K[1, 0, 0] += 1.5
    for cameras in (orbit(), varied):
        path = data_set(tmp_path)
        path.write_text(json.dumps(transforms_document(cameras, ["r_0.png", "r_1", "./r_2"])))
        back = cameras_for(read_transforms(path), SIZE, SIZE)
        assert torch.equal(back.K, cameras.K)
        assert torch.equal(back.camera_to_world, cameras.camera_to_world)


def test_names_are_stems_and_stay_unique_across_folders(tmp_path):
    transforms = read_transforms(data_set(tmp_path, names=("a/0", "b/0", "b/1")))
    assert transforms.names == ("a_0", "b_0", "b_1")
    assert read_transforms(data_set(tmp_path)).names == ("r_0", "r_1", "r_2")


def test_splits_are_found_in_every_layout(tmp_path):
    for name in ("transforms_train.json", "transforms_test.json"):
        (tmp_path / name).touch()
    assert find_transforms(tmp_path, "train").name == "transforms_train.json"
    assert find_transforms(tmp_path, "test").name == "transforms_test.json"
    assert (
        find_transforms(tmp_path / "transforms_train.json", "test").name == "transforms_test.json"
    )
    assert find_transforms(tmp_path, "val") is None
    for split in ("train", "test"):
        (tmp_path / "x" / f"orbit_{split}").mkdir(parents=True)
        (tmp_path / "x" / f"orbit_{split}" / "transforms.json").touch()
    expected = (tmp_path / "x" / "orbit_test" / "transforms.json").resolve()
    for source in ("x", "x/orbit_train", "x/orbit_train/transforms.json"):
        assert find_transforms(tmp_path / source, "test").resolve() == expected


@pytest.mark.parametrize(
    "file_path",
    ["../secret.png", "/etc/hostname", "images/../../secret", "..\\secret.png", "link/secret.png"],
)
def test_pictures_outside_the_data_set_are_refused(tmp_path, file_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "secret.png").touch()
    (folder / "images").mkdir()
    if file_path.startswith("link"):
        link(folder / "link", tmp_path)
    path = data_set(folder)
    data = json.loads(path.read_text())
    data["frames"][1]["file_path"] = file_path
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"frame 1: .* lies outside the data set's folder"):
        read_transforms(path)


def test_a_data_set_behind_a_link_is_fine(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    data_set(folder)
    link(tmp_path / "link", folder)
    assert len(read_transforms(tmp_path / "link" / "transforms.json").names) == 3


@pytest.mark.parametrize(
    "text, message",
    [
        ("not json", "not a json file"),
        ("[" * 100_000, "not a json file"),
        ("[1, 2]", "no list 'frames'"),
        ('{"frames": []}', "no list 'frames'"),
        ('{"frames": [7]}', "frame 0 is not an object"),
        ('{"frames": [{"file_path": "a"}]}', "transform_matrix is missing"),
        ('{"frames": [{"transform_matrix": [[1, 0], [0, 1]]}]}', r"is \[2, 2\], expected \[4, 4\]"),
    ],
)
def test_broken_json_is_refused_with_a_reason(tmp_path, text, message):
    path = tmp_path / "transforms.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_transforms(path)


def test_a_missing_picture_is_named_with_the_suffixes_tried(tmp_path):
    path = data_set(tmp_path)
    (tmp_path / "r_2.png").unlink()
    with pytest.raises(ValueError, match=r"frame 2: no file '\./r_2' .*\.png, \.jpg"):
        read_transforms(path)


@pytest.mark.parametrize(
    "top, message",
    [
        ({}, "no field of view; 'camera_angle_x' or 'fl_x' is needed"),
        ({"camera_angle_x": 60}, "camera_angle_x is 60; it is in radians"),
        ({"camera_angle_x": float("nan")}, "camera_angle_x is not a number: 'nan'"),
        ({"fl_x": -5}, "fl_x must be positive, got -5"),
        ({"fl_x": "wide"}, "fl_x is not a number: 'wide'"),
        ({"fl_x": 50, "w": 0}, "w must be at least 1, got 0"),
        ({"fl_x": 50, "w": 640, "h": 480}, "cameras for 640x480 but the picture is 64x64"),
    ],
)
def test_bad_intrinsics_are_refused_with_a_reason(tmp_path, top, message):
    transforms = read_transforms(data_set(tmp_path, top))
    with pytest.raises(ValueError, match=message):
        cameras_for(transforms, SIZE, SIZE)


def test_lens_distortion_is_reported(tmp_path):
    top = {"camera_angle_x": 1.0, "k1": 0.03, "k2": 0.0, "p1": 1e-9}
    assert "(k1 = 0.03) is ignored" in read_transforms(data_set(tmp_path, top)).warnings[0]


def test_masks_are_for_all_frames_or_none(tmp_path):
    path = data_set(tmp_path, frame={"mask_path": "r_0.png"})
    assert len(read_transforms(path).masks) == 3
    data = json.loads(path.read_text())
    del data["frames"][0]["mask_path"]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="3 frames but 2 have a mask_path"):
        read_transforms(path)
