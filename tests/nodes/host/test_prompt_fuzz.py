"""Prompts with wrong types to a running ComfyUI: each is refused by the host, or by us in our words.

Good prompts get one to three inputs of one node replaced, taken away or added. `V3D_FUZZ=200` tries
so many of each node, `V3D_FUZZ_SEED=7` others.
"""

import collections
import copy
import os
import random
import sys
import time
from pathlib import Path

import pytest
import soak_prompts
from prompts import DEMO, node

TRIES = int(os.environ.get("V3D_FUZZ", "3"))  # of each node
SEED = int(os.environ.get("V3D_FUZZ_SEED", "0"))
LONG_ENOUGH_S = 2.0  # what is still running then was accepted; it is cancelled
ODD = (
    None, True, False, -1, 0, 3, 0.5, 2**63, -(2**70), 1e308, "nan", "inf", "-inf", "", "0", " 7 ",
    "x" * 3000, "../../../etc/passwd", "/etc/passwd", "C:\\x", "a\0b", "\ud800", "%date:yyyy%", "ü ß",
    [], {}, [1, 2, 3], ["1"], ["99", 0], ["1", 99], ["1", -1], ["1", "0"], [0, 0], [["1", 0], 0],
    {"a": {"b": 1}}, {"__value__": [1, 2]}, {"__value__": None}, {"__type__": "IMAGE"},
    ["1", 0], ["2", 0], ["3", 0], {"position": 5, "target": {"x": "a"}}, {"position": {"x": "nan"}},
)  # fmt: skip
# A connection from an input that does not exist to a node that does not exist either ends the
# worker of ComfyUI 0.28.1, whatever the nodes are.
SURPLUS = (*(value for value in ODD if not isinstance(value, list)), ["1", 0])
CLASSES = ("V3DNothing", "", None, 5, "PreviewAny", "V3DExportMesh")


def graphs():
    """Quick prompts with every node of the pack, and the number of each node in one of them."""
    tiny = {"resolution": 32, "steps": 2}
    fit = node(
        "V3DFitSplat", views=["1", 0], seed=0, **(soak_prompts.FIT | tiny | {"max_splats": 300})
    )
    surface = node("V3DFitNeuS", views=["1", 0], seed=0, **(soak_prompts.NEUS | tiny))
    seen = {"splat": ["2", 0], "cameras": ["1", 3], "resolution": 16, **soak_prompts.RENDER}
    pictures = {
        "images": ["1", 1],
        "truth": ["1", 1],
        "masks": ["1", 2],
        "gain": 4.0,
        "truth_is": "straight",
    }
    posed = {"images": ["1", 1], "masks": ["1", 2], "cameras": ["1", 3], "mask_is": "object"}
    made = {"splat": ["2", 0], "views": ["1", 0], "resolution": 16, "smooth": 0, "min_part": 0.05}
    orbit = soak_prompts.orbit()
    camera = {"position": {"x": 0, "y": 0, "z": 2}, "target": {"x": 0, "y": 0, "z": 0}}
    orbit["inputs"]["start_camera"] = camera
    mesh = {"1": soak_prompts.views(), "2": fit, "3": node("V3DMeshFromSplat", **made)}
    field = {"1": soak_prompts.views(), "2": surface}
    models = soak_prompts.prepared()
    sampled = {**soak_prompts.models(), "seed": 0, **soak_prompts.NUMBERS, "frames": 2}
    export = {
        "mesh": ["3", 0],
        "format": "glb",
        "filename_prefix": "fuzz/mesh",
        **soak_prompts.EXPORT,
    }
    refined = node("V3DRefineTexture", mesh=["3", 0], views=["1", 0], **soak_prompts.REFINE)
    shown = soak_prompts.shows
    return {
        "V3DLoadViews": (shown({"1": node("V3DLoadViews", folder=DEMO, split="test")}, "1"), "1"),
        "V3DFitSplat": (shown({"1": soak_prompts.views(), "2": fit}, "2"), "2"),
        "V3DRenderSplat": (shown({"1": soak_prompts.views(), "2": fit, "3": node("V3DRenderSplat", **seen)}, "3"), "3"),
        "V3DScoreViews": (shown({"1": soak_prompts.views(), "2": node("V3DScoreViews", **pictures)}, "2"), "2"),
        "V3DPosedViews": (shown({"1": soak_prompts.views(), "2": node("V3DPosedViews", **posed)}, "2"), "2"),
        "V3DOrbitCameras": (shown({"1": orbit}, "1"), "1"),
        "V3DMeshFromSplat": (shown(mesh, "3"), "3"),
        "V3DCleanMesh": (shown(mesh | {"4": node("V3DCleanMesh", mesh=["3", 0], **soak_prompts.CLEAN)}, "4", 1), "4"),
        "V3DRefineTexture": (shown(mesh | {"4": refined}, "4", 3), "4"),
        "V3DExportMesh": (mesh | {"4": node("V3DExportMesh", **export)}, "4"),
        "V3DFitNeuS": (shown(field, "2", 1), "2"),
        "V3DExtractMesh": (shown(field | {"3": node("V3DExtractMesh", sdf=["2", 0], resolution=16, min_part=0.0, colours=True)}, "3"), "3"),
        "V3DSaveSDF": (field | {"3": node("V3DSaveSDF", sdf=["2", 0], filename_prefix="fuzz/field")}, "3"),
        "V3DLoadSDF": (shown({"1": node("V3DLoadSDF", file="nothing.safetensors")}, "1"), "1"),
        "V3DSaveViews": ({"1": soak_prompts.views(), "2": node("V3DSaveViews", views=["1", 0], filename_prefix="fuzz/views", colmap=True)}, "2"),
        "V3DLoadModel": (shown({"1": models["1"]}, "1"), "1"),
        "V3DPrepareImage": (shown({"2": models["2"], "3": models["3"]}, "3"), "3"),
        "V3DConditioning": (shown(models | {"4": node("V3DConditioning", **sampled)}, "4"), "4"),
        "V3DSampleOrbit": (shown(models | {"4": node("V3DSampleOrbit", model=["1", 0], **sampled, **soak_prompts.SAMPLE)}, "4"), "4"),
        "V3DEnvironment": ({"1": node("V3DEnvironment", try_engines=False)}, "1"),
    }  # fmt: skip


def mutate(graph, number, dice):
    graph = copy.deepcopy(graph)
    entry = graph[number]
    for _ in range(dice.randint(1, 3)):
        names = sorted(entry["inputs"])
        kind = dice.randrange(12)
        if kind == 0 and names:
            del entry["inputs"][dice.choice(names)]
        elif kind == 1:
            entry["inputs"][dice.choice(["surplus", "", "orbit.views", "hidden"])] = dice.choice(
                SURPLUS
            )
        elif kind == 2:
            entry["class_type"] = dice.choice(CLASSES)
        elif names:
            entry["inputs"][dice.choice(names)] = dice.choice(ODD)
    return graph


def outcome(server, graph):
    """What became of a prompt; raises when the answer is neither the host's nor ours."""
    started = time.monotonic()
    run = server.run(
        graph, interrupt_when=lambda *_: time.monotonic() - started > LONG_ENOUGH_S, timeout_s=40
    )
    if run.ended == "execution_error":
        (told,) = [data for _, kind, data in run.events if kind == "execution_error"]
        text, ours = told["exception_message"], told["node_type"].startswith("V3D")
        assert not ours or text.startswith("V3D "), f"{told['exception_type']}: {text}" + "".join(
            told["traceback"][-3:]
        )
        assert len(text) < 2000
        return "ours" if ours else "another node's"
    assert run.ended in ("execution_success", "execution_interrupted", "rejected"), run
    return {"rejected": "the host's"}.get(run.ended, "accepted")


def files_below(folder):
    return {path for path in Path(folder).rglob("*") if path.is_file()}


def test_every_node_is_among_them(object_info):
    assert sorted(graphs()) == sorted(name for name in object_info if name.startswith("V3D"))


@pytest.mark.parametrize("name", sorted(graphs()))
def test_odd_inputs_are_refused_in_words_or_taken(name, server):
    graph, number = graphs()[name]
    dice = random.Random(f"{SEED} {name}")
    before = files_below(server.base.parent)
    counts = collections.Counter()
    for _ in range(TRIES):
        odd = mutate(graph, number, dice)
        try:
            counts[outcome(server, odd)] += 1
        except Exception as error:
            raise AssertionError(f"{odd[number]!r:.800}: {error}") from error
    new = files_below(server.base.parent) - before
    allowed = [server.base / part for part in ("output", "temp", "user")]
    strays = [path for path in new if not any(path.is_relative_to(part) for part in allowed)]
    assert not [path for path in strays if not path.name.startswith(("comfyui.db", "server.log"))]
    sys.stdout.write(f"{name}: {TRIES} tried, {dict(counts)}\n")
    assert sum(counts.values()) == TRIES
    assert server.process.poll() is None
