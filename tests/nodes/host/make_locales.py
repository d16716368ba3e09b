"""Writes locales/en/nodeDefs.json from a running ComfyUI and brings the other languages into its shape.

    python tests/nodes/host/make_locales.py http://127.0.0.1:8188

English says what the node schemas say, so run this whenever one of their texts changes. In the
other languages the translation of a changed text is taken out and printed beside the new English,
so that nothing out of date stays; the tests fail until it is translated again. To add a language,
make its folder (one of the front end's codes) with {} in nodeDefs.json and run this.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

LOCALES = Path(__file__).resolve().parents[3] / "locales"
PACK = "custom_nodes.ComfyUI-V3D"
Texts = dict[tuple[str, ...], str]  # by the keys that lead to them


def english(object_info: dict) -> dict:
    """The texts of all our nodes, in the form of the front end's nodeDefs.json."""
    return {
        node: _node_texts(info)
        for node, info in object_info.items()
        if info["python_module"] == PACK
    }


def _node_texts(info: dict) -> dict:
    inputs: dict[str, dict[str, str]] = {}
    for name, spec in _specs(info["input"]):
        inputs[name] = _input_texts(name, spec)
        inputs |= _choice_texts(name, spec)
    outputs = {
        str(index): {"name": name, "tooltip": tooltip}
        for index, (name, tooltip) in enumerate(
            zip(info["output_name"], info["output_tooltips"], strict=True)
        )
    }
    texts = {"display_name": info["display_name"], "description": info["description"]}
    return texts | {"inputs": inputs} | ({"outputs": outputs} if outputs else {})


def _specs(inputs: dict) -> list[tuple[str, list]]:
    return [*inputs.get("required", {}).items(), *inputs.get("optional", {}).items()]


def _input_texts(name: str, spec: list) -> dict[str, str]:
    return {"name": spec[1].get("display_name", name), "tooltip": spec[1]["tooltip"]}


def _choice_texts(combo: str, spec: list) -> dict[str, dict[str, str]]:
    """Inputs below the choices of a dynamic combo.

    The front end calls them combo.name and looks for combo_name. Choices may share a name; where
    their tooltips differ, the text says which choice each belongs to.
    """
    found: dict[str, dict[str, str]] = {}  # name -> tooltip by choice
    for choice in spec[1].get("options", []):
        if isinstance(choice, dict):
            for name, below in _specs(choice["inputs"]):
                found.setdefault(name, {})[choice["key"]] = below[1]["tooltip"]
    texts = {}
    for name, tooltips in found.items():
        one = len(set(tooltips.values())) == 1
        lines = [text if one else f"{choice}: {text}" for choice, text in tooltips.items()]
        texts[f"{combo}_{name}"] = {"name": name, "tooltip": lines[0] if one else " ".join(lines)}
    return texts


def flat(tree: dict, path: tuple[str, ...] = ()) -> Texts:
    """Texts by the keys that lead to them, in the tree's order."""
    texts: Texts = {}
    for key, value in tree.items():
        below = (*path, key)
        texts |= flat(value, below) if isinstance(value, dict) else {below: value}
    return texts


def grown(texts: Texts) -> dict:
    """The opposite of `flat`."""
    tree: dict = {}
    for path, text in texts.items():
        branch = tree
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = text
    return tree


def read(language: str) -> dict:
    """What a language says now; {} when its file is not there."""
    path = LOCALES / language / "nodeDefs.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(language: str, tree: dict) -> None:
    """Replace a language's file."""
    path = LOCALES / language / "nodeDefs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")


def languages() -> list[str]:
    """All languages but English."""
    return sorted(folder.name for folder in LOCALES.iterdir() if folder.name != "en")


def still_right(old: Texts, before: Texts, now: Texts) -> Texts:
    """Translations of texts whose English is what it was, in the order of the new English."""
    return {path: old[path] for path in now if path in old and before.get(path) == now[path]}


def main(address: str) -> None:
    """Write English, then take out of the others what no longer says the same."""
    with urllib.request.urlopen(f"{address}/object_info") as answer:
        tree = english(json.load(answer))
    before, now = flat(read("en")), flat(tree)
    write("en", tree)
    for language in languages():
        old = flat(read(language))
        kept = still_right(old, before, now)
        write(language, grown(kept))
        for path in now.keys() - kept.keys():
            was = old.get(path, "")
            sys.stdout.write(f"{language} {'.'.join(path)}\n  {now[path]}\n  was: {was}\n")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
