"""V3D Prepare Image takes pictures and masks as core's nodes make them, or says what is wrong."""

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import pack

SIZE = 160
RED = torch.tensor([0.55, 0.12, 0.10])
WIDGETS = {"mask_is": "auto", "border_ratio": 0.3, "size": 128, "mask_threshold": 0.2}


@pytest.fixture(autouse=True)
def inference_mode():
    """Nodes always run in it."""
    with torch.inference_mode():
        yield


@pytest.fixture
def told(monkeypatch):
    """What the node says under itself."""
    lines = []
    monkeypatch.setattr(
        pack("nodes.prepare"), "tell", lambda name, message: lines.append(f"{name}: {message}")
    )
    return lines


def node():
    return pack("nodes.prepare").V3DPrepareImage


def prepare(image, **inputs):
    return node().execute(image=image, **{**WIDGETS, **inputs}).args


def disc() -> torch.Tensor:
    """Soft coverage of a disc left of the middle. [1, SIZE, SIZE]"""
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    return (40.5 - torch.hypot(x - 60, y - 80)).clamp(0, 1)[None]


def photo() -> torch.Tensor:
    """The disc before something that cannot be keyed. [1, SIZE, SIZE, 3]"""
    noise = torch.rand(1, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0))
    alpha = disc()[..., None]
    return RED * alpha + noise * (1 - alpha)


def assert_is_the_red_disc(image, mask):
    assert image.shape == (1, 128, 128, 3) and mask.shape == (1, 128, 128)
    assert image.dtype == mask.dtype == torch.float32
    y, x = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(128) + 0.5, indexing="ij")
    expected = (45 - torch.hypot(x - 64, y - 64) + 0.5).clamp(0, 1)  # round(128 * 0.7) = 90 wide
    assert float((mask[0] - expected).abs().max()) < 0.25
    exact = RED * mask[..., None] + 1 - mask[..., None]
    assert float((image - exact).abs().max()) < 2 / 255


@pytest.mark.parametrize("mask_is", ["auto", "explicit"])
@pytest.mark.parametrize("polarity", ["object", "background"])
def test_either_mask_polarity_cuts_out_the_same_object(polarity, mask_is, told):
    mask = disc() if polarity == "object" else 1 - disc()
    image, cut = prepare(photo(), mask=mask, mask_is=polarity if mask_is != "auto" else "auto")
    assert_is_the_red_disc(image, cut)
    assert "Object of 80x80 pixels, scaled 1.12 times." in told[0]
    assert ("Masks inverted" in told[0]) == (polarity == "background")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_alpha_of_a_four_channel_image_is_the_mask(dtype):
    picture = torch.cat([photo(), disc()[..., None]], dim=-1)
    picture[..., :3] = RED
    image, mask = prepare(picture.to(dtype))
    assert_is_the_red_disc(image.round(decimals=3), mask)


def test_a_file_with_alpha_comes_through_load_image(host_folders):
    """Core splits it into straight colours and a background mask."""
    import nodes

    alpha = (disc()[0].numpy() * 255).round().astype(np.uint8)
    colours = np.broadcast_to((RED.numpy() * 255).round().astype(np.uint8), (SIZE, SIZE, 3))
    emptied = np.where(alpha[..., None] > 0, colours, 0)
    Image.fromarray(np.dstack([emptied, alpha])).save(host_folders / "input" / "disc.png")
    image, mask = nodes.LoadImage().load_image("disc.png")
    assert_is_the_red_disc(*prepare(image, mask=mask))


def test_load_images_placeholder_mask_is_ignored_and_the_flat_background_keyed(told):
    alpha = disc()[..., None]
    image, mask = prepare(RED * alpha + 1 - alpha, mask=torch.zeros(1, 64, 64))
    assert_is_the_red_disc(image, mask)
    assert "Ignored an all-zero 64x64 mask" in told[0] and "keyed the flat background" in told[0]


def test_a_mask_without_a_batch_axis_is_one_mask():
    assert_is_the_red_disc(*prepare(photo(), mask=disc()[0]))


def test_inputs_are_not_changed():
    image, mask = photo(), 1 - disc()
    prepare(image, mask=mask)
    assert torch.equal(image, photo()) and torch.equal(mask, 1 - disc())


def test_widgets_have_the_defaults_and_limits_of_the_library():
    library = pack("v3d_core.prepare")
    schema = node().define_schema()
    widgets = {part.id: part for part in schema.inputs if hasattr(part, "default")}
    for name in ("border_ratio", "size", "mask_threshold"):
        assert widgets[name].default == getattr(library.PrepareConfig(), name)
        for value in (widgets[name].min, widgets[name].max):
            library.PrepareConfig(**{name: value})
    visible = [part for part in widgets.values() if not part.advanced]
    assert len(visible) <= 6
    assert all(part.tooltip for part in [*schema.inputs, *schema.outputs])


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"image": photo().expand(2, -1, -1, -1)}, "2 images in the batch, 1 is needed"),
        ({"mask": disc().expand(3, -1, -1)}, "3 masks in the batch, 1 is needed"),
        ({"mask": disc()[:, :90]}, "picture is 160x160 but the mask is 160x90"),
        ({"mask": torch.zeros(1, SIZE, SIZE)}, "empty mask: .* largest value is 0"),
        ({"mask": None}, "nothing tells object from background.*Remove Background"),
        ({"image": photo() * float("nan")}, "has 76800 NaN"),
        ({"image": photo()[..., :1]}, r"shape \[1, 160, 160, 1\]"),
    ],
)
def test_bad_input_is_refused_with_the_numbers_under_the_nodes_name(inputs, text):
    with pytest.raises(ValueError, match=f"^V3D Prepare Image: .*{text}"):
        prepare(**{"image": photo(), "mask": disc(), **inputs})
