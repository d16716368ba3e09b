"""V3D Orbit Cameras and V3D Posed Views take what ComfyUI hands them, or say what is wrong."""

import pytest
import torch
from scenes import orbit_frames, pack

SIZE, VIEWS = 64, 6


@pytest.fixture(autouse=True)
def inference_mode():
    """Nodes always run in it."""
    with torch.inference_mode():
        yield


def pose(images, cameras=None, **inputs):
    node = pack("nodes.views").V3DPosedViews
    cameras = orbit_frames(VIEWS, SIZE)[2] if cameras is None else cameras
    return node.execute(images=images, cameras=cameras, **{"mask_is": "auto", **inputs}).args[0]


def orbit(combo, **inputs):
    node = pack("nodes.orbit").V3DOrbitCameras
    return node.execute(orbit=combo, **{"frame": 0, "width": 512, "height": 512, **inputs}).args


def test_v3d_preset_has_18_cameras_of_radius_2_and_starts_in_front():
    cameras, info = orbit({"orbit": "v3d"})
    assert len(cameras) == 18
    torch.testing.assert_close(cameras.centres.norm(dim=-1), torch.full((18,), 2.0))
    assert info["position"] == pytest.approx({"x": 0.0, "y": 0.0, "z": 2.0}, abs=1e-6)


def test_sv3d_preset_has_21_cameras_and_the_last_one_is_in_front():
    cameras, info = orbit({"orbit": "sv3d"}, frame=20)
    assert len(cameras) == 21
    assert info["position"]["x"] == pytest.approx(0.0, abs=1e-4)
    assert info["fov"] == pytest.approx(33.8, abs=1e-3)


def test_sv3d_p_cameras_are_those_that_cores_node_asks_the_model_for():
    from comfy_extras.nodes_stable3d import SV3D_Conditioning

    class Stand:  # the node only encodes the picture with them
        image_embeds = torch.zeros(1, 8)

        def encode_image(self, image):
            return self

        def encode(self, pixels):
            return torch.zeros(1, 4, 8, 8)

    asked = SV3D_Conditioning.execute(
        Stand(), torch.zeros(1, 64, 64, 3), Stand(), 64, 64, video_frames=9, elevation=12.5
    ).args[0][0][1]
    cameras, info = orbit({"orbit": "sv3d_p", "elevation": 12.5, "frames": 9}, frame=8)
    x, y, z = torch.nn.functional.normalize(cameras.centres, dim=-1).unbind(-1)
    elevations = torch.tensor(asked["elevation"])
    torch.testing.assert_close(y.asin().rad2deg(), elevations, atol=1e-3, rtol=0)
    azimuths = torch.tensor(asked["azimuth"]).deg2rad()
    torch.testing.assert_close(
        torch.stack([x, z]),
        elevations.deg2rad().cos() * torch.stack([azimuths.sin(), azimuths.cos()]),
    )
    assert info["fov"] == pytest.approx(33.8, abs=1e-3)


def test_svd_cameras_go_along_the_arc_that_the_user_judged():
    cameras, info = orbit({"orbit": "svd", "frames": 25, "arc": -90.0, "fov": 50.0}, frame=24)
    assert len(cameras) == 25
    assert info["position"]["x"] == pytest.approx(-float(cameras.centres[24].norm()), rel=1e-6)
    assert info["fov"] == pytest.approx(50.0, abs=1e-3)
    with pytest.raises(ValueError, match=r"^V3D Orbit Cameras: the arc is 0 degrees"):
        orbit({"orbit": "svd", "frames": 25, "arc": 0.0, "fov": 50.0})


def test_a_clockwise_orbit_is_the_counter_clockwise_one_backwards():
    widgets = {"orbit": "custom", "views": 8, "radius": 2.0, "elevation": 10.0, "fov": 50.0}
    widgets |= {"azimuth": 0.0, "direction": "counter-clockwise"}
    there = orbit(widgets)[0].camera_to_world
    back = orbit({**widgets, "direction": "clockwise"})[0].camera_to_world
    torch.testing.assert_close(back[1:], there[1:].flip(0), atol=1e-5, rtol=0)


def test_a_frame_that_the_orbit_lacks_is_named_with_the_number_of_frames():
    with pytest.raises(ValueError, match=r"^V3D Orbit Cameras: frame 18 .* 18 frames"):
        orbit({"orbit": "v3d"}, frame=18)


def test_white_background_is_keyed_when_there_is_neither_mask_nor_alpha():
    colours, alphas, _ = orbit_frames(VIEWS, SIZE)
    views = pose(colours)
    assert float((views.masks - alphas).abs().mean()) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_alpha_of_four_channel_images_is_the_mask(dtype):
    colours, alphas, _ = orbit_frames(VIEWS, SIZE)
    views = pose(torch.cat([colours, alphas[..., None]], dim=-1).to(dtype))
    assert views.images.dtype == torch.float32
    torch.testing.assert_close(views.masks, alphas, atol=1e-3, rtol=0)


@pytest.mark.parametrize("mask_is", ["auto", "explicit"])
@pytest.mark.parametrize("polarity", ["object", "background"])
def test_either_mask_polarity_gives_the_same_views(polarity, mask_is):
    colours, alphas, _ = orbit_frames(VIEWS, SIZE)
    masks = alphas if polarity == "object" else 1 - alphas
    views = pose(colours, masks=masks, mask_is="auto" if mask_is == "auto" else polarity)
    torch.testing.assert_close(views.masks, alphas)


def test_an_empty_border_is_reported_as_zero_per_cent():
    masks = torch.zeros(18, 256, 256)
    generator = torch.Generator().manual_seed(0)
    masks[:, 16:-16, 16:-16] = torch.rand(18, 224, 224, generator=generator)
    assert pack("nodes.masks")._border_mean(masks) == 0  # a small negative one reads as "-0%"
    kept, said = pack("nodes.masks").object_masks(masks, "auto")
    assert kept is masks and ": 0% of their border" in said
    inverted, said = pack("nodes.masks").object_masks(1 - masks, "auto")
    torch.testing.assert_close(inverted, masks)
    assert ": 100% of their border" in said


def test_load_images_placeholder_mask_is_ignored():
    colours, alphas, _ = orbit_frames(VIEWS, SIZE)
    views = pose(colours, masks=torch.zeros(1, 64, 64))
    assert float((views.masks - alphas).abs().mean()) < 0.02


def test_cameras_follow_images_of_another_size():
    colours, _, cameras = orbit_frames(VIEWS, SIZE)
    large = pack("v3d_core.cameras").resize_cameras(cameras, 512, 512)
    views = pose(colours, cameras=large)
    assert (views.cameras.width, views.cameras.height) == (SIZE, SIZE)
    torch.testing.assert_close(views.cameras.K, cameras.K)


def test_inputs_are_not_changed():
    colours, alphas, _ = orbit_frames(VIEWS, SIZE)
    image, mask = colours.clone(), (1 - alphas).clone()
    pose(image, masks=mask)
    assert torch.equal(image, colours)
    assert torch.equal(mask, 1 - alphas)


def broken(name):
    colours, alphas, _ = orbit_frames(VIEWS, SIZE)
    bad = colours.clone()
    if name == "two images":
        return {"images": colours[:2]}
    if name == "nan":
        bad[1, 3, 4, 0] = float("nan")
        return {"images": bad}
    if name == "nan with masks":
        bad[1, 3, 4, 0] = float("nan")
        return {"images": bad, "masks": alphas}
    if name == "nan in masks":
        return {"images": colours, "masks": torch.full_like(alphas, float("nan"))}
    if name == "not square":
        return {"images": torch.cat([colours, torch.ones_like(colours)], dim=2)}
    if name == "mask size":
        return {"images": colours, "masks": torch.ones(VIEWS, 32, 32)}
    if name == "mask count":
        return {"images": colours, "masks": alphas[:3]}
    if name == "full masks":
        return {"images": colours, "masks": torch.ones_like(alphas), "mask_is": "object"}
    if name == "single image":
        return {"images": colours[:1], "cameras": orbit_frames(VIEWS, SIZE)[2][0]}
    masks = alphas.clone()
    masks[2] = 0
    return {"images": colours, "masks": masks, "mask_is": "object"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("two images", "2 images but 6 cameras"),
        ("single image", "1 view is not enough, at least 2"),
        ("nan", "view 1 has 1 NaN"),
        ("nan with masks", "view 1 has 1 NaN"),
        ("nan in masks", "masks contain NaN"),
        ("not square", "images are 128x64 but .* 64x64"),
        ("mask size", "64x64 but the masks are 32x32"),
        ("mask count", "6 pictures but 3 masks"),
        ("empty mask", "empty mask in view 2"),
        ("full masks", "all 6 masks are full"),
    ],
)
def test_bad_input_is_refused_with_both_numbers_under_the_nodes_name(name, text):
    with pytest.raises(ValueError, match=f"^V3D Posed Views: .*{text}"):
        pose(**broken(name))
