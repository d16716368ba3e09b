"""Convolutions along time computed as two-dimensional ones: the same values, gradients and names."""

import pytest
import torch
from torch import nn

from v3d_core.diffusion.temporal_conv import TemporalConv, use_temporal_convs


def make(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Conv3d(3, 5, (3, 1, 1), padding=(1, 0, 0)).to(dtype)


@pytest.mark.parametrize("frames", [1, 2, 7])
@pytest.mark.parametrize("sliced", [False, True])
def test_values_and_gradients_are_those_of_conv3d(frames, sliced):
    plain, fast = make(), nn.Sequential(make())
    assert use_temporal_convs(fast) == 1 and type(fast[0]) is TemporalConv
    x = torch.randn(2, 3, frames, 4, 6, dtype=torch.float64, generator=torch.Generator())
    x = x[..., 1:3, :] if sliced else x  # the decoder in slices hands on parts of rows
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    made, expected = fast(ours), plain(theirs)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-13)
    weights = torch.randn(made.shape, dtype=made.dtype)
    (made * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(fast[0].weight.grad, plain.weight.grad, rtol=0, atol=1e-11)
    torch.testing.assert_close(fast[0].bias.grad, plain.bias.grad, rtol=0, atol=1e-11)


def test_names_and_parameters_stay():
    network = nn.ModuleDict({"time": make(torch.float32)})
    before = dict(network.state_dict())
    use_temporal_convs(network)
    assert list(network.state_dict()) == list(before)
    assert all(network.state_dict()[k].data_ptr() == v.data_ptr() for k, v in before.items())
    assert use_temporal_convs(network) == 0  # done already


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv3d(2, 2, 3, padding=1),
        nn.Conv3d(2, 2, (3, 1, 1)),
        nn.Conv3d(2, 2, (3, 1, 1), padding=(1, 0, 0), stride=(2, 1, 1)),
        nn.Conv3d(2, 2, (3, 1, 1), padding=(1, 0, 0), groups=2),
        nn.Conv3d(2, 2, (3, 1, 1), padding=(1, 0, 0), padding_mode="circular"),
        nn.Conv2d(2, 2, 3),
    ],
)
def test_other_convolutions_are_left_alone(other):
    kind = type(other)
    assert use_temporal_convs(nn.Sequential(other)) == 0 and type(other) is kind


def test_every_temporal_convolution_of_the_networks_is_one():
    pytest.importorskip("diffusers")
    from v3d_core.diffusion.diffusers_backend import build_unet, build_vae
    from v3d_core.diffusion.layout import UNetShape, VaeShape

    for network in (build_unet(UNetShape()), build_vae(VaeShape())):
        kinds = [type(m) for m in network.modules() if isinstance(m, nn.Conv3d)]
        assert len(kinds) > 10 and set(kinds) == {TemporalConv}
