"""The one door to optional packages: what is there, what it is for, and how to get it."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

ImageDistance = Callable[[Tensor, Tensor], Tensor]  # [V, H, W, 3] in [0, 1], twice -> [V]

# The trunk that `lpips` takes from torchvision (AlexNet_Weights.IMAGENET1K_V1). The package brings
# only its own linear layers; the trunk has to be in torch's hub folder already.
LPIPS_TRUNK_FILE = "alexnet-owt-7be5be79.pth"
REMBG_MODEL_FILE = "u2net.onnx"  # the network V3D cuts out with
GSPLAT_BUILD = "gsplat_cuda"  # what gsplat calls its library when it compiles itself


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
        OptionalPackage("pxr", "usd-core", "writing .usdz files for phones"),
        OptionalPackage("tensorboard", "tensorboard", "curves of a training in the browser"),
        OptionalPackage("ray", "ray", "batches on a cluster"),
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


def problem(module: str) -> str:
    """Why an optional package cannot be used, or an empty string; imports it to know.

    gsplat, which would compile itself when imported, is imported only where its code is there.
    """
    package = OPTIONAL_PACKAGES[module]
    if not is_installed(module):
        return f"{module} is not installed; pip install {package.install}"
    if module == "gsplat":
        return load_gsplat()[1]
    try:
        {"pxr": load_usd, "rembg": load_rembg}.get(module, lambda: load(module))()
    except MissingPackageError as error:
        return str(error)
    return ""


def load_usd() -> ModuleType:
    """Pixar's `pxr` with the modules that a .usdz file is made with.

    Raises:
        MissingPackageError: usd-core is absent or broken.
    """
    package = load("pxr")
    try:
        for name in ("Sdf", "Tf", "Usd", "UsdGeom", "UsdShade", "UsdUtils", "Vt"):
            importlib.import_module(f"pxr.{name}")
    except Exception as error:  # a broken compiled wheel raises anything
        install = OPTIONAL_PACKAGES["pxr"].install
        raise MissingPackageError(
            f"pxr does not import ({error}); pip install --force-reinstall {install}"
        ) from error
    return package


def load_summary_writer() -> Callable[..., Any]:
    """torch's writer of TensorBoard's files.

    Raises:
        MissingPackageError: tensorboard is absent or broken.
    """
    load("tensorboard")
    return importlib.import_module("torch.utils.tensorboard").SummaryWriter


def load_lpips_network() -> tuple[torch.nn.Module | None, str]:
    """The network of LPIPS (Zhang et al. 2018, AlexNet) if it can be had without a download.

    It takes pictures [V, 3, H, W] in [-1, 1], twice, and is differentiable in both.

    Returns:
        The network in evaluation mode without parameters to learn, or None; and which it is or why
        there is none.
    """
    if not is_installed("lpips"):
        return None, "lpips is not installed; pip install lpips"
    if reason := missing_model("lpips"):
        return None, reason
    try:
        network = load("lpips").LPIPS(net="alex", verbose=False).eval().requires_grad_(False)
    except Exception as error:  # a damaged file raises anything; a score is not worth a run
        return None, f"lpips does not load: {error}"
    logger.info("LPIPS: AlexNet, weights from %s", _lpips_trunk())
    return network, "alex"


def _lpips_trunk() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_TRUNK_FILE


def missing_model(module: str) -> str:
    """Which file a package would download at its first use and where it belongs, or ""."""
    if module == "lpips" and not (trunk := _lpips_trunk()).is_file():
        return f"lpips would download its weights; put {LPIPS_TRUNK_FILE} into {trunk.parent}"
    if module == "rembg":
        try:
            _rembg_model_file()
        except MissingPackageError as error:
            return str(error)
    return ""


def load_lpips() -> tuple[ImageDistance | None, str]:
    """The LPIPS distance if it can be had without a download; see `load_lpips_network`.

    Returns:
        The distance of pairs of pictures, on the CPU and without gradients, or None; and which
        network it is or why there is none.
    """
    network, reason = load_lpips_network()
    if network is None:
        return None, reason

    @torch.no_grad()
    def distance(images: Tensor, targets: Tensor) -> Tensor:
        pair = [x.detach().cpu().float().permute(0, 3, 1, 2) * 2 - 1 for x in (images, targets)]
        return network(*pair).flatten()

    return distance, reason


def gsplat_is_built() -> tuple[bool, str]:
    """Whether gsplat's CUDA code can be used now, and if not, why and what helps.

    Never compiles: gsplat builds itself when its code is first touched, for minutes and only with
    nvcc, which nobody asked for. See `load_gsplat`.
    """
    module, reason = load_gsplat()
    return module is not None, reason


def load_gsplat() -> tuple[ModuleType | None, str]:
    """gsplat with its compiled code in place, or None and the reason.

    gsplat takes its code from `gsplat.csrc` and compiles it when that does not import. So the
    compiled library is found and loaded here first, under that name; without one, or with one that
    does not load (another torch, no CUDA), gsplat is not imported at all. A library from gsplat's
    own build in torch's extension folder counts too, and then needs no nvcc any more.
    """
    if not is_installed("gsplat"):
        return None, "gsplat is not installed; pip install gsplat"
    loaded = sys.modules.get("gsplat.cuda._backend")
    if loaded is not None:  # by another node pack
        if getattr(loaded, "_C", None) is None:
            return (
                None,
                "gsplat was imported before its CUDA code was there; restart after its build",
            )
        return load("gsplat"), ""
    if "gsplat.csrc" not in sys.modules:
        library, reason = _gsplat_library()
        if library is None:
            return None, reason
        name = "gsplat.csrc" if library.name.startswith("csrc") else GSPLAT_BUILD
        try:
            sys.modules["gsplat.csrc"] = _load_library(name, library)
        except Exception as error:  # a library for another torch raises anything
            return (
                None,
                f"gsplat's compiled code does not load: {library} ({error}); build it again",
            )
    try:
        package = load("gsplat")
        importlib.import_module("gsplat.cuda._backend")  # imports nothing but what was loaded
    except Exception as error:
        return None, f"gsplat does not import: {error}"
    return package, ""


def _gsplat_library() -> tuple[Path | None, str]:
    """The compiled file of a prebuilt wheel or of gsplat's own finished build."""
    spec = importlib.util.find_spec("gsplat")  # of a top-level name: runs none of its code
    for folder in (spec and spec.submodule_search_locations) or ():
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            if (Path(folder) / f"csrc{suffix}").is_file():
                return Path(folder) / f"csrc{suffix}", ""
    build = _torch_extensions_folder() / GSPLAT_BUILD
    library = build / (GSPLAT_BUILD + (".pyd" if sys.platform == "win32" else ".so"))
    if (build / "lock").exists():  # torch's sign of a build at work
        return None, f"gsplat is being built or its build broke off; then delete {build / 'lock'}"
    if not library.is_file():
        remedy = "python -c 'from gsplat.cuda._backend import _C' builds it (minutes, needs nvcc)"
        return None, f"gsplat's CUDA code is not compiled; {remedy}"
    return library, ""


def _torch_extensions_folder() -> Path:
    """Where torch keeps what it compiles; its own function for it would make the folder."""
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    if named is not None:
        return Path(named)
    appdirs = importlib.import_module("torch._appdirs")
    platform = "cpu" if torch.version.cuda is None else f"cu{torch.version.cuda.replace('.', '')}"
    if torch.version.hip is not None:
        platform = f"rocm{torch.version.hip.replace('.', '')}"
    python = f"py{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"
    return Path(appdirs.user_cache_dir(appname="torch_extensions")) / f"{python}_{platform}"


def _load_library(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not an extension module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_rembg() -> ModuleType:
    """rembg with the runtime that it needs.

    Raises:
        MissingPackageError: rembg or onnxruntime is absent or broken.
    """
    load("onnxruntime")  # first: without it rembg ends the whole process
    return load("rembg")


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
    rembg, onnxruntime = load_rembg(), load("onnxruntime")
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
