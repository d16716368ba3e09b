"""What the pack finds on this machine: engines and why they were chosen, packages, what would help.

Nothing is built or downloaded. Engines are tried as the first fit would try them, so the reasons
are the very ones that the choosers log.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from . import __version__, backends, mesh_queries
from .mesh import unwrap
from .neus.engines import COLOUR_NETWORKS, COMPOSITORS, DISTANCE_NETWORKS, HASH_GRIDS, SAMPLERS
from .splats import engines as splat_engines

# package names as they stand in `backends.OPTIONAL_PACKAGES`
CUDA_ONLY = ("gsplat", "nerfacc", "tinycudann")
TORCH_BUILDS = "https://pytorch.org/get-started/locally"

_Choice = Callable[[torch.device], tuple[str, list[str]]]


def inspect_environment(device: torch.device, try_out: bool = True) -> dict[str, Any]:
    """Versions, device, engines and optional packages, as plain JSON.

    Args:
        device: Where the work is to be done, `cpu` or `cuda`.
        try_out: Import what is installed and check every engine against torch on the device, as
            the first fit does (Warp compiles its kernels once, which takes up to a minute). Without
            it only what is installed is listed, and CUDA is left alone.
    """
    engines = [_engine(*task, device, try_out) for task in _tasks()]
    return {
        "v3d": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": _torch_build(),
        "device": _device(device, try_out),
        "engines": engines,
        "packages": [_package(name, device, try_out) for name in backends.OPTIONAL_PACKAGES],
        "faster": _advice(device, engines),
    }


def environment_text(report: dict[str, Any]) -> str:
    """The report of `inspect_environment` for people, in lines."""
    build, device = report["torch"], report["device"]
    runs = f"for CUDA {build['cuda']}" if build["cuda"] else "for the CPU alone"
    runs = f"for ROCm {build['rocm']}" if build["rocm"] else runs
    driver = f"; the driver supports CUDA {build['driver']}" if build["driver"] else ""
    where = device["name"] or "not started"
    if memory := device["memory_gib"]:
        where += f", {memory['total']:.1f} GiB, {memory['free']:.1f} GiB of it free"
    lines = [
        f"V3D {report['v3d']}, Python {report['python']}, {report['platform']}",
        f"torch {build['version']}, built {runs}{driver}",
        f"device {device['device']}: {where}; {device['cores']} CPU cores",
        "",
        "Engines",
    ]
    for engine in report["engines"]:
        lines.append(f"  {engine['task']}: {engine['used'] or 'unknown'} ({engine['why']})")
        lines += [f"    {reason}" for reason in engine["not_used"]]
    lines += ["", "Optional packages"]
    for package in report["packages"]:
        name = f"{package['name']} {package['version'] or ''}".rstrip()
        detail = f"; {package['detail']}" if package["detail"] else ""
        lines.append(f"  {name}: {package['state']} ({package['purpose']}){detail}")
    lines += ["", "What would make it faster"]
    lines += [f"  {advice}" for advice in report["faster"]] or ["  nothing that we know of"]
    return "\n".join(lines)


def _tasks() -> list[tuple[str, tuple[str, ...], str, _Choice]]:
    """Every choice of an engine: for what, between which packages, on what ground, and who chooses."""

    def single(choice: tuple[str, str]) -> tuple[str, list[str]]:
        name, reason = choice
        return name, [reason] if reason else []

    agrees = "agrees with torch"
    on_cpus = (DISTANCE_NETWORKS, COLOUR_NETWORKS, SAMPLERS)
    return [
        ("splat raster", ("warp", "gsplat"), agrees, splat_engines.explain_choice),
        ("hash grid", tuple(HASH_GRIDS.candidates), agrees, HASH_GRIDS.explain_choice),
        ("compositing", tuple(COMPOSITORS.candidates), agrees, COMPOSITORS.explain_choice),
        *((e.task, tuple(e.candidates), agrees, e.explain_choice) for e in on_cpus),
        ("mesh queries", ("warp",), "runs", lambda d: single(mesh_queries.choose_engine(d))),
        ("unwrapping", ("xatlas",), "imports", lambda _: single(unwrap.choose_engine())),
    ]


def _engine(
    task: str,
    candidates: tuple[str, ...],
    ground: str,
    choose: _Choice,
    device: torch.device,
    try_out: bool,
) -> dict[str, Any]:
    used, reasons = None, []
    if try_out:
        try:
            used, reasons = choose(device)
        except ValueError as error:  # an environment variable asks for what cannot be
            ground = str(error)
        if used in ("torch", "charts"):
            ground = "slow" if used == "torch" else "of our own"
    else:
        found = [name for name in candidates if backends.is_installed(name)]
        ground = f"not tried; installed: {', '.join(found) or 'none'}"
    return {"task": task, "used": used, "why": ground, "not_used": reasons}


def _package(name: str, device: torch.device, try_out: bool) -> dict[str, Any]:
    package = backends.OPTIONAL_PACKAGES[name]
    state, detail = "installed", ""
    if not backends.is_installed(name):
        state, detail = "not installed", f"pip install {package.install}"
    elif name in CUDA_ONLY and device.type != "cuda":
        detail = "not tried, for it is used on CUDA only"
    elif try_out:
        detail = backends.problem(name)
        state = "cannot be used" if detail else "works"
        if not detail and (detail := backends.missing_model(name)):
            state = "lacks its model"
    return {
        "name": name,
        "version": _version(package),
        "state": state,
        "purpose": package.purpose,
        "detail": detail,
    }


def _version(package: backends.OptionalPackage) -> str | None:
    # the first of pip's names is the package itself, further ones are what it needs beside it
    for name in (package.module, package.install.split()[0]):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None  # absent, or put on the path by hand


def _torch_build() -> dict[str, str | None]:
    driver = _driver()
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "driver": f"{driver[0]}.{driver[1]}" if driver else None,
    }


def _driver() -> tuple[int, int] | None:
    """The CUDA version that the NVIDIA driver supports; its library tells it without a start of CUDA.

    torch is not asked: its private function told nothing in 2.11 for CUDA 13.0.
    """
    if not torch.version.cuda:
        return None
    try:
        library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:  # no driver
        return None
    number = ctypes.c_int()  # 12040 is 12.4
    failed = library.cuDriverGetVersion(ctypes.byref(number))
    return None if failed or not number.value else divmod(number.value // 10, 100)


def _device(device: torch.device, try_out: bool) -> dict[str, Any]:
    name, memory = None, None
    if device.type != "cuda":
        name, memory = platform.processor() or platform.machine(), _main_memory()
    elif try_out or torch.cuda.is_initialized():
        name = torch.cuda.get_device_name(device)
        free, total = torch.cuda.mem_get_info(device)
        memory = {"total": round(total / 2**30, 1), "free": round(free / 2**30, 1)}
    return {
        "device": str(device),
        "name": name,
        "memory_gib": memory,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def _main_memory() -> dict[str, float] | None:
    try:
        import psutil
    except ImportError:  # the host and the extra `cli` bring it
        return None
    memory = psutil.virtual_memory()
    return {"total": round(memory.total / 2**30, 1), "free": round(memory.available / 2**30, 1)}


def _advice(device: torch.device, engines: list[dict[str, Any]]) -> list[str]:
    """What would make the work faster, one line each."""
    advice = [line for line in [_device_advice(device)] if line]
    for engine in engines:
        if engine["used"] not in (None, "torch", "charts"):
            continue
        advice += [line for line in engine["not_used"] if line not in advice]
    return advice


def _device_advice(device: torch.device) -> str:
    """Why there is no GPU at work where there could be one."""
    if device.type == "cuda" or sys.platform == "darwin":
        return ""
    if torch.cuda.is_available():
        return (
            f"torch sees {torch.cuda.device_count()} GPU(s), but the CPU was asked for (--cpu of "
            "ComfyUI, --device cpu of v3d)"
        )
    build = torch.version.cuda
    if build is None:
        return (
            f"this torch ({torch.__version__}) is built for the CPU; on a machine with an NVIDIA "
            "GPU one for CUDA is many times faster. V3D never changes torch itself: take the pip "
            f"line from {TORCH_BUILDS}"
        )
    driver = _driver()
    if driver is None:
        return f"torch is built for CUDA {build}, but no NVIDIA driver was found; install one"
    if driver[0] < int(build.split(".")[0]):
        return (
            f"torch is built for CUDA {build}, but the NVIDIA driver supports {driver[0]}."
            f"{driver[1]}; update the driver, or take an older build from {TORCH_BUILDS}"
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = f" (CUDA_VISIBLE_DEVICES={hidden})" if hidden is not None else ""
    return f"torch is built for CUDA {build} and there is a driver, but it sees no GPU{shown}"
