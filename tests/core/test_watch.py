"""When a fit stops by itself, and LPIPS as a loss."""

import dataclasses

import pytest
import torch

from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.demo_object import demo_robot
from v3d_core.procedural import render_object
from v3d_core.splats import fit as fit_module
from v3d_core.splats.config import SplatFitConfig
from v3d_core.splats.fit import fit_splats
from v3d_core.splats.watch import LEAST_GAIN, LOOKS, PATIENCE, Watch

TINY = SplatFitConfig(
    steps=40,
    resolution=32,
    coarse_until=0.0,
    initial_splats=500,
    max_splats=600,
    hull_resolution=32,
    align="off",
)


class Losses:
    """A stepper whose mean loss is told beforehand."""

    def __init__(self, values):
        self.values = iter(values)

    def mean_loss_since_last_look(self):
        return next(self.values)


def looks_until_stall(losses, early_stop=True):
    watch = Watch(dataclasses.replace(TINY, early_stop=early_stop), None)
    stepper = Losses(losses)
    for look in range(len(losses)):
        # twice per look: in between nothing is read
        if watch.stalls((look + 1) / LOOKS, stepper, None):
            return look + 1
        assert not watch.stalls((look + 1.5) / LOOKS, stepper, None)
    return None


def test_a_loss_that_falls_never_stalls_and_a_flat_one_does():
    falling = [0.1 * (1 - 2 * LEAST_GAIN) ** k for k in range(LOOKS)]
    assert looks_until_stall(falling) is None
    assert looks_until_stall([0.1] * LOOKS) == 1 + PATIENCE
    assert looks_until_stall([0.1] * 3 + [0.05] + [0.06] * LOOKS) == 4 + PATIENCE
    assert looks_until_stall([0.1] * LOOKS, early_stop=False) is None


@pytest.fixture(scope="module")
def robot():
    return render_object(orbit_cameras(Orbit(num_views=8), 32, 32), demo_robot(), supersample=1)


def test_a_fit_stops_when_held_out_views_gain_no_more(robot, monkeypatch):
    monkeypatch.setattr("v3d_core.splats.watch.psnr_on_white", lambda *_: 20.0)
    config = dataclasses.replace(TINY, steps=100, early_stop=True)
    report = fit_splats(robot, config, test_views=robot[:2]).report
    assert report["stopped"] == "no more gain"
    assert report["steps"] == 100 // LOOKS * (1 + PATIENCE)
    again = fit_splats(robot, dataclasses.replace(config, early_stop=False), test_views=robot[:2])
    assert again.report["stopped"] == "all steps" and again.report["steps"] == 100


def test_lpips_without_its_network_is_refused_with_the_remedy(robot, monkeypatch):
    monkeypatch.setattr(
        fit_module,
        "load_lpips_network",
        lambda: (None, "lpips is not installed; pip install lpips"),
    )
    with pytest.raises(ValueError, match=r"lpips_weight is 0\.3, but .*pip install lpips.*set it"):
        fit_splats(robot, dataclasses.replace(TINY, lpips_weight=0.3))


def test_lpips_is_minimised_with_its_weight(robot, monkeypatch):
    """A stand-in network that wants everything black: the more weight, the darker the splat."""

    class WantsBlack(torch.nn.Module):
        def forward(self, pictures, targets):
            assert pictures.shape == targets.shape and pictures.shape[1] == 3
            assert -1 <= float(targets.min()) and float(targets.max()) <= 1
            return (pictures + 1).mean((1, 2, 3), keepdim=True)

    monkeypatch.setattr(fit_module, "load_lpips_network", lambda: (WantsBlack(), "stand-in"))
    brightness = [
        float(fit_splats(robot, dataclasses.replace(TINY, lpips_weight=weight)).splats.sh.mean())
        for weight in (0.0, 0.2, 2.0)
    ]
    assert brightness[0] > brightness[1] > brightness[2]
