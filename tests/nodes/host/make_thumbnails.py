"""Writes workflows/*.jpg: runs the workflows in a running ComfyUI and pictures what they made.

    python tests/nodes/host/make_thumbnails.py http://127.0.0.1:8188 OUTPUT_FOLDER [NAME...]

Without names all are made. Workflows that share a fit share it here too, in the server's cache.

OUTPUT_FOLDER is the server's output folder. The splat's picture is core's own rendering; core has
no mesh renderer, so the .glb is drawn here with a point per bit of surface.

Each shows what its own workflow made, as it is saved: those that start from one picture show what
the bundled model made of it.
"""

from __future__ import annotations

import functools
import io
import json
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parent))
from ui_to_api import to_prompt

REPOSITORY = Path(__file__).resolve().parents[3]
SIZE = 512
AZIMUTH_DEG, ELEVATION_DEG, RADIUS, FOV_DEG = 40.0, 15.0, 1.9, 50.0
SURFACE_POINTS = 6_000_000
INSET = 152  # px of the given picture's side
JPEG_QUALITY = 85
FAR, MADE, EDGE = 2.6, (460, 396), 12  # radius that shows nano's meshes whole; px of what it made
SEEN = 12  # levels darker than white


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


def splat_pictures(server: str, workflow: str) -> list[Image.Image]:
    """The turntable of a workflow's splat, without its wide margin."""
    prompt, outputs = run(server, workflow)
    number = next(
        n
        for n, entry in prompt.items()
        if entry["class_type"] == "PreviewImage"
        and prompt[entry["inputs"]["images"][0]]["class_type"] == "RenderSplat"
    )
    pictures = []
    for shown in outputs[number]["images"]:
        query = urllib.parse.urlencode(shown)
        picture = Image.open(io.BytesIO(fetch(f"{server}/view?{query}"))).convert("RGB")
        margin = picture.width // 8
        box = (margin, margin, picture.width - margin, picture.height - margin)
        pictures.append(picture.crop(box).resize((SIZE, SIZE), Image.LANCZOS))
    return pictures


def scores_picture(server: str) -> Image.Image:
    """Renderings, true pictures and differences of three held-out views, a row each."""
    prompt, outputs = run(server, "evaluate_orbit")
    number = next(n for n, entry in prompt.items() if entry["class_type"] == "PreviewImage")
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    for row, shown in enumerate(outputs[number]["images"][:3]):
        query = urllib.parse.urlencode(shown)
        picture = Image.open(io.BytesIO(fetch(f"{server}/view?{query}"))).convert("RGB")
        canvas.paste(picture.resize((SIZE, SIZE // 3), Image.LANCZOS), (0, row * SIZE // 3))
    return canvas


def given_picture(folder: str) -> Image.Image:
    """What the workflows start from, or would."""
    return on_white(REPOSITORY / "v3d_core" / "data" / folder / "r_000.png")


def on_white(path: Path) -> Image.Image:
    """A frame without its transparency."""
    frame = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", frame.size, "white")
    return Image.alpha_composite(white, frame).convert("RGB")


def from_demo_picture(result: Image.Image) -> Image.Image:
    """The shipped picture small in a corner, what was made of it large and whole."""
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    seen = ImageOps.invert(result.convert("L")).point(lambda level: 255 * (level > SEEN))
    made = ImageOps.contain(result.crop(seen.getbbox()), MADE, Image.LANCZOS)
    canvas.paste(made, (EDGE, SIZE - EDGE - made.height))
    given = given_picture("demo_picture").resize((INSET, INSET), Image.LANCZOS)
    canvas.paste(ImageOps.expand(given, 2, "#3f789e"), (SIZE - INSET - EDGE, 8))
    return canvas


def mesh_picture(server: str, output: Path, workflow: str, radius: float = RADIUS) -> Image.Image:
    """A workflow's .glb seen from the upper right, in the colours of its texture."""
    prompt, outputs = run(server, workflow)
    number = next(n for n, entry in prompt.items() if entry["class_type"] == "V3DExportMesh")
    (shown,) = outputs[number]["3d"]
    return picture_of_file(output / shown["subfolder"] / shown["filename"], radius)


def picture_of_file(path: Path, radius: float = RADIUS) -> Image.Image:
    """A textured .glb, unlit as viewers show it: the pictures hold their light."""
    mesh = trimesh.load(path, force="mesh", process=False)
    points, faces = trimesh.sample.sample_surface(mesh, SURFACE_POINTS, seed=0)
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[faces], points)
    uvs = (mesh.visual.uv[mesh.faces[faces]] * weights[..., None]).sum(1)
    texture = mesh.visual.material.baseColorTexture
    colours = trimesh.visual.color.uv_to_interpolated_color(uvs, texture)[:, :3] / 255
    return draw(points, colours, 2 * SIZE, radius).resize((SIZE, SIZE), Image.BOX)


def compared_meshes(server: str, output: Path) -> Image.Image:
    """Core's mesh of a splat on the left, ours on the right, in the colours of their vertices."""
    prompt, outputs = run(server, "splat_to_mesh_compare")
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    for number, entry in prompt.items():
        if entry["class_type"] != "SaveGLB":
            continue
        (shown,) = outputs[number]["3d"]
        path = output / shown["subfolder"] / shown["filename"]
        (mesh,) = trimesh.load(path, force="scene", process=False).geometry.values()
        points, faces = trimesh.sample.sample_surface(mesh, SURFACE_POINTS, seed=0)
        weights = trimesh.triangles.points_to_barycentric(mesh.triangles[faces], points)
        stored = mesh.visual.vertex_attributes["color"]  # beside the material
        whole = np.iinfo(stored.dtype).max if stored.dtype.kind == "u" else 1
        linear = stored[mesh.faces[faces]][..., :3] / whole
        colours = srgb((linear * weights[..., None]).sum(1))
        picture = draw(points, colours, 2 * SIZE).resize((SIZE, SIZE), Image.BOX)
        quarter = picture.crop((SIZE // 4, 0, 3 * SIZE // 4, SIZE))
        ours = prompt[entry["inputs"]["mesh"][0]]["class_type"] == "V3DMeshFromSplat"
        canvas.paste(quarter, (SIZE // 2 * ours, 0))
    return canvas


def srgb(linear: np.ndarray) -> np.ndarray:
    """Colours as shown of linear ones, both in [0, 1]; glTF keeps vertex colours linear."""
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def frames_picture(server: str, output: Path, workflow: str) -> Image.Image:
    """Nine of the frames that a workflow saved, the first one framed."""
    prompt, outputs = run(server, workflow)
    number = next(n for n, entry in prompt.items() if entry["class_type"] == "V3DSaveViews")
    folder = output / outputs[number]["text"][0].removesuffix(" [output]")
    canvas, side = Image.new("RGB", (SIZE, SIZE), "white"), SIZE // 3
    for index, path in enumerate(sorted(folder.glob("*.png"))[::2]):
        frame = on_white(path).resize((side, side), Image.LANCZOS)
        if index == 0:
            frame = ImageOps.expand(frame.crop((2, 2, side - 2, side - 2)), 2, "#3f789e")
        canvas.paste(frame, (index % 3 * side, index // 3 * side))
    return canvas


def draw(points: np.ndarray, colours: np.ndarray, size: int, radius: float = RADIUS) -> Image.Image:
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
    x, y, z = axes @ (points - radius * back).T
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
    """Write all thumbnails, or those that are named."""
    server, output = sys.argv[1].rstrip("/"), Path(sys.argv[2])
    turntable = functools.cache(lambda name: splat_pictures(server, name))
    mesh = functools.cache(lambda name, *radius: mesh_picture(server, output, name, *radius))
    thumbnails = {
        "try_it_now": lambda: from_demo_picture(mesh("try_it_now", FAR)),
        "frames_to_splat": lambda: turntable("frames_to_splat")[2],
        "frames_to_mesh": lambda: mesh("frames_to_mesh"),
        "frames_to_neus_mesh": lambda: mesh("frames_to_neus_mesh"),
        "evaluate_orbit": lambda: scores_picture(server),
        "splat_to_mesh_compare": lambda: compared_meshes(server, output),
        "image_to_splat": lambda: from_demo_picture(turntable("image_to_splat")[2]),
        "image_to_mesh": lambda: from_demo_picture(mesh("image_to_mesh", FAR)),
        "image_to_orbit_ksampler": lambda: frames_picture(
            server, output, "image_to_orbit_ksampler"
        ),
        "texture_any_mesh": lambda: mesh("texture_any_mesh"),
        "sv3d_to_splat": lambda: from_demo_picture(turntable("sv3d_to_splat")[2]),
    }
    for name in sys.argv[3:] or thumbnails:
        path = REPOSITORY / "workflows" / f"{name}.jpg"
        thumbnails[name]().save(path, quality=JPEG_QUALITY, optimize=True)


if __name__ == "__main__":
    main()
