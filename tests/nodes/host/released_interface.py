"""What saved workflows hold on to: ids, sockets, order of widgets, values of combos, ranges.

    python tests/nodes/host/released_interface.py http://127.0.0.1:8188

adds what is new in a running ComfyUI to released_interface.json, before a release. It writes
nothing, and says why, when a saved workflow would not load as it was: nodes, sockets and values are
never taken away or renamed, outputs and widgets come after the released ones, and a new input is
optional or has a default.

A workflow keeps links by the number of an output and the name of an input, and widgets by their
place, where the widgets of the chosen option of a dynamic combo stand right behind it.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from itertools import product
from pathlib import Path

from ui_to_api import WIDGET_TYPES

GOLDEN = Path(__file__).with_name("released_interface.json")
PACK = "custom_nodes.ComfyUI-V3D"
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
# Combos that list files; of these only the values that are always there are kept.
FILE_LISTS = {
    ("V3DLoadViews", "folder"): ["demo orbit (shipped)", "demo picture (shipped)"],
    ("V3DLoadModel", "model_name"): ["V3D-nano (bundled)"],
    ("V3DLoadModel", "clip_vision_name"): ["auto"],
    ("V3DLoadModel", "vae_name"): ["auto"],
    ("V3DLoadSDF", "file"): [],
}


def interfaces(object_info: dict) -> dict:
    """Every node of the pack as the golden file describes it."""
    return {
        node: {
            "inputs": _inputs(node, info["input"]),
            "outputs": [
                [name, kind] for name, kind in zip(info["output_name"], info["output"], strict=True)
            ],
        }
        for node, info in sorted(object_info.items())
        if info["python_module"] == PACK
    }


def _inputs(node: str, groups: dict) -> list[dict]:
    """Inputs in the order of the front end: required ones, then optional ones."""
    found = []
    for group in ("required", "optional"):
        for name, (kind, options) in groups.get(group, {}).items():
            entry = {"name": name, "type": kind}
            if kind == DYNAMIC:
                choices = options["options"]
                entry["choices"] = {c["key"]: _inputs(node, c["inputs"]) for c in choices}
            elif kind == "COMBO":
                entry["values"] = FILE_LISTS.get((node, name), options["options"])
            entry |= {key: options[key] for key in ("min", "max") if key in options}
            if kind not in (*WIDGET_TYPES, DYNAMIC) or options.get("forceInput"):
                entry["socket"] = True
            if group == "optional":
                entry["optional"] = True
            if options.get("control_after_generate"):
                entry["control"] = True
            found.append(entry)
    return found


def widget_names(inputs: list[dict], chosen: dict[str, str], prefix: str = "") -> list[str]:
    """Names of a node's saved widget values, in order, for these choices of dynamic combos."""
    names = []
    for entry in inputs:
        name = prefix + entry["name"]
        if entry.get("socket"):
            continue
        names.append(name)
        if entry.get("control"):  # what happens to a seed after a run
            names.append(f"{name} control")
        if name in chosen and entry["type"] == DYNAMIC:
            below = entry["choices"].get(chosen[name], [])
            names += widget_names(below, chosen, f"{name}.")
    return names


def complaints(released: dict, current: dict) -> list[str]:
    """Every way in which a saved workflow would not load as it was."""
    found = []
    for node, before in released.items():
        if node not in current:
            found.append(f"{node}: the node is gone")
            continue
        now = current[node]
        outputs = now["outputs"][: len(before["outputs"])]
        if outputs != before["outputs"]:
            found.append(f"{node}: outputs were {before['outputs']}, now {now['outputs']}")
        found += _of_inputs(node, before["inputs"], now["inputs"])
        found += _of_widgets(node, before["inputs"], now["inputs"])
    return found


def _of_inputs(owner: str, before: list[dict], now: list[dict]) -> list[str]:
    found = []
    by_name = {entry["name"]: entry for entry in now}
    for old in before:
        where, new = f"{owner}.{old['name']}", by_name.pop(old["name"], None)
        if new is None:
            found.append(f"{where}: the input is gone")
            continue
        for key in ("type", "socket", "control"):
            if old.get(key) != new.get(key):
                found.append(f"{where}: {key} was {old.get(key)}, now {new.get(key)}")
        if old.get("optional") and new.get("socket") and not new.get("optional"):
            found.append(f"{where}: may not be left open any more")
        if gone := [value for value in old.get("values", ()) if value not in new.get("values", ())]:
            found.append(f"{where}: values {gone} are gone")
        if "min" in old and not (new["min"] <= old["min"] and old["max"] <= new["max"]):
            was = f"{old['min']} to {old['max']}"
            found.append(f"{where}: the range was {was}, now {new['min']} to {new['max']}")
        for choice, below in old.get("choices", {}).items():
            if choice not in new.get("choices", {}):
                found.append(f"{where}: values {[choice]} are gone")
            else:
                found += _of_inputs(f"{where}.{choice}", below, new["choices"][choice])
    found += [
        f"{owner}.{name}: a new socket must be optional"
        for name, entry in by_name.items()
        if entry.get("socket") and not entry.get("optional")
    ]
    return found


def _of_widgets(node: str, before: list[dict], now: list[dict]) -> list[str]:
    """For every choice: the released widgets come first, and in their order."""
    combos = {entry["name"]: list(entry["choices"]) for entry in before if "choices" in entry}
    found = []
    for choice in product(*combos.values()):
        chosen = dict(zip(combos, choice, strict=True))
        old, new = widget_names(before, chosen), widget_names(now, chosen)
        if new[: len(old)] != old:
            found.append(f"{node} {chosen or ''}: widgets were {old}, now {new}")
    return found


def as_text(released: dict) -> str:
    """The golden file: one line per input, so that a difference can be read."""
    nodes = []
    for node, parts in released.items():
        inputs = ",\n".join(f"      {json.dumps(entry)}" for entry in parts["inputs"])
        inputs = f"[\n{inputs}\n    ]" if inputs else "[]"
        outputs = json.dumps(parts["outputs"])
        body = f'    "inputs": {inputs},\n    "outputs": {outputs}'
        nodes.append(f"  {json.dumps(node)}: {{\n{body}\n  }}")
    return "{\n" + ",\n".join(nodes) + "\n}\n"


def main(address: str) -> int:
    """Add what is new, or say what may not be."""
    with urllib.request.urlopen(f"{address}/object_info") as answer:
        current = interfaces(json.load(answer))
    released = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.is_file() else {}
    found = complaints(released, current)
    if found:
        sys.stderr.write("nothing was written; saved workflows would break:\n")
        sys.stderr.write("".join(f"  {line}\n" for line in found))
        return 1
    GOLDEN.write_text(as_text(current), encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1].rstrip("/")))
