"""The one door to optional packages: what is there, what it is for, and how to get it."""

from __future__ import annotations

import importlib
import importlib.util
import logging
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
        OptionalPackage("rembg", "rembg", "cutting out the object of a photograph"),
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
    except (
        Exception
    ) as error:  # a broken compiled wheel raises anything: OSError, AttributeError...
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
