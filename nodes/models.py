"""V3D Load Model: V3D.ckpt and what it lacks, as the host's MODEL, CLIP_VISION and VAE."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import io

from ..v3d_core.diffusion.bundled import nano_file
from ..v3d_core.diffusion.families import family_of
from ..v3d_core.diffusion.model_files import (
    SV3D_FILES,
    SV3D_HOME,
    SVD_FILE,
    SVD_HOME,
    V3D_FILE,
    V3D_HOME,
    find_model,
)
from .host_models import host_clip_vision, host_model, host_vae
from .paths import file_state, state_or_reason
from .runtime import named_errors, tell

AUTO = "auto"
NANO = "V3D-nano (bundled)"  # no file of the user's: it comes with the pack
MODEL_FOLDERS = ("checkpoints", "diffusion_models")
CLIP_FOLDERS = ("checkpoints", "clip_vision")
VAE_FOLDERS = ("vae", "checkpoints")
HOMES = {V3D_FILE: V3D_HOME, SVD_FILE: SVD_HOME, **dict.fromkeys(SV3D_FILES, SV3D_HOME)}
# Names that `auto` looks into for what the model file lacks; reading every file would take minutes.
COMPANION_WORDS = ("svd", "stable-video", "stable_video", "vit-h", "vit_h", "open_clip", "laion2b")


class V3DLoadModel(io.ComfyNode):
    """An orbit model from ComfyUI's model folders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        models = _names(MODEL_FOLDERS)
        default = next((n for n in models if is_v3d(n)), NANO)
        return io.Schema(
            node_id="V3DLoadModel",
            display_name="V3D Load Model",
            category="3d/V3D",
            description="Loads V3D's video model, or SV3D's. V3D.ckpt has no image encoder, so "
            "svd_xt or a ViT-H CLIP-vision file is read as well, without loading its video model.",
            search_aliases=[
                "v3d checkpoint",
                "orbit model",
                "svd",
                "image to 3d",
                "multiview",
                "sv3d",
            ],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    # only what is there: the front end offers a download for what is not listed
                    options=[*models, NANO],
                    default=default,
                    tooltip="V3D.ckpt, its .safetensors form (smaller and faster to load, see "
                    "v3d convert), sv3d_u or sv3d_p, or another model with the shape of SVD, from "
                    "models/checkpoints or models/diffusion_models. V3D-nano comes with the pack: "
                    "small and quick, 128 px, for trying.",
                ),
                io.Combo.Input(
                    "clip_vision_name",
                    options=[AUTO, *_names(CLIP_FOLDERS)],
                    default=AUTO,
                    tooltip="Where the image encoder comes from: svd_xt.safetensors, or a ViT-H-14 "
                    "laion2B file of models/clip_vision. auto: the model file if it has one, else "
                    "the first such file that is found.",
                ),
                io.Combo.Input(
                    "vae_name",
                    options=[AUTO, *_names(VAE_FOLDERS)],
                    default=AUTO,
                    advanced=True,
                    tooltip="Where the autoencoder with the temporal decoder comes from. auto: the "
                    "model file if it has one, else the image encoder's file.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="For V3D Sample Orbit, KSampler, LoRA loaders..."),
                io.ClipVision.Output("clip_vision", tooltip="Encodes the picture into a token."),
                io.Vae.Output("vae", tooltip="Encodes the picture and decodes the orbit."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name, clip_vision_name, vae_name) -> bool | str:
        try:
            model_paths(model_name, clip_vision_name, vae_name)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model_name, clip_vision_name, vae_name) -> str:
        def states() -> str:
            model, companions, candidates = model_paths(model_name, clip_vision_name, vae_name)
            return repr([file_state(Path(path)) for path in (model, *companions, *candidates)])

        return state_or_reason(states)

    @classmethod
    @named_errors
    def execute(cls, model_name, clip_vision_name, vae_name) -> io.NodeOutput:
        model, companions, candidates = model_paths(model_name, clip_vision_name, vae_name)
        folder = folder_paths.get_folder_paths("checkpoints")[0]
        parts = find_model(
            model, companions, f"Download it, put it into {folder} and press R.", candidates
        )
        files = [
            f"{part.kind} from {part.path.name}" for part in (parts.unet, parts.clip, parts.vae)
        ]
        tell("V3D Load Model", ", ".join(files))
        vae = host_vae(parts.vae)
        vae.v3d_family = family_of(parts.unet.shape)  # for V3D Conditioning, which has no MODEL
        return io.NodeOutput(host_model(parts.unet), host_clip_vision(parts.clip), vae)


def model_paths(
    model_name: str, clip_vision_name: str, vae_name: str
) -> tuple[str, list[str], list[str]]:
    """Full paths of the model file, of the companions named, and of those that `auto` may take.

    Raises:
        ValueError: A name is not in ComfyUI's model folders; the text says what to do.
    """
    model = str(nano_file()) if model_name == NANO else _path(model_name, MODEL_FOLDERS)
    companions = [] if vae_name == AUTO else [_path(vae_name, VAE_FOLDERS)]
    if clip_vision_name != AUTO:
        return model, [*companions, _path(clip_vision_name, CLIP_FOLDERS)], []
    names = [
        name
        for name in _names(CLIP_FOLDERS)
        if any(word in name.lower() for word in COMPANION_WORDS) and name != model_name
    ]
    return model, companions, [_path(name, CLIP_FOLDERS) for name in names]


def is_v3d(name: str) -> bool:
    """Whether a file is called like V3D's own, not like SV3D's."""
    return "v3d" in name.lower().replace("sv3d", "")


def _path(name: str, folders: tuple[str, ...]) -> str:
    """Full path of a listed file; nothing that is not listed is ever opened."""
    for folder in folders:
        if name in folder_paths.get_filename_list(folder):
            return folder_paths.get_full_path_or_raise(folder, name)
    places = " or ".join(f"models/{folder}" for folder in folders)
    home = HOMES.get(name)
    source = f" Get it from {home}, put it there" if home else " Put it there"
    raise ValueError(f"there is no file {name!r} in {places}.{source} and press R")


def _names(folders: tuple[str, ...]) -> list[str]:
    """File names in the folders, each once."""
    names = [name for folder in folders for name in folder_paths.get_filename_list(folder)]
    return list(dict.fromkeys(names))
