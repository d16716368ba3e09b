"""Picture files: natural order, every colour mode, orientation, bombs and damage."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from v3d_core.formats import pictures
from v3d_core.formats.pictures import list_pictures, read_masks, read_pictures


def grey(path, size=(6, 4), value=128):
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def test_pictures_are_listed_in_natural_order_without_other_files(tmp_path):
    for name in ("r_10.png", "r_2.PNG", "r_1.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in list_pictures(tmp_path)] == ["r_1.jpg", "r_2.PNG", "r_10.png"]


def test_a_folder_without_pictures_says_so(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"no pictures \(\.png, .*which has 1 entries"):
        list_pictures(tmp_path)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg"])
def test_formats_and_alpha(tmp_path, name):
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:] = (200, 100, 50, 128)
    if name == "a.jpg":
        Image.fromarray(pixels[..., :3]).save(tmp_path / name, quality=95)
    else:
        Image.fromarray(pixels).save(tmp_path / name, lossless=True)
    rgba = read_pictures([tmp_path / name])
    assert rgba.shape == (1, 4, 6, 4) and rgba.dtype == torch.uint8
    assert rgba[0, 0, 0, 3] == (255 if name == "a.jpg" else 128)
    assert (rgba[0, 0, 0, :3].int() - torch.tensor([200, 100, 50])).abs().max() <= 3


def test_16_bit_grey_is_scaled_and_palettes_keep_their_transparency(tmp_path):
    Image.fromarray(np.full((4, 6), 32896, np.uint16)).save(tmp_path / "deep.png")
    assert read_pictures([tmp_path / "deep.png"])[0, 0, 0].tolist() == [128, 128, 128, 255]
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=1)
    assert read_pictures([tmp_path / "palette.png"])[0, 0, 0].tolist() == [10, 20, 30, 0]


def test_exif_orientation_is_applied(tmp_path):
    picture = Image.new("RGB", (6, 4))
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise to show
    picture.save(tmp_path / "turned.png", exif=exif)
    rgba = read_pictures([tmp_path / "turned.png"])[0]
    assert rgba.shape == (6, 4, 4) and rgba[0, 3, 0] == 255


def test_different_sizes_name_both_files_and_sizes(tmp_path):
    files = [grey(tmp_path / "a.png"), grey(tmp_path / "b.png", (6, 4)), tmp_path / "c.png"]
    grey(files[2], (8, 4))
    with pytest.raises(ValueError, match=r"a\.png is 6x4, .*c\.png is 8x4"):
        read_pictures(files)


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_damaged_pictures_are_named(tmp_path, content):
    path = tmp_path / "damaged.png"
    if content is None:
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(path)
        content = path.read_bytes()[:2000]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.png: (not a PNG|the picture is damaged)"):
        read_pictures([path])


def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch):
    path = grey(tmp_path / "bomb.png", (40, 30))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(pictures, "MAX_PICTURE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"bomb\.png: the picture is 40x30; at most 1000"):
        read_pictures([path])


def test_the_sum_of_pixels_has_a_limit_too(tmp_path, monkeypatch):
    path = grey(tmp_path / "a.png", (40, 30))
    monkeypatch.setattr(pictures, "MAX_TOTAL_PIXELS", 3000)
    assert len(read_pictures([path, path])) == 2
    with pytest.raises(ValueError, match="3 pictures of 40x30 are 3600 pixels, at most 3000"):
        read_pictures([path] * 3)


def test_masks_come_from_grey_or_from_alpha(tmp_path):
    Image.new("L", (2, 2), 51).save(tmp_path / "grey.png")
    Image.new("RGBA", (2, 2), (255, 255, 255, 51)).save(tmp_path / "alpha.png")
    masks = read_masks([tmp_path / "grey.png", tmp_path / "alpha.png"])
    torch.testing.assert_close(masks, torch.full((2, 2, 2), 0.2))


def test_a_missing_picture_is_named(tmp_path):
    with pytest.raises(ValueError, match="absent.png: no such picture".replace(".", r"\.")):
        read_pictures([tmp_path / "absent.png"])
    assert os.listdir(tmp_path) == []
