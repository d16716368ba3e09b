"""The backward promise: what was saved with a released version loads as it was."""

import copy
import json
from pathlib import Path

import pytest
from released_interface import GOLDEN, as_text, complaints, interfaces, widget_names

RELEASED = json.loads(GOLDEN.read_text(encoding="utf-8"))
# nodes as the workflows of version 0.1 saved them, and what each widget value was then
SAVED = json.loads(Path(__file__).with_name("saved_nodes_0_1.json").read_text(encoding="utf-8"))


def test_nothing_released_is_gone_renamed_or_moved(object_info):
    assert complaints(RELEASED, interfaces(object_info)) == []


def test_the_golden_file_knows_every_node_and_input(object_info):
    assert as_text(interfaces(object_info)) == GOLDEN.read_text(encoding="utf-8"), (
        "run released_interface.py, which adds what is new"
    )


@pytest.mark.parametrize("number", range(len(SAVED)), ids=lambda n: SAVED[n]["type"])
def test_a_node_saved_by_version_0_1_reads_back_the_same(number, object_info):
    saved = SAVED[number]
    node = interfaces(object_info)[saved["type"]]
    inputs = {entry["name"]: entry for entry in node["inputs"]}
    assert {name.split(".")[0] for name in saved["inputs"]} <= inputs.keys()
    assert node["outputs"][: len(saved["outputs"])] == saved["outputs"]
    values = saved["widgets_values"]
    chosen = {name: saved["read_as"].get(name) for name, e in inputs.items() if "choices" in e}
    read = dict(zip(widget_names(node["inputs"], chosen), values, strict=False))
    assert read == saved["read_as"]


def names(entries):
    return [entry["name"] for entry in entries]


def input_of(interface, node, name):
    entries = interface[node]["inputs"]
    return entries[names(entries).index(name)]


def swap(entries, first, second):
    i, j = names(entries).index(first), names(entries).index(second)
    entries[i], entries[j] = entries[j], entries[i]


def below(interface, choice):
    return input_of(interface, "V3DOrbitCameras", "orbit")["choices"][choice]


def rename(interface, node, name, new):
    input_of(interface, node, name)["name"] = new


BREACHES = {
    "node gone": lambda now: now.pop("V3DFitSplat"),
    "output renamed": lambda now: now["V3DFitSplat"]["outputs"][0].__setitem__(0, "splats"),
    "output in front": lambda now: now["V3DFitSplat"]["outputs"].insert(0, ["new", "INT"]),
    "output of another type": lambda now: now["V3DFitSplat"]["outputs"][0].__setitem__(1, "MESH"),
    "socket renamed": lambda now: rename(now, "V3DFitSplat", "views", "pictures"),
    "widget renamed": lambda now: rename(now, "V3DFitSplat", "steps", "iterations"),
    "widgets exchanged": lambda now: swap(now["V3DFitSplat"]["inputs"], "steps", "resolution"),
    "widget in between": lambda now: now["V3DFitSplat"]["inputs"].insert(
        2, {"name": "new", "type": "INT"}
    ),
    "seed without its control": lambda now: input_of(now, "V3DFitSplat", "seed").pop("control"),
    "widget became a socket": lambda now: input_of(now, "V3DFitSplat", "steps").update(socket=True),
    "value gone": lambda now: input_of(now, "V3DFitSplat", "preset")["values"].remove("draft"),
    "range narrowed": lambda now: input_of(now, "V3DFitSplat", "sh_degree").update(max=2),
    "choice gone": lambda now: input_of(now, "V3DOrbitCameras", "orbit")["choices"].pop("sv3d"),
    "widget below a choice, before others": lambda now: below(now, "sv3d").append(
        {"name": "new", "type": "INT"}
    ),
    "value below a choice gone": lambda now: below(now, "custom")[-1]["values"].pop(),
    "socket that must be linked": lambda now: now["V3DFitSplat"]["inputs"].append(
        {"name": "new", "type": "MASK", "socket": True}
    ),
    "optional socket that became required": lambda now: input_of(now, "V3DPosedViews", "masks").pop(
        "optional"
    ),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_planted_breach_is_found(breach):
    now = copy.deepcopy(RELEASED)
    BREACHES[breach](now)
    assert complaints(RELEASED, now)


def test_what_is_appended_is_lawful():
    now = copy.deepcopy(RELEASED)
    now["V3DNew"] = {"inputs": [], "outputs": []}
    fit = now["V3DFitSplat"]
    fit["outputs"].append(["new", "MASK"])
    fit["inputs"].append({"name": "new", "type": "INT", "min": 0, "max": 1})
    # sockets have no place among the saved widget values
    fit["inputs"].insert(0, {"name": "more", "type": "MASK", "socket": True, "optional": True})
    input_of(now, "V3DFitSplat", "preset")["values"].insert(0, "new")
    input_of(now, "V3DFitSplat", "sh_degree").update(max=4)
    choices = input_of(now, "V3DOrbitCameras", "orbit")["choices"]
    choices["new"] = [{"name": "new", "type": "INT"}]
    assert complaints(RELEASED, now) == []
