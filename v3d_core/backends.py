"""The one door to optional packages: what is there, what it is for, and how to get it."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

ImageDistance = Callable[[Tensor, Tensor], Tensor]  # [V, H, W, 3] in [0, 1], twice -> [V]

# The trunk that `lpips` takes from torchvision (AlexNet_Weights.IMAGENET1K_V1). The package brings
# only its own linear layers; the trunk has to be in torch's hub folder already.
LPIPS_TRUNK_FILE = "alexnet-owt-7be5be79.pth"
REMBG_MODEL_FILE = "u2net.onnx"  # the network V3D cuts out with


@dataclass(frozen=True)
class OptionalPackage:
    """A package that the project can use and never needs."""

    module: str  # import name
    install: str  # pip's name for it
    purpose: str  # what it is used for, for people


OPTIONAL_PACKAGES = {
    package.module: package
    for package in (
        OptionalPackage("warp", "warp-lang", "fast kernels without a compiler"),
        OptionalPackage("gsplat", "gsplat", "fast splat rasterisation on CUDA"),
        OptionalPackage("nerfacc", "nerfacc", "fast volume rendering on CUDA"),
        OptionalPackage("tinycudann", "tinycudann", "fast hash grids on CUDA"),
        OptionalPackage("xatlas", "xatlas", "texture unwrapping"),
        OptionalPackage("lpips", "lpips", "the perceptual score LPIPS"),
        OptionalPackage("diffusers", "diffusers transformers", "sampling without ComfyUI"),
        OptionalPackage("transformers", "transformers", "CLIP without ComfyUI"),
        OptionalPackage("rembg", "rembg", "cutting out the object of a photograph"),
        OptionalPackage("onnxruntime", "onnxruntime", "the runtime of rembg"),
    )
}


class MissingPackageError(RuntimeError):
    """An optional package was asked for by name and cannot be used."""


def is_installed(module: str) -> bool:
    """Whether an optional package can be found; does not import it."""
    return importlib.util.find_spec(OPTIONAL_PACKAGES[module].module) is not None


def load(module: str) -> ModuleType:
    """Import an optional package at its first use.

    Raises:
        MissingPackageError: It is absent or broken; the message has the line that installs it.
    """
    package = OPTIONAL_PACKAGES[module]
    try:
        return importlib.import_module(package.module)
    # a broken compiled wheel raises anything: OSError, AttributeError... and rembg exits
    except (Exception, SystemExit) as error:
        reason = "is not installed" if not is_installed(module) else f"does not import ({error})"
        raise MissingPackageError(
            f"{package.module} ({package.purpose}) {reason}; pip install {package.install}"
        ) from error


def load_lpips() -> tuple[ImageDistance | None, str]:
    """The LPIPS distance (Zhang et al. 2018, AlexNet) if it can be had without a download.

    Returns:
        The distance of pairs of pictures, or None; and which network it is or why there is none.
    """
    trunk = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_TRUNK_FILE
    if not is_installed("lpips"):
        return None, "lpips is not installed; pip install lpips"
    if not trunk.is_file():
        return None, f"lpips would download its weights; put {LPIPS_TRUNK_FILE} into {trunk.parent}"
    try:
        network = load("lpips").LPIPS(net="alex", verbose=False).eval().requires_grad_(False)
    except Exception as error:  # a damaged file raises anything; a score is not worth a run
        return None, f"lpips does not load: {error}"
    logger.info("LPIPS: AlexNet, weights from %s", trunk)

    def distance(images: Tensor, targets: Tensor) -> Tensor:
        pair = [x.detach().cpu().float().permute(0, 3, 1, 2) * 2 - 1 for x in (images, targets)]
        return network(*pair).flatten()

    return distance, "alex"


def remove_background(
    image: Tensor,  # [H, W, 3] uint8
) -> Tensor:  # [H, W]
    """Coverage of a photograph's main object, by rembg with U^2-Net (Qin et al. 2020) as in V3D.

    Only the mask: rembg's own colours are multiplied by it. Nothing is downloaded, which rembg
    would do by itself: its model file has to be there.

    Args:
        image: sRGB bytes. [H, W, 3]

    Returns:
        Mask in [0, 1], 1 = object. [H, W]

    Raises:
        MissingPackageError: rembg, onnxruntime or the model file is absent or broken; the message
            says what to install, or where the file belongs and where it comes from.
    """
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != torch.uint8:
        raise ValueError(
            f"remove_background: expected [H, W, 3] uint8, got {list(image.shape)} {image.dtype}"
        )
    onnxruntime = load("onnxruntime")  # first: without it rembg ends the whole process
    rembg = load("rembg")
    model = _rembg_model_file()
    u2net = importlib.import_module("rembg.sessions.u2net").U2netSession

    class LocalSession(u2net):
        """Takes the file that is there; the original looks for another one in some versions."""

        @classmethod
        def download_models(cls, *args: object, **kwargs: object) -> str:
            return str(model)

    try:
        session = LocalSession("u2net", onnxruntime.SessionOptions())
    except Exception as error:  # a damaged file raises anything
        raise MissingPackageError(
            f"rembg cannot read its model {model} ({error}); {_rembg_remedy(model)}"
        ) from error
    logger.info("rembg: U^2-Net from %s", model)
    mask = rembg.remove(image.detach().cpu().numpy(), session=session, only_mask=True)
    return torch.from_numpy(mask.copy()).float() / 255


def _rembg_model_file() -> Path:
    """The model where rembg keeps it: in one folder, or in newer versions in one per model."""
    data = os.environ.get("XDG_DATA_HOME")
    named = os.environ.get("U2NET_HOME")
    old = named or os.path.join(data or "~", ".u2net")
    new = (
        named
        or os.environ.get("REMBG_HOME")
        or os.path.join(data or "~", "rembg" if data else ".rembg")
    )
    places = [
        Path(old).expanduser() / REMBG_MODEL_FILE,
        Path(new).expanduser() / "models" / "u2net" / REMBG_MODEL_FILE,
    ]
    for place in places:
        if place.is_file():
            return place
    raise MissingPackageError(
        f"rembg would download its model {REMBG_MODEL_FILE}, which V3D does not let it do; "
        f"{_rembg_remedy(places[0])}"
    )


def _rembg_remedy(place: Path) -> str:
    return (
        f"put {REMBG_MODEL_FILE} (176 MB, from https://github.com/danielgatis/rembg/releases) at "
        f"{place}, or do without: give a picture with an alpha channel, or --masks"
    )
