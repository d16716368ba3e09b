"""Prompts from graphs and workflows, and checks of what they show, for tests with a server."""

from __future__ import annotations

import io
import json
import math

import numpy as np
from PIL import Image
from scenes import REPOSITORY
from ui_to_api import to_prompt

DEMO = "demo orbit (shipped)"
# Enough to see what is up and what is left, in seconds on a CPU without any engine.
QUICK_FIT = {"preset": "draft", "resolution": 96, "max_splats": 4000, "steps": 80}
QUICK_NEUS = {"preset": "draft", "resolution": 96, "steps": 40, "frames": "agree"}
QUICK = {
    "V3DFitSplat": QUICK_FIT,
    "V3DMeshFromSplat": {"resolution": 64},
    "V3DFitNeuS": QUICK_NEUS,
    "V3DExtractMesh": {"resolution": 64},
    "SplatToMesh": {"resolution": 64},
    "V3DCleanMesh": {"faces": 4000, "max_error": 100.0},
    "V3DRefineTexture": {"texture_size": 256},
    "RenderSplat": {"width": 256, "height": 256},
}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def workflow_prompt(name, object_info, changes):
    workflow = json.loads((REPOSITORY / "workflows" / f"{name}.json").read_text())
    prompt = to_prompt(workflow, object_info)
    for entry in prompt.values():
        entry["inputs"] |= changes.get(entry["class_type"], {})
    return prompt


def only(prompt, kind):
    (found,) = [number for number, entry in prompt.items() if entry["class_type"] == kind]
    return found


def picture(server, shown):
    query = "&".join(f"{key}={shown[key]}" for key in ("filename", "subfolder", "type"))
    data = Image.open(io.BytesIO(server.get(f"/view?{query}"))).convert("RGB")
    return np.asarray(data, dtype=np.float64) / 255


def demo_frame(index):
    path = REPOSITORY / "v3d_core" / "data" / "demo_orbit" / f"r_{index:03d}.png"
    frame = Image.open(path)
    white = Image.new("RGBA", frame.size, "white")
    return np.asarray(Image.alpha_composite(white, frame).convert("RGB"), np.float64) / 255


def psnr(a, b):
    return -10 * math.log10(((a - b) ** 2).mean())


def assert_shows_frame(image, index):
    """Like the demo's frame, and clearly less like its mirror image or upside down."""
    assert_shows(image, demo_frame(index))


def assert_shows(image, frame):
    """The same for any picture."""
    same = psnr(image, frame)
    assert same > 20, same
    assert same > psnr(image[:, ::-1], frame) + 4
    assert same > psnr(image[::-1], frame) + 4


def assert_is_the_robot(vertices, colours):
    """Yellow hand at +X, purple ring at -X, green bulb on top, blue rucksack behind."""
    low, high = vertices.min(0), vertices.max(0)

    def mean_colour(axis, end):
        beyond = vertices[:, axis] * end > 0.93 * (high[axis] if end > 0 else -low[axis])
        return colours[beyond].mean(0)

    red, green, blue = mean_colour(0, 1)
    assert min(red, green) > blue + 0.3
    red, green, blue = mean_colour(0, -1)
    assert min(red, blue) > green + 0.1
    red, green, blue = mean_colour(1, 1)
    assert green > max(red, blue) + 0.1
    red, green, blue = mean_colour(2, -1)
    assert blue > max(red, green) + 0.1
