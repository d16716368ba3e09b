"""The figures that a running fit sends to the panel on its node."""

import itertools
import math

import pytest
from prompts import DEMO, QUICK_FIT, QUICK_NEUS, node


@pytest.mark.parametrize(
    ("kind", "widgets", "told"),
    [
        ("V3DFitSplat", QUICK_FIT | {"views_per_step": 0, "sh_degree": -1}, {"loss", "splats"}),
        ("V3DFitNeuS", QUICK_NEUS | {"normals_convention": "opengl"}, {"loss", "psnr"}),
    ],
)
def test_a_fit_tells_its_loss_while_it_runs(kind, widgets, told, server):
    graph = {
        "1": node("V3DLoadViews", folder=DEMO, split="train"),
        "4": node(kind, views=["1", 0], seed=71, **widgets),
        "5": node("PreviewAny", source=["4", 1]),
    }
    run = server.run(graph)
    assert run.ended == "execution_success", run.error
    sent = [(time, data) for time, kind, data in run.events if kind == "v3d.fit"]
    assert {data["node_id"] for _, data in sent} == {"4"}
    last = sent[-1][1]
    assert (last["step"], last["left"]) == (last["total"], 0)
    gaps = [b[0] - a[0] for a, b in itertools.pairwise(sent[:-1])]
    assert sum(gaps) >= 0.2 * len(gaps)  # at most about four a second
    points = [point for _, data in sent for point in data["points"]]
    losses = [point for point in points if "loss" in point]
    assert losses and all(told <= point.keys() for point in losses)
    assert all(math.isfinite(value) for point in points for value in point.values())
    steps = [point["step"] for point in points]
    assert steps == sorted(steps) and steps[-1] <= last["total"]
    if kind == "V3DFitSplat":
        assert losses[-1]["loss"] < losses[0]["loss"]
        assert any(point.get("psnr", 0) > 10 for point in points)  # with every preview
