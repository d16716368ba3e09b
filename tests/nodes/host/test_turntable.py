"""What the orbit scrubber gets: one sheet of small frames with the angles they were taken from."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from prompts import DEMO, demo_frame, node, psnr
from scenes import pack

turntable = pack("nodes.turntable")
cameras = pack("v3d_core.cameras")


def sheet_of(server, turn):
    query = "&".join(f"{key}={value}" for key, value in turn["sheet"].items())
    return Image.open(io.BytesIO(server.get(f"/view?{query}"))).convert("RGB")


def test_views_show_their_frames_in_the_order_of_their_azimuths(server):
    graph = {
        "1": node("V3DLoadViews", folder=DEMO, split="train"),
        "2": node("V3DOrbitCameras", orbit="v3d", frame=0, width=500, height=500),
        "3": node("V3DPosedViews", images=["1", 1], cameras=["2", 0], mask_is="auto"),
        "4": node("V3DSaveViews", views=["3", 0], filename_prefix="v3d/turn", colmap=False),
    }
    run = server.run(graph)
    assert run.ended == "execution_success", run.error
    (turn,) = run.outputs["3"][turntable.KEY]
    assert [frame["azimuth"] for frame in turn["frames"]] == pytest.approx(range(0, 360, 20))
    assert [frame["elevation"] for frame in turn["frames"]] == pytest.approx([0] * 18, abs=0.1)
    sheet, index = sheet_of(server, turn), 7
    left, top = index % turn["columns"] * turn["width"], index // turn["columns"] * 256
    shown = np.asarray(sheet.crop((left, top, left + 256, top + 256)), dtype=np.float64) / 255
    assert psnr(shown, demo_frame(index)) > 28  # a JPEG
    again = server.run(graph)  # of a page that was reloaded: nothing is computed, all is shown
    assert again.ended == "execution_success", again.error
    assert again.outputs["3"] == run.outputs["3"]


def test_outside_the_queue_no_file_is_written():
    orbit = cameras.orbit_cameras(cameras.V3D_ORBIT, 8, 8)
    assert turntable.turn_frames(torch.ones(18, 8, 8, 3), orbit) is None


def test_long_orbits_and_large_frames_stay_small(monkeypatch, tmp_path):
    monkeypatch.setattr(turntable, "get_executing_context", object)
    monkeypatch.setattr(turntable.folder_paths, "get_temp_directory", lambda: str(tmp_path))
    orbit = cameras.Orbit(num_views=200, elevation_deg=30.0)
    frames = torch.linspace(0, 1, 200)[:, None, None, None].expand(200, 900, 1200, 3)
    output = turntable.turn_frames(frames, cameras.orbit_cameras(orbit, 1200, 900))
    (turn,) = output[turntable.KEY]
    assert (turn["width"], turn["height"], turn["total"]) == (256, 192, 200)
    shown = [frame["index"] for frame in turn["frames"]]
    assert (len(shown), shown[0], shown[-1]) == (turntable.MOST_FRAMES, 0, 199)
    assert turn["frames"][-1]["azimuth"] == pytest.approx(358.2)
    assert turn["frames"][-1]["elevation"] == pytest.approx(30)
    with Image.open(tmp_path / turn["sheet"]["filename"]) as sheet:
        assert sheet.size == (8 * 256, 8 * 192)


def test_a_full_disk_costs_the_picture_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setattr(turntable, "get_executing_context", object)
    missing = tmp_path / "file"
    missing.write_text("no folder")
    monkeypatch.setattr(turntable.folder_paths, "get_temp_directory", lambda: str(missing / "x"))
    orbit = cameras.orbit_cameras(cameras.V3D_ORBIT, 8, 8)
    assert turntable.turn_frames(torch.ones(18, 8, 8, 3), orbit) is None
