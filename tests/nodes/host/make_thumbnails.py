"""Writes workflows/*.jpg: runs both workflows in a running ComfyUI and pictures what they made.

    python tests/nodes/host/make_thumbnails.py http://127.0.0.1:8188 OUTPUT_FOLDER

OUTPUT_FOLDER is the server's output folder. The splat's picture is core's own rendering; core has
no mesh renderer, so the .glb is drawn here with a point per bit of surface.
"""

from __future__ import annotations

import io
import json
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
from ui_to_api import to_prompt

REPOSITORY = Path(__file__).resolve().parents[3]
SIZE = 512
AZIMUTH_DEG, ELEVATION_DEG, RADIUS, FOV_DEG = 40.0, 15.0, 1.9, 50.0
SURFACE_POINTS = 3_000_000


def fetch(url: str, body: dict | None = None) -> bytes:
    """Answer to a GET, or to a POST of `body`."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return answer.read()


def run(server: str, name: str) -> tuple[dict, dict]:
    """Prompt and outputs of a workflow, with its own widget values."""
    workflow = json.loads((REPOSITORY / "workflows" / f"{name}.json").read_text())
    prompt = to_prompt(workflow, json.loads(fetch(f"{server}/object_info")))
    queued = json.loads(fetch(f"{server}/prompt", {"prompt": prompt}))["prompt_id"]
    while not (history := json.loads(fetch(f"{server}/history/{queued}"))):
        time.sleep(1)
    return prompt, history[queued]["outputs"]


def splat_picture(server: str) -> Image.Image:
    """The third frame of the turntable."""
    prompt, outputs = run(server, "frames_to_splat")
    number = next(
        n
        for n, entry in prompt.items()
        if entry["class_type"] == "PreviewImage"
        and prompt[entry["inputs"]["images"][0]]["class_type"] == "RenderSplat"
    )
    query = urllib.parse.urlencode(outputs[number]["images"][2])
    return Image.open(io.BytesIO(fetch(f"{server}/view?{query}")))


def mesh_picture(server: str, output: Path) -> Image.Image:
    """The .glb seen from the upper right, shaded by its normals."""
    prompt, outputs = run(server, "frames_to_mesh")
    number = next(n for n, entry in prompt.items() if entry["class_type"] == "SaveGLB")
    (shown,) = outputs[number]["3d"]
    scene = trimesh.load(output / shown["subfolder"] / shown["filename"], process=False)
    mesh = next(iter(scene.geometry.values()))
    linear = np.asarray(mesh.visual.vertex_attributes["color"], np.float64)[:, :3]
    points, faces = trimesh.sample.sample_surface(mesh, SURFACE_POINTS, seed=0)
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[faces], points)
    colours = (linear[mesh.faces[faces]] * weights[..., None]).sum(1)
    light = np.array([0.4, 0.7, 0.6]) / np.linalg.norm([0.4, 0.7, 0.6])
    colours *= (0.55 + 0.45 * (mesh.face_normals[faces] @ light).clip(0))[:, None]
    return draw(points, colours.clip(0, 1) ** (1 / 2.2), 2 * SIZE).resize((SIZE, SIZE), Image.BOX)


def draw(points: np.ndarray, colours: np.ndarray, size: int) -> Image.Image:
    """Points [N, 3] with colours [N, 3] on white, nearest in front."""
    azimuth, elevation = np.radians([AZIMUTH_DEG, ELEVATION_DEG])
    back = np.array(
        [
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
            np.cos(elevation) * np.cos(azimuth),
        ]
    )
    right = np.array([np.cos(azimuth), 0, -np.sin(azimuth)])
    axes = np.stack([right, -np.cross(back, right), back])
    x, y, z = axes @ (points - RADIUS * back).T
    focal = size / 2 / np.tan(np.radians(FOV_DEG) / 2)
    column = np.floor(size / 2 - focal * x / z).astype(int)
    row = np.floor(size / 2 - focal * y / z).astype(int)
    order = np.argsort(z)  # far ones first, so that near ones overwrite them
    canvas = np.ones((size + 1, size + 1, 3))
    square = [(0, 0), (0, 1), (1, 0), (1, 1)]  # pixels of a point: no holes to see through
    rows = np.stack([row[order] + down for down, _ in square], 1).clip(0, size).ravel()
    columns = np.stack([column[order] + across for _, across in square], 1).clip(0, size).ravel()
    canvas[rows, columns] = colours[order].repeat(len(square), axis=0)
    canvas = canvas[:size, :size]
    return Image.fromarray((canvas * 255).round().astype(np.uint8))


def main() -> None:
    """Write both thumbnails."""
    server, output = sys.argv[1].rstrip("/"), Path(sys.argv[2])
    folder = REPOSITORY / "workflows"
    splat = splat_picture(server).convert("RGB")
    margin = splat.width // 8
    splat = splat.crop((margin, margin, splat.width - margin, splat.height - margin))
    splat.resize((SIZE, SIZE), Image.LANCZOS).save(folder / "frames_to_splat.jpg", quality=88)
    mesh_picture(server, output).save(folder / "frames_to_mesh.jpg", quality=88)


if __name__ == "__main__":
    main()
