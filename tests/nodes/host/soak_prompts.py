"""Small prompts with every node of the pack, and broken ones with the answer they must get.

A prompt is a graph and a check of what the run gave; the seed makes each a new one, so that the
host cannot answer from its cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from prompts import DEMO, demo_frame, node, picture, psnr
from scenes import open_mesh

FIT = {"preset": "draft", "resolution": 48, "max_splats": 1000, "steps": 30}
FIT |= {"views_per_step": 0, "sh_degree": -1, "frames": "agree"}
NEUS = {"preset": "draft", "resolution": 48, "steps": 4, "frames": "agree"}
NEUS |= {"normals_convention": "opengl"}
RENDER = {"background": "#ffffff", "depth_is": "near is white"}
REFINE = {"texture_size": 64, "frames": "agree", "new_uvs": True, "num_views": 4}
REFINE |= {"lpips_weight": 0.0, "iterations": 0}
CLEAN = {"faces": 2000, "max_error": 100.0, "smooth": 0, "fill_holes": 100, "min_part": 0.02}
CLEAN |= {"drop_hidden": True}
EXPORT = {"shading": "as the mesh says", "print_size_mm": 100.0}
PREPARE = {"mask_is": "auto", "border_ratio": 0.3, "size": 64, "mask_threshold": 0.2}
LOADER = {"model_name": "V3D.ckpt", "clip_vision_name": "svd_xt.safetensors", "vae_name": "auto"}
NUMBERS = {"frames": 6, "fps_id": 1.0, "motion_bucket_id": 300.0, "cond_aug": 0.02}
NUMBERS |= {"vae_mode": "mode"}
SAMPLE = {"steps": 1, "guidance": "constant", "scale": 3.5, "min_scale": 1.0, "decode_frames": 0}
FORMATS = ("glb", "obj", "ply", "stl")
TEST_FRAMES = 6  # of the demo's test split
# Custom nodes: what no node of core makes, pictures with holes and none at all; and a look inside.
TEST_NODES = """
import ctypes
import gc
import sys

import torch

class BrokenPictures:
    CATEGORY = "test"
    FUNCTION = "make"
    RETURN_TYPES = ("IMAGE", "MASK")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"shows": ("STRING", {}), "frames": ("INT", {"min": 0})}}

    def make(self, shows, frames):
        torch.manual_seed(0)
        image = torch.ones(frames, 64, 64, 1 if shows == "grey" else 3)
        if shows != "flat":
            image[:, 16:48, 16:48] = torch.rand(frames, 32, 32, image.shape[-1])
        if shows in ("nan", "inf"):
            image[:, 20:24, 20:24] = float(shows)
        mask = torch.zeros(frames, 64, 64)
        mask[:, 16:48, 16:48] = float("nan") if shows == "nan mask" else 1
        return image, mask

class WhatIsHeld:
    # Bytes of all tensors, after the C library has given back what nobody uses.
    CATEGORY = "test"
    FUNCTION = "look"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {})}}

    def look(self, seed):
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
        tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return {"ui": {"bytes": [sum(storages.values())]}}

NODE_CLASS_MAPPINGS = {"BrokenPictures": BrokenPictures, "WhatIsHeld": WhatIsHeld}
"""


class Good(NamedTuple):
    """A prompt that succeeds; `check` gets the server and the run and raises where it is wrong."""

    graph: dict
    check: Callable


class Bad(NamedTuple):
    """A prompt that must be refused with a text that matches."""

    graph: dict
    error: str


def views(split="test"):
    return node("V3DLoadViews", folder=DEMO, split=split)


def output_file(server, run, number):
    (shown,) = run.outputs[number]["3d"]
    return server.base / "output" / shown["subfolder"] / shown["filename"]


# --- good ones ----------------------------------------------------------------------------------


def saved_views(seed):
    colmap = seed % 2 == 0
    graph = {
        "1": views(),
        "2": node(
            "V3DSaveViews", views=["1", 0], filename_prefix=f"soak/views{seed}", colmap=colmap
        ),
    }

    def check(server, run):
        (name,) = run.outputs["2"]["text"]
        folder = server.base / "output" / name.removesuffix(" [output]")
        assert len(list(folder.glob("*.png"))) == TEST_FRAMES
        assert (folder / "transforms.json").is_file()
        assert (folder / "sparse" / "0" / "points3D.txt").is_file() == colmap

    return Good(graph, check)


def scored_splat(seed):
    """Cameras, views, fit, renders and scores; every second time through core's savers too."""
    graph = {
        "1": views(),
        "2": node("V3DPosedViews", images=["1", 1], masks=["1", 2], cameras=["1", 3], mask_is="object"),
        "3": node("V3DFitSplat", views=["2", 0], seed=seed, **FIT),
        "4": node("V3DRenderSplat", splat=["3", 0], cameras=["1", 3], resolution=0, **RENDER),
        "5": node("V3DScoreViews", images=["4", 0], truth=["1", 1], masks=["1", 2], gain=4.0, truth_is="straight"),
        "6": node("PreviewAny", source=["5", 0]),
        "7": node("PreviewAny", source=["3", 1]),
        "8": node("PreviewImage", images=["4", 0]),
    }  # fmt: skip

    def check(server, run):
        fit, scores = (json.loads(run.outputs[n]["text"][0]) for n in ("7", "6"))
        assert fit["steps"] == FIT["steps"] and fit["seed"] == seed
        assert len(scores["per_view"]) == TEST_FRAMES and scores["psnr"] > 14
        assert picture(server, run.outputs["8"]["images"][0]).shape == (256, 256, 3)

    return Good(graph, check)


def textured_mesh(seed):
    suffix = FORMATS[seed % len(FORMATS)]
    graph = {
        "1": views(),
        "2": node("V3DFitSplat", views=["1", 0], seed=seed, **FIT),
        "3": node("V3DMeshFromSplat", splat=["2", 0], views=["2", 2], resolution=32, smooth=2, min_part=0.05),
        "4": node("V3DCleanMesh", mesh=["3", 0], **CLEAN),
        "5": node("V3DRefineTexture", mesh=["4", 0], views=["2", 2], **REFINE),
        "6": node("V3DExportMesh", mesh=["5", 0], format=suffix, filename_prefix="soak/mesh", **EXPORT),
    }  # fmt: skip

    def check(server, run):
        mesh = open_mesh(output_file(server, run, "6"))
        assert 100 < len(mesh.faces) <= CLEAN["faces"]
        if suffix in ("glb", "obj"):
            image = getattr(mesh.visual.material, "baseColorTexture", None)
            assert (image or mesh.visual.material.image).size == (64, 64)

    return Good(graph, check)


def fitted_surface(seed):
    graph = {
        "1": views(),
        "2": node("V3DFitNeuS", views=["1", 0], seed=seed, **NEUS),
        "3": node("V3DSaveSDF", sdf=["2", 0], filename_prefix=f"soak/field{seed}"),
        "4": node("V3DExtractMesh", sdf=["2", 0], resolution=32, min_part=0.02, colours=True),
        "5": node("V3DExportMesh", mesh=["4", 0], format="glb", filename_prefix="soak/surface", **EXPORT),
    }  # fmt: skip

    def check(server, run):
        (name,) = run.outputs["3"]["text"]
        assert (server.base / "output" / name.removesuffix(" [output]")).stat().st_size > 10_000
        assert open_mesh(output_file(server, run, "5")).is_watertight

    return Good(graph, check)


def loaded_surface(seed):
    """The field that `Base` put into the input folder, at a resolution of its own."""
    graph = {
        "1": node("V3DLoadSDF", file="field.safetensors"),
        "2": node("V3DExtractMesh", sdf=["1", 0], resolution=16 + 16 * (seed % 3), min_part=0.02, colours=True),
        "3": node("V3DExportMesh", mesh=["2", 0], format="ply", filename_prefix="soak/loaded", **EXPORT),
    }  # fmt: skip

    def check(server, run):
        assert open_mesh(output_file(server, run, "3")).is_watertight

    return Good(graph, check)


def prepared():
    return {
        "1": node("V3DLoadModel", **LOADER),
        "2": node("LoadImage", image="example.png"),
        "3": node("V3DPrepareImage", image=["2", 0], mask=["2", 1], **PREPARE),
    }


def models():
    return {"clip_vision": ["1", 1], "vae": ["1", 2], "image": ["3", 0]}


def sampled_orbit(seed):
    graph = prepared() | {
        "4": node("V3DSampleOrbit", model=["1", 0], **models(), seed=seed, **SAMPLE, **NUMBERS),
        "5": node("PreviewImage", images=["4", 0]),
        "6": node("PreviewAny", source=["4", 2]),
    }

    def check(server, run):
        shown = run.outputs["5"]["images"]
        assert len(shown) == 6 and picture(server, shown[3]).shape == (64, 64, 3)
        assert json.loads(run.outputs["6"]["text"][0])["frames"] == 6

    return Good(graph, check)


def cores_sampler(seed):
    graph = prepared() | {
        "4": node("V3DConditioning", **models(), seed=seed, **NUMBERS),
        "5": node(
            "KSampler", model=["1", 0], positive=["4", 0], negative=["4", 1], latent_image=["4", 2],
            seed=seed, steps=1, cfg=3.5, sampler_name="euler", scheduler="karras", denoise=1.0,
        ),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("PreviewImage", images=["6", 0]),
    }  # fmt: skip

    def check(server, run):
        assert len(run.outputs["7"]["images"]) == 6

    return Good(graph, check)


def orbit_and_environment(seed):
    graph = {
        "1": node("V3DEnvironment", try_engines=seed % 2 == 0),
        "2": orbit(views=TEST_FRAMES, azimuth=float(seed % 360)),
        "3": node("V3DLoadViews", folder=DEMO, split="test"),
        "4": node("V3DPosedViews", images=["3", 1], masks=["3", 2], cameras=["2", 0], mask_is="auto"),
        "5": node("V3DSaveViews", views=["4", 0], filename_prefix=f"soak/posed{seed}", colmap=False),
        "6": node("PreviewImage", images=["3", 1]),
    }  # fmt: skip

    def check(server, run):
        assert "ComfyUI" in run.outputs["1"]["text"][0]
        assert run.outputs["2"]["v3d_cameras"][0]["azimuth"] == seed % 360
        shown = picture(server, run.outputs["6"]["images"][0])
        best = max(psnr(shown, demo_frame(i)) for i in range(18))
        assert np.isfinite(best) and shown.shape == (256, 256, 3)

    return Good(graph, check)


def orbit(**custom):
    widgets = {"views": 6, "radius": 2.0, "elevation": 0.0, "fov": 60.0, "azimuth": 0.0}
    widgets |= {"direction": "clockwise", **custom}
    below = {f"orbit.{name}": value for name, value in widgets.items()}
    return node("V3DOrbitCameras", orbit="custom", frame=0, width=64, height=64, **below)


GOOD = (
    saved_views,
    scored_splat,
    textured_mesh,
    fitted_surface,
    loaded_surface,
    sampled_orbit,
    cores_sampler,
    orbit_and_environment,
)


# --- bad ones -----------------------------------------------------------------------------------


def shows(graph, source, output=0):
    """The graph with an end, so that the host runs it."""
    return graph | {"end": node("PreviewAny", source=[source, output])}


def broken_views(kind, frames=6, **inputs):
    graph = {
        "1": node("BrokenPictures", shows=kind, frames=frames),
        "2": orbit(),
        "3": node("V3DPosedViews", images=["1", 0], cameras=["2", 0], **{"mask_is": "object", **inputs}),
    }  # fmt: skip
    return shows(graph, "3")


def broken_picture(kind, frames=1, **inputs):
    graph = {
        "1": node("BrokenPictures", shows=kind, frames=frames),
        "2": node("V3DPrepareImage", image=["1", 0], **(PREPARE | inputs)),
    }
    return shows(graph, "2", 1)


def fit(**inputs):
    fitted = node("V3DFitSplat", **{"views": ["1", 0], "seed": 0, **FIT, **inputs})
    return shows({"1": views(), "2": fitted}, "2", 1)


def without(graph, number, name):
    inputs = {key: value for key, value in graph[number]["inputs"].items() if key != name}
    return graph | {number: {**graph[number], "inputs": inputs}}


def changed(graph, number, **inputs):
    return graph | {number: {**graph[number], "inputs": graph[number]["inputs"] | inputs}}


def surface(**inputs):
    fitted = node("V3DFitNeuS", **{"views": ["1", 0], "seed": 0, **NEUS, **inputs})
    return shows({"1": views(), "2": fitted}, "2", 1)


def rendered(**inputs):
    seen = node(
        "V3DRenderSplat",
        **{"splat": ["2", 0], "cameras": ["1", 3], "resolution": 16, **RENDER, **inputs},
    )
    return shows(fit() | {"3": seen}, "3")  # fmt: skip


def scored(**inputs):
    inputs = {"images": ["1", 1], "truth": ["1", 1], "gain": 4.0, "truth_is": "opaque", **inputs}
    return shows({"1": views(), "9": views("train"), "2": node("V3DScoreViews", **inputs)}, "2")


def loaded(folder="", **file):
    if file:
        return shows({"1": node("V3DLoadSDF", **file)}, "1")
    return shows({"1": node("V3DLoadViews", folder=folder, split="train")}, "1")


def exported(graph, number, prefix):
    graph = {key: graph[key] for key in graph if key != "3"}
    return graph | {"x": node("V3DExportMesh", mesh=[number, 0], format="glb", filename_prefix=prefix, **EXPORT)}  # fmt: skip


def bad_prompts() -> dict[str, Bad]:
    """By name: the graph and what the answer must match; `V3D ...:` is ours, the rest the host's."""
    mesh = loaded_surface(0).graph
    field = {"1": node("V3DLoadSDF", file="field.safetensors")}
    save = {**field, "2": node("V3DSaveSDF", sdf=["1", 0], filename_prefix="../../field")}
    keep = saved_views(1).graph
    lit = sampled_orbit(0).graph
    nothing_there = r"V3D (Prepare Image|Posed Views): .*"
    return {
        "no such node": Bad(shows({"1": node("V3DMakeCoffee")}, "1"), "missing_node_type|not found"),
        "a picture for views": Bad(fit(views=["1", 1]), "return_type_mismatch"),
        "no views": Bad(without(fit(), "2", "views"), "required_input_missing"),
        "a number for views": Bad(fit(views=5), r"V3D Fit Splat: views .*connect"),
        "a text for a mesh": Bad(changed(mesh, "3", mesh="mesh.glb"), r"V3D Export Mesh: mesh .*connect"),
        "a list for cameras": Bad(rendered(cameras={"a": 1}), r"V3D Render Splat: cameras .*connect"),
        "an unknown preset": Bad(fit(preset="perfect"), "value_not_in_list"),
        "steps in words": Bad(fit(steps="many"), "invalid_input_type"),
        "too many steps": Bad(fit(steps=10**9), "value_bigger_than_max"),
        "a negative seed": Bad(fit(seed=-1), "value_smaller_than_min"),
        "one view": Bad(fit(hold_out=7, views=["1", 0]), r"V3D Fit Splat: there is no 7\. view"),
        "no number of seconds": Bad(fit(time_budget="nan"), r"V3D Fit Splat: .*nan"),
        "no colour": Bad(rendered(background="green"), "V3D Render Splat: 'green' is no colour"),
        "a number for a colour": Bad(rendered(background=7), "V3D Render Splat: 7 is no colour"),
        "views between without a splat": Bad(surface(views_between=True), "V3D Fit NeuS: views_between needs a splat"),
        "normals of other frames": Bad(surface(normals=["9", 0]) | {"9": node("BrokenPictures", shows="noise", frames=2)}, "V3D Fit NeuS: .*"),
        "scores of other sizes": Bad(changed(scored(), "2", truth=["9", 1]), "V3D Score Views: .*6 frames, .*18"),
        "straight without masks": Bad(scored(truth_is="straight"), "V3D Score Views: truth is straight"),
        "gain that is no number": Bad(scored(gain="nan"), "V3D Score Views: .*nan"),
        "frame of no orbit": Bad(shows({"1": node("V3DOrbitCameras", orbit="v3d", frame=500, width=64, height=64)}, "1"), "V3D Orbit Cameras: frame 500"),
        "radius that is no number": Bad(shows({"1": orbit(radius="nan")}, "1"), "V3D Orbit Cameras: .*nan"),
        "custom orbit without its views": Bad(without(shows({"1": orbit()}, "1"), "1", "orbit.views"), "required_input_missing"),
        "two pictures for six cameras": Bad(broken_views("noise", 2), "V3D Posed Views: 2 images but 6 cameras"),
        "no pictures": Bad(broken_views("noise", 0), r"V3D Posed Views: an IMAGE of shape \[0, 64, 64, 3\] .* no picture"),
        "nan in views": Bad(broken_views("nan"), "V3D Posed Views: .*finite"),
        "infinity in views": Bad(broken_views("inf"), "V3D Posed Views: .*finite"),
        "nan in masks": Bad(broken_views("nan mask", masks=["1", 1]), "V3D Posed Views: .*finite"),
        "flat views": Bad(broken_views("flat"), nothing_there),
        "grey pictures": Bad(broken_views("grey"), r"V3D Posed Views: an IMAGE of shape \[6, 64, 64, 1\]"),
        "no picture to prepare": Bad(broken_picture("noise", 0), "V3D Prepare Image: .* no picture"),
        "two pictures to prepare": Bad(broken_picture("noise", 2), "V3D Prepare Image: 2 images"),
        "nan in a picture": Bad(broken_picture("nan"), "V3D Prepare Image: .*finite"),
        "flat picture": Bad(broken_picture("flat"), nothing_there),
        "a border that is no number": Bad(broken_picture("noise", border_ratio="nan"), "V3D Prepare Image: .*nan"),
        "a folder outside": Bad(loaded("../../etc"), "value_not_in_list"),
        "a folder from the root": Bad(loaded("/etc [output]"), "value_not_in_list"),
        "a broken field": Bad(loaded(file="broken.safetensors"), r"V3D Load SDF: .*broken\.safetensors"),
        "a field outside": Bad(loaded(file="../../field.safetensors"), "value_not_in_list"),
        "a file for output outside": Bad(exported(mesh, "2", "../../mesh"), "V3D Export Mesh: filename_prefix .* leads out"),
        "a file for output from the root": Bad(exported(mesh, "2", "/tmp/mesh"), "V3D Export Mesh: filename_prefix .* leads out"),
        "a zero byte in a name": Bad(exported(mesh, "2", "a\0b"), "V3D Export Mesh: .* zero bytes"),
        "a name too long": Bad(exported(mesh, "2", "x" * 300), "V3D Export Mesh: .* up to 200 letters"),
        "a field for output outside": Bad(save, "V3D Save SDF: filename_prefix .* leads out"),
        "views for output outside": Bad(changed(keep, "2", filename_prefix=".."), "V3D Save Views: filename_prefix .* leads out"),
        "an unknown format": Bad(changed(mesh, "3", format="fbx"), "value_not_in_list"),
        "a model outside": Bad(changed(lit, "1", model_name="../V3D.ckpt"), "there is no file"),
        "two pictures to sample": Bad(lit | {"3": node("BrokenPictures", shows="noise", frames=2)}, "V3D Sample Orbit: 2 pictures"),
        "nan to sample": Bad(lit | {"3": node("BrokenPictures", shows="nan", frames=1)}, "V3D Sample Orbit: .*finite"),
        "guidance that is no number": Bad(changed(lit, "4", scale="nan"), "V3D Sample Orbit: .*nan"),
        "mesh parts that are no number": Bad(changed(mesh, "2", min_part="nan"), "V3D Extract Mesh: .*nan"),
    }  # fmt: skip
