"""Prepared pictures against shapes whose size, place, coverage and colour are known."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from v3d_core.formats.pictures import read_pictures
from v3d_core.images import composite, from_uint8, to_uint8
from v3d_core.prepare import PrepareConfig, prepare_picture


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Pictures this small are slower on many."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


RED = torch.tensor([0.55, 0.12, 0.10])
SIZE = 160
ONE_LEVEL = 1 / 255


def grid(height: int = SIZE, width: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")


def disc(radius: float, centre=(80.0, 80.0), height=SIZE, width=SIZE, soft=1.0) -> torch.Tensor:
    """Coverage of a disc with an edge `soft` px wide. [height, width]"""
    y, x = grid(height, width)
    distance = torch.hypot(x - centre[0], y - centre[1])
    return ((radius - distance) / soft + 0.5).clamp(0, 1)


def star(soft: float = 1.0) -> torch.Tensor:
    """Coverage of a five-pointed star, as 8-bit alpha stores it. [SIZE, SIZE]"""
    y, x = grid()
    angle = torch.atan2(y - 80, x - 80)
    radius = 60 * (1 - 0.2 * (1 + torch.cos(5 * angle)))
    coverage = ((radius - torch.hypot(y - 80, x - 80)) / soft + 0.5).clamp(0, 1)
    return from_uint8(to_uint8(coverage))


def texture(mean: torch.Tensor, amplitude: float, seed: int = 0, size: int = SIZE) -> torch.Tensor:
    """A smooth random pattern, as on a photograph. [size, size, 3]"""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 20, 20, generator=generator) * 2 - 1
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")[0]
    return (mean + amplitude * fine.permute(1, 2, 0)).clamp(0, 1)


def rgba(colours: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return torch.cat([colours.expand(*alpha.shape, 3), alpha[..., None]], dim=-1)


def bounds(mask: torch.Tensor) -> tuple[int, int, int, int]:
    rows, columns = (mask > 0.5).any(1).nonzero(), (mask > 0.5).any(0).nonzero()
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@pytest.mark.parametrize("radius", [12.0, 60.0, 150.0])
@pytest.mark.parametrize("border_ratio", [0.0, 0.3, 0.55])
def test_a_disc_fills_its_share_of_the_middle_and_keeps_its_area(radius, border_ratio):
    alpha = disc(radius, (201.0, 170.0), height=360, width=400)
    config = PrepareConfig(border_ratio=border_ratio, size=256)
    prepared = prepare_picture(rgba(RED, alpha), config=config)
    side = 256 * (1 - border_ratio)
    assert prepared.box == (201 - radius, 170 - radius, 201 + radius, 170 + radius)
    assert prepared.scale == pytest.approx(round(side) / (2 * radius))
    expected = [128 - side / 2, 128 - side / 2, 128 + side / 2, 128 + side / 2]
    assert bounds(prepared.mask) == pytest.approx(expected, abs=1)
    if border_ratio:  # without a border, half a pixel of the soft edge is outside of the frame
        area = float(alpha.sum()) * prepared.scale**2
        assert float(prepared.mask.sum()) == pytest.approx(area, rel=0.002)


@pytest.mark.parametrize("longer", ["width", "height"])
def test_the_longer_side_fills_the_frame_and_the_shape_stays(longer):
    alpha = torch.zeros(SIZE, SIZE)
    alpha[-40:, -90:] = 1  # up to the last row and column
    alpha = alpha if longer == "width" else alpha.T.contiguous()
    prepared = prepare_picture(rgba(RED, alpha), config=PrepareConfig(size=128))
    x0, y0, x1, y1 = bounds(prepared.mask)
    sides = (x1 - x0, y1 - y0) if longer == "width" else (y1 - y0, x1 - x0)
    assert sides == pytest.approx((90, 40), abs=1)  # round(128 * 0.7) = 90
    assert abs(x0 + x1 - 128) <= 1 and abs(y0 + y1 - 128) <= 1
    assert any("border (right, bottom)" in note for note in prepared.notes)


def test_the_background_is_white_and_nothing_is_rounded_to_bytes():
    prepared = prepare_picture(rgba(RED, disc(40)), config=PrepareConfig(size=128))
    assert prepared.image.shape == (128, 128, 3) and prepared.mask.shape == (128, 128)
    assert prepared.image.dtype == prepared.mask.dtype == torch.float32
    assert bool((prepared.image[prepared.mask == 0] == 1).all())
    inside = prepared.image[prepared.mask == 1]
    torch.testing.assert_close(inside, RED.expand_as(inside), atol=1e-6, rtol=0)


def encoded(kind: str, colours: torch.Tensor, alpha: torch.Tensor):
    """One cut-out as the files and nodes that make it hand it on: picture, mask."""
    background = {"black": 0.0, "white": 1.0, "grey": 0.5}
    name, _, form = kind.partition(" ")
    mixed = colours.expand(*alpha.shape, 3)
    if name == "photo":
        back = texture(torch.tensor([0.4, 0.6, 0.75]), 0.2, seed=1)
        mixed = mixed * alpha[..., None] + back * (1 - alpha[..., None])
    elif name in background:
        mixed = composite(mixed, alpha, (background[name],) * 3)
    elif name == "emptied":  # straight colours, black where nothing is seen
        mixed = torch.where(alpha[..., None] > 0, mixed, 0.0)
    mixed = from_uint8(to_uint8(mixed))
    return (mixed, alpha) if form == "mask" else (rgba(mixed, alpha), None)


FORMS = [
    *(f"{name} alpha" for name in ("straight", "emptied", "black", "white", "grey")),
    *(f"{name} mask" for name in ("straight", "emptied", "black", "white", "grey")),
]
COLOURS = [RED, torch.tensor([0.05, 0.05, 0.08]), torch.tensor([0.9, 0.85, 0.8])]


SHAPES = [(star(), 256), (from_uint8(to_uint8(disc(50.3, (77.2, 81.9)))), 64)]  # enlarged, shrunk


@pytest.mark.parametrize("kind", [*FORMS, "photo mask"])
@pytest.mark.parametrize(("alpha", "size"), SHAPES, ids=["star", "disc"])
def test_no_rim_is_left_whatever_the_colours_under_soft_edges_are(kind, alpha, size):
    for colour in COLOURS:
        picture, mask = encoded(kind, colour, alpha)
        prepared = prepare_picture(picture, mask, PrepareConfig(size=size))
        exact = composite(colour.expand(size, size, 3), prepared.mask)
        assert float((prepared.image - exact).abs().max()) < 2 * ONE_LEVEL, colour


@pytest.mark.parametrize("kind", FORMS)
def test_wide_soft_edges_are_right_as_well(kind):
    alpha = star(soft=9)
    picture, mask = encoded(kind, RED, alpha)
    prepared = prepare_picture(picture, mask, PrepareConfig(size=128))
    exact = composite(RED.expand(128, 128, 3), prepared.mask)
    assert float((prepared.image - exact).abs().max()) < 2 * ONE_LEVEL


@pytest.mark.parametrize("kind", [form for form in FORMS if "straight" not in form])
def test_a_pattern_reaches_the_edge_of_the_object(kind):
    colours, alpha = texture(RED + 0.2, 0.15), star(soft=4)
    straight, _ = encoded("emptied alpha", colours, alpha)
    exact = prepare_picture(straight, config=PrepareConfig(size=128)).image
    prepared = prepare_picture(*encoded(kind, colours, alpha), PrepareConfig(size=128))
    assert float((prepared.image - exact).abs().max()) < 2.5 * ONE_LEVEL


@pytest.mark.parametrize("background", ["white", "photo"])
def test_a_hard_mask_brings_no_old_background_along(background):
    soft = star()
    picture, _ = encoded(f"{background} mask", RED, soft)
    prepared = prepare_picture(picture, (soft > 0.5).float(), PrepareConfig(size=256))
    exact = composite(RED.expand(256, 256, 3), prepared.mask)
    assert float((prepared.image - exact).abs().max()) < 2 * ONE_LEVEL


def test_a_blurred_mask_over_a_sharp_photo_brings_no_old_background_along():
    """As U^2-Net makes them, at 320 px: the matte is right about where, not about how much."""
    sharp = star()
    picture, _ = encoded("photo mask", RED, sharp)
    blurred = torch.nn.functional.avg_pool2d(sharp[None, None], 7, 1, 3)
    blurred = torch.nn.functional.avg_pool2d(blurred, 7, 1, 3)[0, 0]
    prepared = prepare_picture(picture, blurred, PrepareConfig(size=128))
    exact = composite(RED.expand(128, 128, 3), prepared.mask)
    assert float((prepared.image - exact).abs().max()) < 4 * ONE_LEVEL


def test_a_part_that_the_mask_is_unsure_of_keeps_its_colour():
    """A green leg on which the matte says 0.9, while the body is the nearest sure thing."""
    y, x = grid()
    leg = ((7.5 - (x - 80).abs()).clamp(0, 1) * (150.5 - y).clamp(0, 1)) * (y > 80)
    body, green = disc(40), torch.tensor([0.1, 0.7, 0.2])
    colours = torch.where(body[..., None] > 0, RED, green)
    picture, mask = encoded("photo mask", colours, torch.maximum(body, leg))
    mask = torch.maximum(body, 0.9 * leg)
    prepared = prepare_picture(picture, mask, PrepareConfig(size=128))
    row = round(64 + (140 - (prepared.box[1] + prepared.box[3]) / 2) * prepared.scale)
    expected = composite(green[None, None], torch.tensor([[0.9]]))[0, 0]
    torch.testing.assert_close(prepared.image[row, 64], expected, atol=0.02, rtol=0)


def test_a_dark_outline_that_is_drawn_stays():
    """A cartoon with a black line around it, on nothing (which files store as black)."""
    colours = torch.where(disc(40)[..., None] > 0.5, RED, 0.0)
    alpha = disc(43)
    prepared = prepare_picture(encoded("emptied alpha", colours, alpha)[0])
    exact = prepare_picture(rgba(colours, alpha))
    assert float((prepared.image - exact.image).abs().max()) < 2 * ONE_LEVEL
    assert float(prepared.image[256, 256 - 176 : 256 - 160].min()) < 0.02


def test_glass_keeps_the_colours_of_its_middle():
    """A frame with a half transparent pane, straight colours."""
    y, x = grid()
    inside = (x - 80).abs().maximum((y - 80).abs())
    alpha = torch.where(inside < 50, 0.5, (60.5 - inside).clamp(0, 1))
    colours = torch.where((inside < 50)[..., None], torch.tensor([0.1, 0.3, 0.9]), RED)
    prepared = prepare_picture(rgba(colours, alpha), config=PrepareConfig(size=128))
    middle = composite(torch.tensor([[[0.1, 0.3, 0.9]]]), torch.tensor([[0.5]]))[0, 0]
    torch.testing.assert_close(prepared.image[64, 64], middle, atol=0.01, rtol=0)


CONFIG = PrepareConfig(size=192)


def picture_with_everything() -> torch.Tensor:
    """A textured star, un-mixed from black. [SIZE, SIZE, 4]"""
    return encoded("black alpha", texture(RED + 0.2, 0.15), star(soft=3))[0]


def same(first, second) -> bool:
    images = float((first.image - second.image).abs().max())
    return max(images, float((first.mask - second.mask).abs().max())) < ONE_LEVEL


@pytest.mark.parametrize("padding", [(0, 0, 40, 0), (13, 0, 0, 27), (50, 9, 31, 70)])
def test_where_the_object_stood_and_how_much_was_around_it_does_not_matter(padding):
    picture = picture_with_everything()
    left, top, right, bottom = padding
    padded = torch.nn.functional.pad(picture, (0, 0, left, right, top, bottom))
    before, after = prepare_picture(picture, config=CONFIG), prepare_picture(padded, config=CONFIG)
    assert same(before, after)
    assert after.box[:2] == (before.box[0] + left, before.box[1] + top)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turning_the_picture_turns_the_result(turns):
    picture = picture_with_everything()
    before = prepare_picture(picture, config=CONFIG)
    after = prepare_picture(picture.rot90(turns), config=CONFIG)
    turned = before.image.rot90(turns), before.mask.rot90(turns)
    torch.testing.assert_close((after.image, after.mask), turned, atol=ONE_LEVEL, rtol=0)


def test_haze_and_specks_far_from_the_object_change_nothing():
    picture = torch.nn.functional.pad(picture_with_everything(), (0, 0, 60, 60, 60, 60))
    clean = prepare_picture(picture, config=CONFIG)
    dirty = picture.clone()
    y, x = grid(*picture.shape[:2])
    far = torch.hypot(x - 140, y - 140) > 90
    dirty[far] = torch.tensor([0.1, 0.1, 0.1, 0.12])  # haze
    dirty[3:6, 4:9] = 1  # a watermark's specks
    dirty[-9:-7, -30:-25] = 1
    prepared = prepare_picture(dirty, config=CONFIG)
    assert same(prepared, clean)
    assert any("Dropped 2 small parts" in note for note in prepared.notes)


def test_a_second_part_of_some_size_stays_and_counts_for_the_box():
    body, hat = disc(40, (80, 100)), disc(12, (80, 30))
    prepared = prepare_picture(rgba(RED, body + hat))
    assert prepared.box == (40, 18, 120, 140)
    area = float((body + hat).sum()) * prepared.scale**2
    assert float(prepared.mask.sum()) == pytest.approx(area, rel=0.002)


def test_soft_edges_below_the_threshold_stay():
    alpha = disc(50, soft=6)
    prepared = prepare_picture(rgba(RED, alpha), config=PrepareConfig(mask_threshold=0.6))
    assert float(prepared.mask.sum()) == pytest.approx(
        float(alpha.sum()) * prepared.scale**2, rel=0.002
    )


def test_the_threshold_decides_what_the_box_holds():
    alpha = torch.maximum(disc(30), 0.4 * disc(50))
    wide, narrow = (
        prepare_picture(rgba(RED, alpha), config=PrepareConfig(mask_threshold=threshold)).box
        for threshold in (0.1, 0.45)
    )
    assert wide == (30, 30, 130, 130) and narrow == (50, 50, 110, 110)


def test_alpha_beats_the_mask_unless_it_is_opaque_everywhere():
    picture, other = rgba(RED, disc(40)), disc(20)
    prepared = prepare_picture(picture, other)
    assert prepared.box == (40, 40, 120, 120)
    assert any("mask is not used" in note for note in prepared.notes)
    opaque = rgba(RED, torch.ones(SIZE, SIZE))
    assert prepare_picture(opaque, other).box == (60, 60, 100, 100)


def test_a_flat_background_is_keyed_and_said_so():
    alpha = disc(40)
    prepared = prepare_picture(composite(RED.expand(SIZE, SIZE, 3), alpha), config=CONFIG)
    exact = prepare_picture(rgba(RED, alpha), config=CONFIG)
    assert float((prepared.image - exact.image).abs().mean()) < ONE_LEVEL / 2
    assert any("keyed the flat background #ffffff" in note for note in prepared.notes)


def test_enlarging_is_smooth_and_said_so():
    prepared = prepare_picture(rgba(RED, disc(12)), config=PrepareConfig(size=512))
    assert any("24x24 pixels and was enlarged 14.9 times" in note for note in prepared.notes)
    y, x = grid(512, 512)
    distance = torch.hypot(x - 256, y - 256)
    edge = (prepared.mask > 0.25) & (prepared.mask < 0.75)
    assert float((distance[edge] - 12 * prepared.scale).abs().max()) < 0.5 * prepared.scale


def test_inputs_are_not_changed():
    picture, mask = encoded("photo mask", RED, star())
    copies = picture.clone(), mask.clone()
    prepare_picture(picture, mask)
    assert torch.equal(picture, copies[0]) and torch.equal(mask, copies[1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_that_was_taken_sideways_is_prepared_upright(orientation, tmp_path):
    colours = composite(texture(RED + 0.2, 0.15)[:96, :144], disc(40, (60, 40), 96, 144))
    upright = Image.fromarray(to_uint8(colours).numpy())
    # how a camera held like this stores the picture; the reader has to undo it
    undo = Image.Transpose
    stored = {
        2: [undo.FLIP_LEFT_RIGHT],
        3: [undo.ROTATE_180],
        4: [undo.FLIP_TOP_BOTTOM],
        5: [undo.TRANSPOSE],
        6: [undo.ROTATE_90],
        7: [undo.TRANSVERSE],
        8: [undo.ROTATE_270],
    }
    sideways = upright
    for step in stored.get(orientation, []):
        sideways = sideways.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    sideways.save(tmp_path / "sideways.jpg", quality=100, subsampling=0, exif=exif)
    upright.save(tmp_path / "upright.jpg", quality=100, subsampling=0)
    first, second = (
        prepare_picture(from_uint8(read_pictures([tmp_path / name])[0]), config=CONFIG)
        for name in ("sideways.jpg", "upright.jpg")
    )
    assert first.box == second.box
    assert float((first.image - second.image).abs().mean()) < ONE_LEVEL


def broken(name: str):
    picture, mask = rgba(RED, disc(40))[..., :3], disc(40)
    noise = torch.from_numpy(np.random.default_rng(0).random((64, 64, 3), np.float32))
    not_finite = picture.clone()
    not_finite[3, 4, 1] = math.nan
    return {
        "photo": (noise, None),
        "empty": (picture, mask * 0.15),
        "full": (picture, torch.ones_like(mask)),
        "dot": (picture, disc(0.5)),
        "nan": (not_finite, mask),
        "nan in mask": (picture, mask * math.nan),
        "size": (picture, mask[:100, :90]),
        "shape": (picture[None], mask),
        "channels": (picture[..., :1], mask),
        "bytes": (to_uint8(picture), mask),
    }[name]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("photo", r"no alpha channel, no mask was given.*Remove Background.*--masks.*rembg"),
        ("empty", r"no pixel above threshold 0\.2; the largest value is 0\.15"),
        ("full", r"mask is full: its smallest value 1 "),
        ("dot", r"the object is \dx\d pixels, at least 8"),
        ("nan", "has 1 NaN"),
        ("nan in mask", "mask contains NaN"),
        ("size", "picture is 160x160 but the mask is 90x100"),
        ("shape", r"expected \[H, W, 3 or 4\], got \[1, 160, 160, 3\]"),
        ("channels", r"got \[160, 160, 1\]"),
        ("bytes", r"torch\.uint8; divide by 255"),
    ],
)
def test_bad_input_is_refused_with_numbers_and_the_remedy(name, text):
    picture, mask = broken(name)
    with pytest.raises(ValueError, match=text):
        prepare_picture(picture, mask)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"border_ratio": 0.9}, "border_ratio is 0.9"),
        ({"border_ratio": -0.1}, "border_ratio is -0.1"),
        ({"size": 500}, "size is 500; it must be a multiple of 64"),
        ({"size": 0}, "size is 0"),
        ({"size": 1088}, "size is 1088"),
        ({"mask_threshold": 1.0}, "mask_threshold is 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(setting, text):
    with pytest.raises(ValueError, match=text):
        PrepareConfig(**setting)
