"""Names and shapes of the networks, against diffusers' and transformers' own, and read back."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from v3d_core.diffusion.checkpoint import part_layout, to_diffusers, to_sgm
from v3d_core.diffusion.detect import clip_shape, unet_shape, vae_shape
from v3d_core.diffusion.layout import ClipShape, UNetShape, VaeShape

DETECT = {UNetShape: unet_shape, VaeShape: vae_shape, ClipShape: clip_shape}


def shapes_of(network) -> dict:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def count(layout: dict) -> int:
    return sum(math.prod(shape) for shape in layout.values())


def test_full_size_unet_is_exactly_diffusers_and_has_v3ds_count():
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        network = diffusers.UNetSpatioTemporalConditionModel()
    ours = part_layout(UNetShape(), "diffusers")
    assert ours == shapes_of(network)
    # V3D.ckpt: 1,428 tensors and 1,524,623,082 parameters under model.diffusion_model
    assert len(part_layout(UNetShape(), "sgm")) == len(ours) == 1428
    assert count(part_layout(UNetShape(), "sgm")) == 1_524_623_082


def test_our_builder_makes_the_same_full_size_unet():
    pytest.importorskip("diffusers")
    from v3d_core.diffusion.diffusers_backend import build_unet

    assert shapes_of(build_unet(UNetShape())) == part_layout(UNetShape(), "diffusers")


def test_full_size_autoencoder_is_diffusers_but_for_the_quant_conv():
    pytest.importorskip("diffusers")
    from v3d_core.diffusion.diffusers_backend import build_vae

    theirs = shapes_of(build_vae(VaeShape()))
    extra = {name: theirs.pop(name) for name in ("quant_conv.weight", "quant_conv.bias")}
    assert extra == {"quant_conv.weight": (8, 8, 1, 1), "quant_conv.bias": (8,)}
    assert part_layout(VaeShape(), "diffusers") == theirs
    sgm = part_layout(VaeShape(), "sgm")
    encoder = {name: shape for name, shape in sgm.items() if name.startswith("encoder.")}
    decoder = {name: shape for name, shape in sgm.items() if name.startswith("decoder.")}
    # V3D.ckpt: first_stage_model.encoder and .decoder
    assert (len(encoder), count(encoder)) == (106, 34_163_592)
    assert (len(decoder), count(decoder)) == (266, 63_579_183)


def test_full_size_image_encoder_is_transformers():
    pytest.importorskip("transformers")
    from v3d_core.diffusion.diffusers_backend import build_image_encoder

    assert shapes_of(build_image_encoder(ClipShape())) == part_layout(ClipShape(), "diffusers")
    assert ClipShape().heads == 16


@pytest.mark.parametrize("shape", [UNetShape(), VaeShape()])
def test_the_maps_are_bijections(shape):
    entries = list(shape.entries())
    assert len({e.sgm for e in entries}) == len({e.diffusers for e in entries}) == len(entries)


def test_three_tensors_of_transformers_share_one_of_openclip():
    entries = list(ClipShape(layers=2).entries())
    assert len({e.diffusers for e in entries}) == len(entries)
    shared = [e.sgm for e in entries if e.change in ("q", "k", "v")]
    assert len(shared) == 12 and len(set(shared)) == 4


levels = st.integers(1, 4)


@st.composite
def unets(draw):
    depth = draw(levels)
    return UNetShape(
        model_channels=64 * draw(st.integers(1, 3)),
        channel_mult=tuple(draw(st.integers(1, 4)) for _ in range(depth)),
        attention=tuple(draw(st.booleans()) for _ in range(depth)),
        res_blocks=draw(st.integers(1, 3)),
        context_channels=draw(st.sampled_from([32, 96, 1024])),
    )


@st.composite
def vaes(draw):
    depth = draw(levels)
    return VaeShape(
        channels=32 * draw(st.integers(1, 3)),
        channel_mult=tuple(draw(st.integers(1, 4)) for _ in range(depth)),
        res_blocks=draw(st.integers(1, 3)),
    )


@st.composite
def clips(draw):
    return ClipShape(
        width=80 * draw(st.integers(1, 3)),
        layers=draw(st.integers(1, 4)),
        mlp_width=draw(st.sampled_from([64, 320])),
        patch_size=draw(st.sampled_from([14, 16, 32])),
        image_size=224,
        projection=draw(st.sampled_from([32, 96])),
    )


@settings(max_examples=60, deadline=None)
@given(shape=st.one_of(unets(), vaes(), clips()), naming=st.sampled_from(["sgm", "diffusers"]))
def test_widths_are_read_back_from_names_and_shapes(shape, naming):
    assert DETECT[type(shape)](part_layout(shape, naming), naming) == shape


@settings(max_examples=10, deadline=None)
@given(shape=unets().filter(lambda shape: shape.channel_mult[0] == 1))
def test_diffusers_agrees_on_unets_of_any_widths(shape):
    pytest.importorskip("diffusers")
    from v3d_core.diffusion.diffusers_backend import build_unet

    assert shapes_of(build_unet(shape)) == part_layout(shape, "diffusers")


def test_changes_of_form_are_undone():
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(6, 6, 1, 1, generator=generator)
    assert torch.equal(to_sgm([to_diffusers(square, "squeeze")], "squeeze"), square)
    matrix = torch.randn(6, 4, generator=generator)
    assert torch.equal(to_sgm([to_diffusers(matrix, "transpose")], "transpose"), matrix)
    thirds = [to_diffusers(matrix, part) for part in "qkv"]
    assert [tuple(third.shape) for third in thirds] == [(2, 4)] * 3
    assert torch.equal(to_sgm(thirds, "q"), matrix)
    assert torch.equal(thirds[1], matrix[2:4])
