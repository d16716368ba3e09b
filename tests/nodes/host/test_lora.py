"""LoRA files of `v3d train` in core's own loaders: the same orbit as the merged weights."""

import folder_paths
import pytest
import torch
from scenes import pack
from tiny_models import CLIP, UNET, VAE, random_state, tiny_shapes

import nodes

RANK, ALPHA = 3, 4.5


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, a LoRA that changes much, and the model with it merged."""
    folder = tmp_path_factory.mktemp("lora")
    lora, store = pack("v3d_core.diffusion.lora"), pack("v3d_core.diffusion.training_store")
    weights = pack("v3d_core.formats.weights")
    shapes = tiny_shapes(pack)
    state = random_state(pack, shapes["unet"], 0, UNET) | random_state(pack, shapes["vae"], 1, VAE)
    state |= random_state(pack, shapes["clip"], 2, CLIP + "visual.")
    layout = {name: (t.dtype, tuple(t.shape)) for name, t in state.items()}
    weights.write_safetensors(folder / "model.safetensors", state, layout)
    generator = torch.Generator().manual_seed(0)
    adapters = {}
    for entry in shapes["unet"].entries():
        if lora.ADAPTED.search(entry.sgm):
            out, in_ = entry.shape
            down = torch.randn(RANK, in_, generator=generator) / in_**0.5
            up = torch.randn(out, RANK, generator=generator) / 2
            adapters[entry.sgm.removesuffix(".weight")] = lora.Adapter(down, up, ALPHA)
    lora.write_lora(folder / "lora.safetensors", adapters)
    parts = pack("v3d_core.diffusion.model_files").find_model(folder / "model.safetensors")
    networks = {
        "unet": (parts.unet.shape, lora.merged_unet(parts.unet, adapters)),
        "vae": (parts.vae.shape, parts.vae),
        "clip": (parts.clip.shape, parts.clip),
    }
    store.write_model(folder / "merged.safetensors", networks, torch.float32)
    return folder, len(adapters)


@pytest.fixture(autouse=True)
def places(files, monkeypatch):
    folder, _ = files
    for kind in ("checkpoints", "loras", "diffusion_models", "clip_vision", "vae"):
        here = [str(folder)] if kind in ("checkpoints", "loras") else []
        suffixes = folder_paths.folder_names_and_paths[kind][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, (here, suffixes))
    folder_paths.filename_list_cache.clear()
    with torch.inference_mode():
        yield


def load(name):
    load_model = pack("nodes.models").V3DLoadModel
    return load_model.execute(model_name=name, clip_vision_name=name, vae_name="auto").args[0]


def orbit(model):
    """A step of core's sampler on fixed conditions."""
    generator = torch.Generator().manual_seed(1)
    numbers = {"fps": 2, "motion_bucket_id": 300, "augmentation_level": 0.02}
    conds = []
    for keep in (1.0, 0.0):
        token = torch.randn(1, 1, 96, generator=generator) * keep
        latent = torch.randn(1, 4, 8, 8, generator=generator) * keep
        conds.append([[token, {"concat_latent_image": latent, **numbers}]])
    latent = {"samples": torch.zeros(4, 4, 8, 8)}
    made = nodes.common_ksampler(model, 7, 2, 3.5, "euler", "karras", *conds, latent)
    return made[0]["samples"]


def test_cores_lora_loader_gives_the_orbit_of_the_merged_weights(files):
    model = load("model.safetensors")
    (adapted,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, "lora.safetensors", 1.0)
    assert len(adapted.patches) == files[1]
    plain, ours, merged = orbit(model), orbit(adapted), orbit(load("merged.safetensors"))
    spread = float(merged.max() - merged.min())
    assert float((ours - plain).abs().max()) > 0.05 * spread
    assert float((ours - merged).abs().max()) < 1e-3 * spread


def test_no_name_of_the_file_is_left_over(files, caplog):
    model = load("model.safetensors")
    nodes.LoraLoaderModelOnly().load_lora_model_only(model, "lora.safetensors", 0.5)
    assert not [r for r in caplog.records if "lora key not loaded" in r.message.lower()]
    assert not [r for r in caplog.records if "NOT LOADED" in r.message]
