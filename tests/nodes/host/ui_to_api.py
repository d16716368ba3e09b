"""A saved workflow (UI form) as a prompt (API form), strict about every widget.

Does what the front end's graphToPrompt does for the nodes our workflows use: widgets by position,
the extra value after a seed, the widgets below a dynamic combo, links, muted and virtual nodes.
"""

from __future__ import annotations

VIRTUAL = ("Note", "MarkdownNote", "Reroute")
MUTED, BYPASSED = 2, 4
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "LOAD_3D")


def to_prompt(workflow: dict, object_info: dict) -> dict:
    """API form of `workflow`; raises ValueError when it does not fit the nodes' schemas."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in VIRTUAL or node.get("mode") in (MUTED, BYPASSED):
            continue
        if node["type"] not in object_info:
            raise ValueError(f"no node {node['type']} in this ComfyUI")
        info = object_info[node["type"]]
        inputs = _widget_values(node, info)
        known = _all_inputs(info)
        for slot in node.get("inputs", []):
            if slot["name"].split(".")[0] not in known:
                raise ValueError(f"{node['type']} has no input {slot['name']}")
            if slot.get("link") is not None:
                inputs[slot["name"]] = sources[slot["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def _all_inputs(info: dict) -> dict:
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def _widget_values(node: dict, info: dict) -> dict:
    values = list(node.get("widgets_values") or [])
    inputs = {}
    _take(values, _all_inputs(info), "", inputs, node["type"])
    if values:
        raise ValueError(f"{node['type']}: {len(values)} widget values too many: {values}")
    return inputs


def _take(values: list, specs: dict, prefix: str, inputs: dict, owner: str) -> None:
    for name, spec in specs.items():
        kind = spec[0]
        options = spec[1] if len(spec) > 1 else {}
        dynamic = kind == "COMFY_DYNAMICCOMBO_V3"
        if not (dynamic or isinstance(kind, list) or kind in WIDGET_TYPES):
            continue
        if options.get("forceInput"):
            continue
        if not values:
            raise ValueError(f"{owner}: no value for widget {prefix}{name}")
        value = inputs[prefix + name] = values.pop(0)
        choices = kind if isinstance(kind, list) else options.get("options")
        if dynamic:
            chosen = next((o for o in choices if o["key"] == value), None)
            if chosen is None:
                raise ValueError(f"{owner}: {value!r} is no choice of {prefix}{name}")
            below = {**chosen["inputs"].get("required", {}), **chosen["inputs"].get("optional", {})}
            _take(values, below, f"{prefix}{name}.", inputs, owner)
        elif choices and value not in choices:
            raise ValueError(f"{owner}: {value!r} is no choice of {prefix}{name}: {choices}")
        if options.get("control_after_generate"):
            control = values.pop(0)
            if control not in ("fixed", "increment", "decrement", "randomize"):
                raise ValueError(f"{owner}: {control!r} after {prefix}{name} is no control value")
