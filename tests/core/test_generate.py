"""Orbits on disk: each picture by itself, complete or not at all, and never made twice."""

import dataclasses
import json
import os
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from live_tensors import live_tensor_bytes
from PIL import Image

from v3d_core import generate
from v3d_core.backends import MissingPackageError
from v3d_core.cameras import V3D_ORBIT, orbit_cameras
from v3d_core.diffusion.conditioning import ConditioningConfig
from v3d_core.diffusion.decode_memory import DecodePlan
from v3d_core.diffusion.edm import SamplerConfig
from v3d_core.diffusion.families import V3D
from v3d_core.diffusion.model_files import find_model
from v3d_core.diffusion.orbit import OrbitConfig
from v3d_core.formats.video import read_video_frames
from v3d_core.formats.views import load_views
from v3d_core.generate import ModelSource, PictureJob, plan_jobs, sample_pictures
from v3d_core.prepare import PrepareConfig

FRAMES = 4
CONFIG = OrbitConfig(SamplerConfig(steps=2), conditioning=ConditioningConfig(num_frames=FRAMES))
PREPARE = PrepareConfig(size=tiny_models.SIZE)


def object_picture(path, colour=(200, 30, 40), size=40, background=None):
    """A disc with alpha, or on a background."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    disc = ((x - size / 2) ** 2 + (y - size / 2) ** 2) < (0.3 * size) ** 2
    pixels = torch.zeros(size, size, 4, dtype=torch.uint8)
    pixels[..., :3] = torch.tensor(colour, dtype=torch.uint8)
    pixels[..., 1] += (x * 3).to(torch.uint8)
    pixels[..., 3] = disc * 255
    if background is not None:
        pixels = torch.where(disc[..., None], pixels, background)[..., :3]
    Image.fromarray(pixels.numpy()).save(path)
    return path


def busy_background(size=40):
    return torch.randint(0, 255, (size, size, 4), generator=torch.Generator().manual_seed(1)).byte()


@pytest.fixture(scope="module")
def source(tiny):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    return ModelSource(find_model(tiny.v3d, [tiny.svd]), torch.device("cpu"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    colours = {"a.png": (200, 30, 40), "b.png": (10, 60, 200), "c.png": (90, 20, 10)}
    return [object_picture(folder / name, colour) for name, colour in colours.items()]


class DrawnModel:
    """Stands in for the networks where only files and decisions are tested; frames are keyable."""

    family = V3D

    def __init__(self):
        self.sampled = []

    def condition(self, image, config, seed):
        self.sampled.append(seed)
        return SimpleNamespace(latent=torch.zeros(1, 4, 8, 8), config=config, colour=image.mean())

    def sample(self, condition, guidance, run, check):
        check()
        return torch.zeros(condition.config.num_frames, 4, 8, 8)

    def decode(self, latents, frames_per_slice, progress):
        frames = torch.ones(len(latents), 64, 64, 3)
        for index, frame in enumerate(frames):
            frame[20:44, 16 + index : 40 + index] = torch.tensor([0.1, 0.5, 0.2])
        return frames, DecodePlan(len(latents), len(latents))


@dataclasses.dataclass(frozen=True)
class DrawnSource(ModelSource):
    model: DrawnModel = dataclasses.field(default_factory=DrawnModel)

    def load(self):
        return self.model


@pytest.fixture
def drawn(tiny):
    return DrawnSource(find_model(tiny.v3d, [tiny.svd]), torch.device("cpu"))


def sample(jobs, source, seed=0, config=CONFIG, **options):
    return sample_pictures(jobs, source, config, PREPARE, seed, **options)


def kinds(outcomes):
    return [outcome.kind for outcome in outcomes]


def frames_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("r_*.png"))}


# Order and company


@pytest.mark.slow
def test_a_picture_gives_the_same_orbit_alone_and_among_others_in_any_order(
    source, pictures, tmp_path
):
    orders = {"alone": pictures[1:2], "first": pictures, "last": pictures[::-1]}
    for name, order in orders.items():
        outcomes = sample(plan_jobs(order, tmp_path / name), source, seed=5)
        assert kinds(outcomes) == ["made"] * len(order)
    alone = frames_of(tmp_path / "alone" / "b")
    assert len(alone) == FRAMES
    assert alone == frames_of(tmp_path / "first" / "b") == frames_of(tmp_path / "last" / "b")
    for name in ("a", "c"):
        first, last = (frames_of(tmp_path / order / name) for order in ("first", "last"))
        assert first == last != alone


def test_another_seed_gives_another_orbit(source, pictures, tmp_path):
    for seed in (0, 1):
        sample(plan_jobs(pictures[:1], tmp_path / str(seed)), source, seed)
    assert frames_of(tmp_path / "0" / "a") != frames_of(tmp_path / "1" / "a")


# What is written


def test_a_folder_has_frames_cameras_video_and_report(drawn, pictures, tmp_path):
    (outcome,) = sample(plan_jobs(pictures[:1], tmp_path), drawn, seed=7)
    folder = tmp_path / "a"
    report = json.loads((folder / "orbit.json").read_text())
    assert report == json.loads(json.dumps(outcome.report))
    expected = {"prepared.png", "orbit.mp4", "transforms.json", "orbit.json"}
    expected |= {f"r_{index:03d}.png" for index in range(FRAMES)}
    assert {path.name for path in folder.iterdir()} == expected == {*report["files"], "orbit.json"}
    assert report["seed"] == 7 and report["settings"]["sampler"]["steps"] == 2
    assert report["model"]["files"]["unet"]["bytes"] == drawn.parts.unet.path.stat().st_size
    assert report["seconds"]["total"] > 0 and report["peak_memory"]["resident_mib"] > 50
    assert {"torch", "diffusers", "transformers"} <= {*report["packages"]}
    assert any("keyed" in warning for warning in report["warnings"])
    assert any("alpha" in note for note in report["notes"])
    with Image.open(folder / "prepared.png") as prepared:
        assert prepared.size == (64, 64) and prepared.getpixel((0, 0)) == (255, 255, 255)
    assert read_video_frames(folder / "orbit.mp4").shape == (FRAMES, 64, 64, 3)


def test_the_folder_is_a_data_set_with_the_cameras_of_the_orbit(drawn, pictures, tmp_path):
    sample(plan_jobs(pictures[:1], tmp_path), drawn)
    loaded = load_views(tmp_path / "a")
    assert loaded.warnings == ()
    cameras = orbit_cameras(dataclasses.replace(V3D_ORBIT, num_views=FRAMES), 64, 64)
    torch.testing.assert_close(loaded.views.cameras.camera_to_world, cameras.camera_to_world)
    torch.testing.assert_close(loaded.views.cameras.K, cameras.K)
    assert loaded.views.masks[0].mean() == pytest.approx(24 * 24 / 64**2, rel=0.1)


def test_frames_that_cannot_be_cut_out_are_kept_as_they_are(source, pictures, tmp_path):
    (outcome,) = sample(plan_jobs(pictures[:1], tmp_path), source)
    assert any("kept with their background" in text for text in outcome.report["warnings"])
    with Image.open(tmp_path / "a" / "r_003.png") as frame:
        assert frame.mode == "RGB" and frame.size == (64, 64)
    document = json.loads((tmp_path / "a" / "transforms.json").read_text())
    assert [frame["file_path"] for frame in document["frames"]] == [
        f"./r_{index:03d}.png" for index in range(FRAMES)
    ]


def test_a_shorter_orbit_takes_the_older_frames_away_and_nothing_else(drawn, pictures, tmp_path):
    jobs = plan_jobs(pictures[:1], tmp_path)
    sample(jobs, drawn)
    for name in ("r_100.png", "notes.txt"):
        (tmp_path / "a" / name).write_text("mine")
    shorter = dataclasses.replace(CONFIG, conditioning=ConditioningConfig(num_frames=2))
    (outcome,) = sample(jobs, drawn, config=shorter)
    assert outcome.kind == "made" and "another settings" in outcome.text
    frames = [path.name for path in sorted((tmp_path / "a").glob("r_*.png"))]
    assert frames == ["r_000.png", "r_001.png", "r_100.png"]
    assert (tmp_path / "a" / "notes.txt").exists()


# Never twice


def test_an_orbit_that_is_there_is_kept_without_loading_the_model(drawn, pictures, tmp_path):
    jobs = plan_jobs(pictures[:2], tmp_path)
    first = sample(jobs, drawn)
    before = frames_of(tmp_path / "a")
    again = sample(jobs, ModelSource(drawn.parts, drawn.device))  # would sample noise
    assert kinds(first) == ["made", "made"] and kinds(again) == ["kept", "kept"]
    assert again[0].report == json.loads(json.dumps(first[0].report))
    assert frames_of(tmp_path / "a") == before and len(drawn.model.sampled) == 2
    assert kinds(sample(jobs, drawn, overwrite=True)) == ["made", "made"]


def test_an_interrupted_run_goes_on_where_it_was(drawn, pictures, tmp_path):
    jobs = plan_jobs(pictures, tmp_path)

    def stop(outcome):
        if outcome.job.picture.stem == "b":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(jobs, drawn, tell=stop)
    assert kinds(sample(jobs, drawn)) == ["kept", "kept", "made"]


@pytest.mark.parametrize(
    "change", ["seed", "settings", "picture", "model", "lost frame", "damaged report", "mask"]
)
def test_whatever_changes_an_orbit_makes_it_again(drawn, tiny, tmp_path, change):
    picture = object_picture(tmp_path / "a.png")
    model = tmp_path / "V3D.ckpt"
    os.link(tiny.v3d, model)
    source = DrawnSource(find_model(model, [tiny.svd]), drawn.device)
    job, seed, config = PictureJob(picture, tmp_path / "out" / "a"), 0, CONFIG
    sample([job], source, seed, config)
    if change == "seed":
        seed = 1
    elif change == "settings":
        config = dataclasses.replace(CONFIG, sampler=SamplerConfig(steps=3))
    elif change == "picture":
        object_picture(picture, (1, 2, 3))
    elif change == "model":
        stat = model.stat()
        model.unlink()
        model.write_bytes(tiny.v3d.read_bytes())
        os.utime(model, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    elif change == "lost frame":
        (job.folder / "r_001.png").unlink()
    elif change == "damaged report":
        (job.folder / "orbit.json").write_text("{ half")
    elif change == "mask":
        Image.new("L", (40, 40), 255).save(tmp_path / "mask.png")
        job = dataclasses.replace(job, mask=tmp_path / "mask.png")
    assert kinds(sample([job], source, seed, config)) == ["made"]
    assert kinds(sample([job], source, seed, config)) == ["kept"]


def test_memory_options_are_no_other_settings(drawn, pictures, tmp_path):
    jobs = plan_jobs(pictures[:1], tmp_path)
    sample(jobs, drawn)
    config = dataclasses.replace(CONFIG, decode_frames=1)
    assert kinds(sample(jobs, dataclasses.replace(drawn, offload=True), config=config)) == ["kept"]


# Bad input


def test_one_bad_picture_does_not_stop_the_rest(drawn, pictures, tmp_path):
    Image.new("RGBA", (40, 40), (9, 9, 9, 0)).save(tmp_path / "empty.png")
    (tmp_path / "broken.png").write_bytes(pictures[0].read_bytes()[:60])
    bad = [tmp_path / "empty.png", tmp_path / "broken.png", tmp_path / "missing.png"]
    told = []
    jobs = plan_jobs([bad[0], pictures[0], *bad[1:], pictures[1]], tmp_path / "out")
    outcomes = sample(jobs, drawn, tell=told.append)
    assert told == outcomes
    assert kinds(outcomes) == ["failed", "made", "failed", "failed", "made"]
    assert all(outcome.bad_input for outcome in outcomes if outcome.kind == "failed")
    for outcome, text in zip(outcomes[::2], ("empty mask", "damaged or cut off"), strict=False):
        assert text in outcome.text
    assert "missing.png: no such picture" in outcomes[3].text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a", "b"}


def test_a_failure_of_the_network_is_no_bad_input(drawn, pictures, tmp_path, monkeypatch):
    def out_of_memory(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(drawn.model, "decode", out_of_memory)
    (outcome,) = sample(plan_jobs(pictures[:1], tmp_path), drawn)
    assert outcome.kind == "failed" and not outcome.bad_input
    assert outcome.text == "RuntimeError: CUDA out of memory"
    assert [*tmp_path.iterdir()] == []


def test_a_model_that_does_not_load_ends_the_run(drawn, pictures, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Broken(ModelSource):
        def load(self):
            raise MissingPackageError("diffusers is not installed")

    with pytest.raises(MissingPackageError):
        sample(plan_jobs(pictures, tmp_path), Broken(drawn.parts, drawn.device))


def test_pictures_of_one_name_are_refused_before_any_work(pictures, tmp_path):
    other = object_picture(tmp_path / "A.webp")
    with pytest.raises(ValueError, match=r"a\.png and .*A\.webp would both go to"):
        plan_jobs([pictures[0], other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_are_searched_and_a_picture_named_twice_is_taken_once(pictures, tmp_path):
    jobs = plan_jobs([pictures[1], pictures[0].parent], tmp_path)
    assert [job.picture.name for job in jobs] == ["b.png", "a.png", "c.png"]
    assert [job.folder for job in jobs] == [tmp_path / name for name in "bac"]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no pictures"):
        plan_jobs([tmp_path / "none"], tmp_path)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_beyond_the_generators_are_refused(drawn, pictures, tmp_path, seed):
    with pytest.raises(ValueError, match=f"seed is {seed}"):
        sample(plan_jobs(pictures, tmp_path / "out"), drawn, seed)


# Cutting out


def test_masks_go_to_the_pictures_of_their_names(drawn, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in ("x", "y"):
        object_picture(tmp_path / f"{name}.png", background=busy_background())
    mask = Image.new("L", (40, 40), 0)
    mask.paste(255, (5, 5, 30, 35))
    mask.save(masks / "x.png")
    object_picture(tmp_path / "z.png")  # has alpha, needs no mask
    inputs = [tmp_path / f"{name}.png" for name in "xyz"]
    outcomes = sample(plan_jobs(inputs, tmp_path / "out", masks), drawn)
    assert kinds(outcomes) == ["made", "failed", "made"]
    assert "Cut out by the given mask." in outcomes[0].report["notes"]
    assert str(masks / "y.png") in outcomes[1].text
    single = plan_jobs(inputs[1:2], tmp_path / "out", masks / "x.png")
    assert kinds(sample(single, drawn)) == ["made"]
    with pytest.raises(ValueError, match="3 pictures but one mask"):
        plan_jobs(inputs, tmp_path / "out", masks / "x.png")
    with pytest.raises(FileNotFoundError, match="masks"):
        plan_jobs(inputs, tmp_path / "out", tmp_path / "no_masks")


def test_rembg_cuts_out_what_nothing_else_can(drawn, tmp_path, monkeypatch):
    photo = object_picture(tmp_path / "photo.png", background=busy_background())
    white = torch.full((4,), 255, dtype=torch.uint8)
    flat = object_picture(tmp_path / "flat.png", background=white)
    asked = []

    def by_rembg(image):
        assert image.dtype == torch.uint8 and image.shape == (40, 40, 3)
        asked.append(image)
        mask = torch.zeros(40, 40)
        mask[8:32, 8:32] = 1
        return mask

    monkeypatch.setattr(generate, "remove_background", by_rembg)
    outcomes = sample(plan_jobs([flat, photo], tmp_path / "out"), drawn)
    assert kinds(outcomes) == ["made", "made"] and len(asked) == 1
    assert outcomes[1].report["notes"][0] == "rembg made the mask."


def test_without_rembg_the_error_says_what_would_help(drawn, tmp_path, monkeypatch):
    def missing(image):
        raise MissingPackageError("put u2net.onnx there")

    monkeypatch.setattr(generate, "remove_background", missing)
    photo = object_picture(tmp_path / "photo.png", background=busy_background())
    (outcome,) = sample(plan_jobs([photo], tmp_path / "out"), drawn)
    assert outcome.bad_input
    assert "--masks" in outcome.text and "put u2net.onnx there" in outcome.text


# Cancelling


def cancelled_at(when):
    """A bar that raises, as Ctrl-C does, at the first report for which `when` holds."""

    @contextmanager
    def bar(stage):
        def progress(step, total, preview=None, text=""):
            if when(step, text):
                raise KeyboardInterrupt

        yield progress

    return bar


@pytest.mark.parametrize("text", ["sampling", "decoding"])
def test_cancel_leaves_no_folder_and_no_memory(source, pictures, tmp_path, text):
    jobs = plan_jobs(pictures[:2], tmp_path / "out")

    def run():
        bar = cancelled_at(lambda step, now: now == text and (step >= 1))
        try:
            sample(jobs, source, stage_progress=bar)
        except KeyboardInterrupt:
            return True
        return False

    before = live_tensor_bytes()
    assert run()
    assert live_tensor_bytes() == before
    assert [*(tmp_path / "out").iterdir()] == []


def test_an_error_while_writing_leaves_no_folder(drawn, pictures, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generate, "write_video", full)
    (outcome,) = sample(plan_jobs(pictures[:1], tmp_path), drawn)
    assert outcome.kind == "failed" and "disk is full" in outcome.text and not outcome.bad_input
    assert [*tmp_path.iterdir()] == []
