"""The optimiser of a fit against torch's own and against its formula."""

import pytest
import torch

from v3d_core.splats import engines
from v3d_core.splats.adam import BETA1, BETA2, Adam

DEVICES = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
on_each_device = pytest.mark.parametrize("device", DEVICES, ids=str)
RATES = {"a": 0.1, "b": 0.003}


def tensors(device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (7, 3), "b": (7,)}
    return {n: torch.randn(*s, generator=generator).to(device) for n, s in shapes.items()}


def set_gradients(values, seed):
    for name, grad in tensors("cpu", seed).items():
        values[name].grad = grad.to(values[name].device)


@on_each_device
@pytest.mark.parametrize("epsilon", [1e-15, 1e-3])
def test_steps_are_those_of_torch_and_of_the_paper(device, epsilon):
    mine = {n: v.requires_grad_() for n, v in tensors(device).items()}
    theirs = {n: v.requires_grad_() for n, v in tensors(device).items()}
    by_hand = {n: v.double().cpu() for n, v in tensors(device).items()}
    m = {n: torch.zeros_like(v) for n, v in by_hand.items()}
    s = {n: torch.zeros_like(v) for n, v in by_hand.items()}
    groups = [{"params": [theirs[n]], "lr": RATES[n]} for n in RATES]
    adam, reference = Adam(mine, RATES, epsilon), torch.optim.Adam(groups, eps=epsilon)
    rates = dict(RATES)
    for t in range(1, 12):
        if t == 6:
            rates = {"a": 0.02, "b": 0.5}
            adam.set_rates(rates)
            for group, rate in zip(reference.param_groups, rates.values(), strict=True):
                group["lr"] = rate
        set_gradients(mine, t)
        set_gradients(theirs, t)
        adam.step()
        reference.step()
        for n, value in by_hand.items():  # Kingma and Ba 2015, algorithm 1
            g = mine[n].grad.double().cpu()
            m[n] = BETA1 * m[n] + (1 - BETA1) * g
            s[n] = BETA2 * s[n] + (1 - BETA2) * g * g
            mean, square = m[n] / (1 - BETA1**t), s[n] / (1 - BETA2**t)
            value -= rates[n] * mean / (square.sqrt() + epsilon)
    for n in RATES:
        torch.testing.assert_close(mine[n], theirs[n], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            mine[n].detach().cpu().double(), by_hand[n], rtol=1e-4, atol=1e-5
        )


@on_each_device
def test_forgotten_rows_start_anew_and_others_keep_their_moments(device):
    values = {n: v.requires_grad_() for n, v in tensors(device).items()}
    adam = Adam(values, RATES, 1e-15)
    for t in range(3):
        set_gradients(values, t)
        adam.step()
    before = {n: (adam.means[n].clone(), adam.squares[n].clone()) for n in RATES}
    adam.forget(torch.tensor([1, 4], device=device))
    for n in RATES:
        for old, new in zip(before[n], (adam.means[n], adam.squares[n]), strict=True):
            assert not new[[1, 4]].any()
            assert torch.equal(old[[0, 2, 3, 5, 6]], new[[0, 2, 3, 5, 6]])


@on_each_device
def test_tensors_without_gradient_or_without_numbers_are_left_alone(device):
    values = {n: v.requires_grad_() for n, v in tensors(device).items()}
    values["empty"] = torch.zeros(7, 0, 3, device=device, requires_grad=True)
    adam = Adam(values, {**RATES, "empty": 1.0}, 1e-15)
    before = values["b"].detach().clone()
    values["a"].grad = torch.ones_like(values["a"])
    adam.step()
    adam.set_rates({**RATES, "empty": 2.0})
    adam.forget(torch.tensor([0], device=device))
    assert torch.equal(values["b"], before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_kernel_steps_as_torch_does(monkeypatch):
    results = []
    for engine in ("warp", "torch"):
        monkeypatch.setenv(engines.ENGINE_VARIABLE, engine)
        values = {n: v.requires_grad_() for n, v in tensors("cuda").items()}
        adam = Adam(values, RATES, 1e-15)
        for t in range(9):
            set_gradients(values, t)
            adam.step()
        results.append(values)
    for n in RATES:
        torch.testing.assert_close(results[0][n], results[1][n], rtol=1e-5, atol=1e-6)
