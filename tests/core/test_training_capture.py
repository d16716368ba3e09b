"""A captured training step: the gradients of every batch, not of the first, and nothing added up."""

import copy
from dataclasses import replace

import pytest
import torch
from small_training import CONFIG, UNET, Small, assert_same_weights, orbits, trained

from v3d_core.diffusion import training, training_capture
from v3d_core.diffusion.training_loss import draw_noise


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

    made = new_unet(UNET, 0).to("cuda")
    for parameter in made.parameters():
        if not parameter.any():  # behind a layer of zeros every gradient is 0
            torch.nn.init.normal_(parameter, std=0.02)
    return made


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("make", [lambda: Small().to("cuda"), unet], ids=["small", "unet"])
def test_a_cuda_graph_has_the_gradients_of_its_own_launches(make):
    data, device = orbits(), torch.device("cuda")
    plain = training.OrbitTrainer(network := make(), None, CONFIG)
    captured = training.OrbitTrainer(copy.deepcopy(network), None, CONFIG, captured=True)
    for seed in range(3):  # the first batch is the one that is captured
        generator = torch.Generator(device).manual_seed(seed)
        batch = data.load(data.draw(4, generator), device)
        draw = draw_noise(batch.latents.shape, CONFIG.noise, generator)
        plain.optimiser.zero_grad(set_to_none=True)
        torch.testing.assert_close(captured._learn(batch, draw), plain._learn(batch, draw))
        rounding = 1e-7 * max(float(b.grad.abs().max()) for b in plain.parameters)
        for a, b in zip(captured.parameters, plain.parameters, strict=True):
            largest = float(b.grad.abs().max())
            assert largest > 0
            if largest < rounding:  # 0 in truth: what asks, where there is one token to attend to
                assert float(a.grad.abs().max()) < rounding
            else:  # some libraries add in an order of their own
                torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-3 * largest)


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
