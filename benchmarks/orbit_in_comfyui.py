"""Times V3D Sample Orbit in a real ComfyUI on a GPU at full size, beside core's KSampler chain.

    COMFYUI_PATH=... python benchmarks/orbit_in_comfyui.py --work FOLDER --out results.json

Makes model files of V3D's size with random weights in FOLDER (6 GB), starts the server once for
each set of options, and runs the same orbit through our node and through V3D Conditioning, KSampler
and VAE Decode. Seconds are those between the host's own events.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "nodes" / "host"))

from comfy_server import ComfyServer

from v3d_core.diffusion.checkpoint import part_layout
from v3d_core.diffusion.layout import ClipShape, UNetShape, VaeShape
from v3d_core.formats.weights import write_safetensors

REPOSITORY = Path(__file__).resolve().parents[1]
PARTS = {
    "V3D.safetensors": (
        ("model.diffusion_model.", UNetShape()),
        ("first_stage_model.", VaeShape()),
    ),
    "svd_clip.safetensors": (("conditioner.embedders.0.open_clip.model.visual.", ClipShape()),),
}


def write_model(path: Path, parts, device: torch.device) -> None:
    """Weights of variance 1 / fan-in in float16."""
    layout = {
        prefix + name: (torch.float16, shape)
        for prefix, network in parts
        for name, shape in part_layout(network, "sgm").items()
    }

    def tensors():
        for name, (dtype, shape) in layout.items():
            if len(shape) > 1:
                value = torch.randn(shape, device=device) / math.sqrt(math.prod(shape[1:]))
            else:
                value = torch.full(shape, float(name.endswith("weight")), device=device)
            yield name, value.to(dtype).cpu()

    write_safetensors(path, tensors(), layout)


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph(seed: int, steps: int, ours: bool, in_work: int = 0) -> dict:
    """An orbit by our node, or by core's nodes on our conditioning."""
    numbers = {
        "frames": 18,
        "fps_id": 1.0,
        "motion_bucket_id": 300.0,
        "cond_aug": 0.02,
        "vae_mode": "mode",
    }
    prompt = {
        "1": node(
            "V3DLoadModel",
            model_name="V3D.safetensors",
            clip_vision_name="svd_clip.safetensors",
            vae_name="auto",
        ),
        "2": node("LoadImage", image="picture.png"),
    }
    picture = {"clip_vision": ["1", 1], "vae": ["1", 2], "image": ["2", 0], "seed": seed}
    if ours:
        widgets = {"steps": steps, "guidance": "constant", "scale": 3.5, "min_scale": 1.0}
        prompt["3"] = node(
            "V3DSampleOrbit", model=["1", 0], **picture, **widgets, decode_frames=in_work, **numbers
        )
        prompt["4"] = node("PreviewImage", images=["3", 0])
        prompt["5"] = node("PreviewAny", source=["3", 2])
        return prompt
    prompt["3"] = node("V3DConditioning", **picture, **numbers)
    prompt["6"] = node(
        "KSampler",
        model=["1", 0],
        seed=seed,
        steps=steps,
        cfg=3.5,
        sampler_name="euler",
        scheduler="karras",
        positive=["3", 0],
        negative=["3", 1],
        latent_image=["3", 2],
        denoise=1.0,
    )
    prompt["7"] = node("VAEDecode", samples=["6", 0], vae=["1", 2])
    prompt["4"] = node("PreviewImage", images=["7", 0])
    return prompt


def seconds_of_nodes(run) -> dict[str, float]:
    """Between one `executing` event and the next."""
    marks = [(t, d.get("node")) for t, kind, d in run.events if kind == "executing"]
    pairs = itertools.pairwise(marks)
    return {str(name): round(end - start, 2) for (start, name), (end, _) in pairs}


def frames_of(server, run) -> np.ndarray:
    """The previewed frames."""
    pictures = []
    for shown in run.outputs["4"]["images"]:
        query = "&".join(f"{key}={shown[key]}" for key in ("filename", "subfolder", "type"))
        pictures.append(np.asarray(Image.open(io.BytesIO(server.get(f"/view?{query}")))))
    return np.stack(pictures).astype(np.float64) / 255


def measure(base: Path, options: list[str], steps: int) -> dict:
    """One server: a cold orbit, a warm one, the same with core's nodes, and a warm one again."""
    server = ComfyServer(base, *options, device="")
    try:
        server.wait_until_ready()
        rows: dict = {"options": options, "runs": []}
        pictures = {}
        for name, seed, ours, in_work in (
            ("cold", 1, True, 0),
            ("ours", 2, True, 0),
            ("core", 2, False, 0),
            ("ours again", 3, True, 0),
            ("core again", 3, False, 0),
            ("ours third", 4, True, 0),
            ("core third", 4, False, 0),
            ("ours, 4 in work", 2, True, 4),
        ):
            run = server.run(graph(seed, steps, ours, in_work), timeout_s=300)
            row = {"name": name, "ended": run.ended, "error": run.error[:500]}
            row["seconds"] = seconds_of_nodes(run)
            if run.ended == "execution_success":
                pictures[name] = frames_of(server, run)
                if ours:
                    row["report"] = json.loads(run.outputs["5"]["text"][0])
            rows["runs"].append(row)
            print(json.dumps(row))
        for other in ("core", "ours, 4 in work"):
            if {"ours", other} <= set(pictures):
                difference = np.abs(pictures["ours"] - pictures[other])
                rows[f"difference to {other}"] = {
                    "max": difference.max(),
                    "mean": difference.mean(),
                }
                print(other, difference.max(), difference.mean())
        rows["log"] = [line for line in server.log.splitlines() if "V3D" in line or "VRAM" in line]
        return rows
    finally:
        server.stop()
        print(server.log[-1500:] if server.process.returncode not in (0, -15) else "")


def main() -> None:
    """Run every set of options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--options", default=",--lowvram", help="sets of options, comma between")
    parser.add_argument("--always", default="", help="options for every server")
    options = parser.parse_args()
    checkpoints = options.work / "models" / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    (options.work / "input").mkdir(exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    for name, parts in PARTS.items():
        if not (checkpoints / name).is_file():
            write_model(checkpoints / name, parts, device)
    torch.cuda.empty_cache()
    picture = np.full((512, 512, 3), 255, np.uint8)
    picture[130:380, 180:330] = (200, 60, 30)
    Image.fromarray(picture).save(options.work / "input" / "picture.png")
    pack = options.work / "custom_nodes" / "ComfyUI-V3D"
    pack.parent.mkdir(exist_ok=True)
    if not pack.exists():
        os.symlink(REPOSITORY, pack, target_is_directory=True)
    results = [
        measure(options.work, (options.always + " " + words).split(), options.steps)
        for words in options.options.split(",")
    ]
    options.out.write_text(json.dumps(results, indent=2, default=float) + "\n")
    shutil.rmtree(options.work / "temp", ignore_errors=True)


if __name__ == "__main__":
    main()
