"""The orbit sampler in a running ComfyUI: pictures while it runs, cancel, core's chain, bad names."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from prompts import node, picture

NUMBERS = {
    "frames": 18,
    "fps_id": 1.0,
    "motion_bucket_id": 300.0,
    "cond_aug": 0.02,
    "vae_mode": "mode",
}
LOADER = {"model_name": "V3D.ckpt", "clip_vision_name": "svd_xt.safetensors", "vae_name": "auto"}


def orbit_graph(size=64, seed=0, steps=4, decode_frames=0, **loader):
    """A picture of the robot to 18 frames; node 4 samples."""
    widgets = {"guidance": "constant", "scale": 3.5, "min_scale": 1.0}
    return {
        "1": node("V3DLoadModel", **{**LOADER, **loader}),
        "2": node("LoadImage", image="example.png"),
        "3": node(
            "V3DPrepareImage",
            image=["2", 0],
            mask=["2", 1],
            mask_is="auto",
            border_ratio=0.3,
            size=size,
            mask_threshold=0.2,
        ),
        "4": node(
            "V3DSampleOrbit",
            model=["1", 0],
            clip_vision=["1", 1],
            vae=["1", 2],
            image=["3", 0],
            seed=seed,
            steps=steps,
            decode_frames=decode_frames,
            **widgets,
            **NUMBERS,
        ),
        "5": node("PreviewImage", images=["4", 0]),
        "6": node("PreviewAny", source=["4", 2]),
    }


def with_cores_sampler(graph, seed, steps):
    """The same orbit through V3D Conditioning, KSampler and VAE Decode; node 9 shows it."""
    models = {"clip_vision": ["1", 1], "vae": ["1", 2]}
    graph["7"] = node("V3DConditioning", **models, image=["3", 0], seed=seed, **NUMBERS)
    sampler = {"sampler_name": "euler", "scheduler": "karras", "cfg": 3.5, "denoise": 1.0}
    graph["8"] = node(
        "KSampler",
        model=["1", 0],
        seed=seed,
        steps=steps,
        positive=["7", 0],
        negative=["7", 1],
        latent_image=["7", 2],
        **sampler,
    )
    graph["10"] = node("VAEDecode", samples=["8", 0], vae=["1", 2])
    graph["9"] = node("PreviewImage", images=["10", 0])
    return graph


def test_core_nodes_on_our_conditioning_show_the_same_orbit(server):
    run = server.run(with_cores_sampler(orbit_graph(seed=5, steps=6), 5, 6))
    assert run.ended == "execution_success", run.error
    pairs = zip(run.outputs["5"]["images"], run.outputs["9"]["images"], strict=True)
    for ours, core in pairs:
        assert np.abs(picture(server, ours) - picture(server, core)).max() <= 1.01 / 255
    report = json.loads(run.outputs["6"]["text"][0])
    assert report["frames"] == 18 and report["steps"] == 6


def test_all_frames_are_pictured_while_they_are_sampled(server):
    run = server.run(orbit_graph(seed=6, steps=25))
    assert run.ended == "execution_success", run.error
    sheets = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in run.previews]
    assert len(sheets) >= 2
    for sheet in sheets:  # six columns, three rows
        assert sheet.shape[1] / sheet.shape[0] == pytest.approx(2, rel=0.15)
        assert sheet.std() > 5
    assert any("sampling the orbit, step" in text and "s left" in text for text in run.texts)
    assert any("peak memory" in text for text in run.texts)
    steps = [d["value"] for _, kind, d in run.events if kind == "progress" and d["node"] == "4"]
    assert steps == sorted(steps) and steps[-1] == 26


@pytest.mark.parametrize(("stage", "decode_frames"), [("sampling", 0), ("whole", 0), ("slices", 3)])
def test_cancel_stops_within_a_second_and_the_server_works_on(server, stage, decode_frames):
    """At 256 px one evaluation and the decode take seconds each on a CPU."""
    steps = 200 if stage == "sampling" else 1

    def well_under_way(kind, data):
        return kind == "progress" and data.get("node") == "4" and data["value"] >= 1

    graph = orbit_graph(256, seed=steps + decode_frames, steps=steps, decode_frames=decode_frames)
    run = server.run(graph, interrupt_when=well_under_way)
    assert run.ended == "execution_interrupted", run.error
    assert run.seconds_to_stop() < 1.0
    after = server.run(orbit_graph(seed=decode_frames + 9, steps=1))
    assert after.ended == "execution_success", after.error


@pytest.mark.parametrize("name", ["../V3D.ckpt", "/etc/passwd", "nothing.ckpt", ""])
@pytest.mark.parametrize("widget", ["model_name", "clip_vision_name", "vae_name"])
def test_names_that_lead_elsewhere_are_rejected_before_anything_runs(server, widget, name):
    graph = orbit_graph(**{widget: name})
    del graph["5"]  # PreviewAny alone asks for the loader
    graph = {key: graph[key] for key in ("1", "2", "3", "4", "6")}
    run = server.run(graph)
    assert run.ended == "rejected"
    assert "there is no file" in run.error


def test_a_second_picture_in_the_batch_is_an_error_with_its_number(server):
    graph = orbit_graph()
    graph["11"] = node("RepeatImageBatch", image=["3", 0], amount=2)
    graph["4"]["inputs"]["image"] = ["11", 0]
    run = server.run(graph)
    assert run.ended == "execution_error"
    assert run.error.startswith("V3D Sample Orbit: 2 pictures came in one batch, 1 is needed")
