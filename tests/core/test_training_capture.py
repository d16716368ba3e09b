"""A captured training step: the gradients of every batch, not of the first, and nothing added up."""

from dataclasses import replace

import pytest
import torch
from small_training import CONFIG, UNET, Small, assert_same_weights, orbits, trained

from v3d_core.diffusion import training, training_capture


class Tape:
    """What a CUDA graph does, on any device: the same work again, gradients overwritten."""

    def __init__(self, backward, parameters, inputs):
        self.backward, self.parameters = backward, parameters
        self.inputs = [tensor.clone() for tensor in inputs]

    def __call__(self, *inputs):
        for place, tensor in zip(self.inputs, inputs, strict=True):
            place.copy_(tensor)
        for parameter in self.parameters:
            parameter.grad = None
        return self.backward(*self.inputs).clone()


def test_a_replayed_step_is_the_step_itself(monkeypatch):
    monkeypatch.setattr(training, "CapturedBackward", Tape)
    replayed = trained(CONFIG, captured=True)
    assert isinstance(replayed._replay, Tape)  # it was used
    assert_same_weights(trained(CONFIG), replayed)


def test_parts_are_refused():
    with pytest.raises(ValueError, match="accumulate is 2, not 1"):
        trained(replace(CONFIG, accumulate=2), captured=True)


def unet():
    pytest.importorskip("diffusers")
    from v3d_core.diffusion.training_networks import new_unet

    return new_unet(UNET, 0).to("cuda")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("make", [lambda: Small().to("cuda"), unet], ids=["small", "unet"])
def test_a_cuda_graph_learns_as_its_own_launches_do(make):
    plain = trained(CONFIG, data=orbits(), make=make)
    captured = trained(CONFIG, data=orbits(), make=make, captured=True)
    # the same kernels in the same order; some libraries add in an order of their own
    assert_same_weights(plain, captured, rtol=0, atol=1e-3)
    assert plain.step == captured.step == 3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_graph_takes_new_inputs_of_its_shape_alone():
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))

    def backward(x):
        loss = (weight * x).sum()
        loss.backward()
        return loss.detach()

    example = torch.ones(3, device="cuda")
    replay = training_capture.CapturedBackward(backward, [weight], [example])
    for factor in (2.0, 5.0):
        assert float(replay(example * factor)) == 3 * factor
        assert weight.grad.tolist() == [factor] * 3  # not added up
    with pytest.raises(ValueError, match=r"captured for \[3\], got \[4\]"):
        replay(torch.ones(4, device="cuda"))
