"""Fixed storage of the optimised Gaussians, and the edits of their set."""

import math

import pytest
import torch

from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.splats import engines
from v3d_core.splats.densify import (
    EMPTY_LOG_SCALE,
    EMPTY_LOGIT,
    SPLIT_OFFSET,
    SPLIT_SHRINK,
    Parameters,
    split_and_prune,
)
from v3d_core.splats.projection import MAX_ALPHA, MIN_ALPHA, quats_to_rotations
from v3d_core.splats.raster import rasterize
from v3d_core.structures import GaussianSplats

NAMES = ("means", "log_scales", "quats", "logit_opacities", "sh_dc", "sh_rest")
FIELDS = ("means", "scales", "quats", "opacities", "sh")


def some_splats(count=6, bases=4, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return GaussianSplats(
        0.3 * normal(count, 3),
        torch.rand(count, 3, generator=generator) * 0.1 + 0.05,
        torch.nn.functional.normalize(normal(count, 4), dim=-1),
        torch.linspace(0.1, 0.9, count),
        normal(count, bases, 3),
    )


def some_parameters(count=6, capacity=10, **options):
    splats = some_splats(count, **options)
    return Parameters(splats, dict.fromkeys(NAMES, 0.01), capacity), splats


def snapshot(parameters):
    """Copies of all values and of both moments."""
    adam = parameters.adam
    return [
        {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for tensors in (parameters.values, adam.means, adam.squares)
    ]


def step_over_pictures(parameters, weights=None):
    """One step of Adam from the gradient of rendered pictures, which is returned."""
    cameras = orbit_cameras(Orbit(num_views=2, elevation_deg=10), 24, 24)
    pictures = rasterize(*parameters.activated(), cameras)
    parameters.forget_gradients()
    pictures.square().sum().backward()
    parameters.adam.step()
    return {name: value.grad for name, value in parameters.values.items()}


def split(parameters, pull, budget, prune_opacity):
    """`split_and_prune` after the pictures have pulled at the Gaussians so hard."""
    parameters.pull.copy_(pull)
    result = split_and_prune(parameters, budget, prune_opacity)
    assert not parameters.pull.any()  # starts anew
    return result


def assert_same_slots(before, after, slots):
    for old, new in zip(before, after, strict=True):
        for name in old:
            assert torch.equal(old[name][slots], new[name][slots]), name


def test_what_goes_in_comes_out():
    parameters, splats = some_parameters()
    out = parameters.splats()
    assert len(parameters) == len(out) == 6
    for name in FIELDS:
        torch.testing.assert_close(getattr(out, name), getattr(splats, name))
    out.means.zero_()  # shares no memory
    torch.testing.assert_close(parameters.splats().means, splats.means)


def test_opacities_stay_where_the_rasterisers_give_gradients():
    parameters, _ = some_parameters()
    splats = some_splats()
    opaque = GaussianSplats(splats.means, splats.scales, splats.quats, torch.ones(6), splats.sh)
    parameters = Parameters(opaque, dict.fromkeys(NAMES, 0.01), 6)
    assert bool((parameters.opacities() < MAX_ALPHA).all())
    assert bool(parameters.values["logit_opacities"].isfinite().all())


def test_more_splats_than_room_are_refused():
    with pytest.raises(ValueError, match="6 splats do not fit into room for 5"):
        some_parameters(6, capacity=5)


@pytest.mark.parametrize(
    "engine", engines.available_engines(torch.device("cpu")), ids=lambda e: e.name
)
def test_empty_slots_are_never_drawn_and_get_no_gradient(engine, monkeypatch):
    monkeypatch.setenv(engines.ENGINE_VARIABLE, engine.name)
    roomy, _ = some_parameters(6, capacity=40)
    exact, _ = some_parameters(6, capacity=6)
    cameras = orbit_cameras(Orbit(num_views=2), 24, 24)
    pictures = [rasterize(*p.activated(), cameras) for p in (roomy, exact)]
    assert torch.equal(*pictures)
    for _ in range(3):
        with_room, without = step_over_pictures(roomy), step_over_pictures(exact)
        for name in NAMES:
            assert not with_room[name][6:].any(), name
            assert bool(with_room[name][:6].any()), name
            error = (with_room[name][:6] - without[name]).norm()
            assert float(error) <= 1e-4 * float(without[name].norm()), name
    for name, value in roomy.values.items():  # ... so that Adam leaves them where they were
        assert torch.equal(value[6:], torch.full_like(value[6:], _filler(name))), name
    assert len(roomy) == 6 and len(roomy.splats()) == 6


def _filler(name):
    fillers = {"logit_opacities": EMPTY_LOGIT, "log_scales": EMPTY_LOG_SCALE, "quats": 1.0}
    return fillers.get(name, 0.0)


def test_storage_never_moves():
    parameters, _ = some_parameters()

    def addresses():
        adam = parameters.adam
        tensors = [*parameters.values.values(), *adam.means.values(), *adam.squares.values()]
        return [tensor.data_ptr() for tensor in tensors]

    before = addresses()
    step_over_pictures(parameters)
    split(parameters, torch.ones(10), budget=10, prune_opacity=0.2)
    parameters.adam.set_rates(dict.fromkeys(NAMES, 0.5))
    step_over_pictures(parameters)
    assert addresses() == before
    assert all(value.requires_grad and value.is_leaf for value in parameters.values.values())


def test_put_changes_its_slots_and_nothing_else():
    parameters, _ = some_parameters()
    for _ in range(3):
        step_over_pictures(parameters)
    before = snapshot(parameters)
    slots = torch.tensor([8, 1, 4])
    new = {name: torch.rand_like(value[:3]) for name, value in before[0].items()}
    parameters.put(slots, new)
    values, *moments = after = snapshot(parameters)
    assert_same_slots(before, after, [0, 2, 3, 5, 6, 7, 9])
    for name in NAMES:
        assert torch.equal(values[name][slots], new[name])
        for moment in moments:
            assert not moment[name][slots].any()
            assert bool(moment[name][[0, 2, 3, 5]].any())


def test_split_replaces_the_neediest_by_two_symmetric_halves():
    parameters, before = some_parameters()
    scores = torch.tensor([0.0, 5.0, 1.0, 9.0, 2.0, 0.5, 0, 0, 0, 0])
    assert split(parameters, scores, budget=8, prune_opacity=0.005) == (0, 2)
    after = parameters.splats()
    assert len(after) == 8
    untouched = [0, 2, 4, 5]
    torch.testing.assert_close(after.means[untouched], before.means[untouched])
    # the first child takes the parent's slot, the second the first empty ones in order of need
    for parent, second in ((3, 6), (1, 7)):
        longest = int(before.scales[parent].argmax())
        width = before.scales[parent, longest]
        axis = quats_to_rotations(before.quats[parent][None])[0][:, longest]
        centre = (after.means[parent] + after.means[second]) / 2
        torch.testing.assert_close(centre, before.means[parent])
        apart = after.means[parent] - after.means[second]
        torch.testing.assert_close(apart, axis * width * 2 * SPLIT_OFFSET)
        for child in (parent, second):
            shrink = torch.ones(3)
            shrink[longest] = 1 / SPLIT_SHRINK
            torch.testing.assert_close(after.scales[child], before.scales[parent] * shrink)
            for name in ("quats", "opacities", "sh"):
                torch.testing.assert_close(
                    getattr(after, name)[child], getattr(before, name)[parent]
                )


def test_split_leaves_other_slots_and_their_moments_bit_for_bit():
    parameters, _ = some_parameters()
    for _ in range(3):
        step_over_pictures(parameters)
    before = snapshot(parameters)
    scores = torch.tensor([0.0, 5.0, 1.0, 9.0, 2.0, 0.5, 0, 0, 0, 0])
    split(parameters, scores, budget=8, prune_opacity=0.005)
    after = snapshot(parameters)
    assert_same_slots(before, after, [0, 2, 4, 5, 8, 9])
    for moments in after[1:]:  # children start without momentum
        for moment in moments.values():
            assert not moment[[1, 3, 6, 7]].any()


def test_faint_gaussians_go_and_the_others_stay_bit_for_bit():
    parameters, _ = some_parameters()  # opacities 0.1, 0.26, ..., 0.9
    step_over_pictures(parameters)
    before = snapshot(parameters)
    removed, halved = split(parameters, torch.zeros(10), budget=10, prune_opacity=0.3)
    assert (removed, halved, len(parameters)) == (2, 0, 4)
    assert_same_slots(before, snapshot(parameters), [2, 3, 4, 5])
    assert bool((parameters.values["logit_opacities"][[0, 1]] == EMPTY_LOGIT).all())
    assert float(parameters.splats().opacities.min()) > 0.3
    again = split(parameters, torch.zeros(10), budget=10, prune_opacity=0.3)
    assert again == (0, 0)  # empty slots are not removed once more


def test_slots_of_removed_gaussians_are_used_again():
    parameters, _ = some_parameters(6, capacity=6)
    step_over_pictures(parameters)
    scores = torch.tensor([9.0, 0, 0, 0, 0, 1.0])  # the neediest is the faintest, and goes
    assert split(parameters, scores, budget=6, prune_opacity=0.2) == (1, 1)
    assert len(parameters) == 6
    torch.testing.assert_close(parameters.opacities()[0], parameters.opacities()[5])
    for moments in (parameters.adam.means, parameters.adam.squares):
        assert not any(bool(moment[[0, 5]].any()) for moment in moments.values())
    step_over_pictures(parameters)  # goes on without complaint


@pytest.mark.parametrize(
    ("budget", "scores", "expected"),
    [
        (6, torch.ones(10), 0),  # full
        (3, torch.ones(10), 0),  # over full: nothing is taken away
        (8, torch.ones(10), 2),
        (10, torch.ones(10), 4),  # ties are split in order
        (99, torch.ones(10), 4),  # never more than there is room for
        (10, torch.zeros(10), 0),  # nobody asks
        (10, torch.tensor([0.0, 0, 3, 0, 0, 0, 7, 7, 7, 7]), 1),  # empty slots do not count
    ],
)
def test_budget_and_need_bound_the_splits(budget, scores, expected):
    parameters, before = some_parameters()
    assert split(parameters, scores, budget, prune_opacity=0.005) == (0, expected)
    assert len(parameters) == 6 + expected
    if not expected:
        torch.testing.assert_close(parameters.splats().means, before.means)


def test_a_split_hardly_changes_the_picture():
    splats = some_splats(30, bases=1)
    parameters = Parameters(splats, dict.fromkeys(NAMES, 0.01), 60)
    cameras = orbit_cameras(Orbit(num_views=2), 48, 48)
    before = rasterize(*parameters.activated(), cameras).detach()
    split(parameters, torch.ones(60), budget=60, prune_opacity=0.005)
    after = rasterize(*parameters.activated(), cameras).detach()
    assert len(parameters) == 60
    assert float((after - before).square().mean()) < 0.1 * float(before.square().mean())


def test_hardly_visible_gaussians_are_not_handed_out():
    parameters, _ = some_parameters()
    logit = math.log(0.5 * MIN_ALPHA / MAX_ALPHA)
    with torch.no_grad():
        parameters.values["logit_opacities"][2] = logit
    assert len(parameters) == 6 and len(parameters.splats()) == 5
