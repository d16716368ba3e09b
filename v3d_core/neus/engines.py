"""Which kernels run: one contract per task, several engines, each checked against its oracle.

`warp` are the built-in kernels: of the hash grid and the compositing on CPU and CUDA, of the networks
and the samples along rays on the CPU, as torch has what a captured CUDA step needs. `tinycudann`
(hash grid) and `nerfacc` (compositing) come next on CUDA where they are installed, `torch` is the
definition and runs anywhere. The choice is made once per device, with a log line that says which
and why; `V3D_HASH_GRID`, `V3D_COMPOSITING`, `V3D_NETWORKS` (both) and `V3D_SAMPLES` force an engine
where a task has it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from .. import backends
from . import checks
from .grid import Encoder
from .torch_encoding import encode_torch
from .torch_networks import (
    ColourNetwork,
    DistanceNetwork,
    colour_network_torch,
    distance_network_torch,
)
from .torch_sampling import Sampler, place_samples_torch
from .torch_volume import Compositor, composite_torch

logger = logging.getLogger(__name__)

Task = TypeVar("Task", bound=Callable)


@dataclass(frozen=True)
class Engine(Generic[Task]):
    """Something that fulfils a task's contract."""

    name: str
    run: Task
    capturable: bool  # whether a step with it can be captured as a CUDA graph


class Engines(Generic[Task]):
    """All engines of one task; chooses once per device.

    Args:
        task: What they do, for people.
        variable: Environment variable that forces one.
        oracle: The definition in torch.
        candidates: The others' names in the order of preference, and the loader of each.
        check: What is wrong with one of them on a device, or an empty string.
        devices: Where there are others than the oracle.
    """

    def __init__(
        self,
        task: str,
        variable: str,
        oracle: Task,
        candidates: dict[str, Callable[[torch.device], Engine[Task]]],
        check: Callable[[Task, torch.device], str],
        devices: tuple[str, ...] = ("cpu", "cuda"),
    ) -> None:
        self.task = task
        self.variable = variable
        self.oracle: Engine[Task] = Engine("torch", oracle, capturable=True)
        self.candidates = candidates
        self.check = check
        self.devices = devices
        self._found: dict[tuple[str, torch.device], tuple[Engine[Task] | None, str]] = {}
        self._best: dict[torch.device, tuple[Engine[Task], list[str]]] = {}

    def choose(self, device: torch.device, dtype: torch.dtype) -> Engine[Task]:
        """The engine for tensors of a device and dtype.

        Raises:
            ValueError: The variable names an engine that does not exist or cannot run here.
        """
        forced = os.environ.get(self.variable, "")
        if forced not in ("", "torch", *self.candidates):
            known = ", ".join(["torch", *self.candidates])
            raise ValueError(f"{self.variable}={forced}: known engines are {known}")
        if forced == "torch" or device.type not in self.devices or dtype != torch.float32:
            return self.oracle
        device = _numbered(device)
        if forced:
            engine, reason = self.find(forced, device)
            if engine is None:
                raise ValueError(f"{self.variable}={forced}, but {reason}")
            return engine
        if device not in self._best:
            self._best[device] = self._first_that_agrees(device)
        return self._best[device][0]

    def explain_choice(self, device: torch.device) -> tuple[str, list[str]]:
        """The engine of float32 tensors on a device, and why none that comes before it.

        Raises:
            ValueError: As `choose`.
        """
        engine = self.choose(device, torch.float32)
        if device.type not in self.devices:
            return engine.name, [f"no other one runs on {device.type}"]
        if forced := os.environ.get(self.variable, ""):
            return engine.name, [f"{self.variable}={forced} forces it"]
        return engine.name, list(self._best[_numbered(device)][1])

    def find(self, name: str, device: torch.device) -> tuple[Engine[Task] | None, str]:
        """An engine if it imports and agrees with the oracle, or None and why not."""
        if name == "torch":
            return self.oracle, ""
        if (name, device) not in self._found:
            self._found[name, device] = self._try(name, device)
        return self._found[name, device]

    def available(self, device: torch.device) -> list[Engine[Task]]:
        """All engines that run on a device and agree with the oracle, the oracle last."""
        found = [self.find(name, device)[0] for name in self._for(device)]
        return [engine for engine in found if engine is not None] + [self.oracle]

    def forget(self) -> None:
        """Let the next choice look anew."""
        self._found.clear()
        self._best.clear()

    def _for(self, device: torch.device) -> list[str]:
        """Candidates for a kind of device."""
        if device.type not in self.devices:
            return []
        return [name for name in self.candidates if name == "warp" or device.type == "cuda"]

    def _first_that_agrees(self, device: torch.device) -> tuple[Engine[Task], list[str]]:
        reasons: list[str] = []
        for name in self._for(device):
            engine, reason = self.find(name, device)
            if engine is not None:
                logger.info("%s on %s: %s (agrees with torch)", self.task, device, name)
                for missed in reasons:
                    logger.warning("%s on %s: %s", self.task, device, missed)
                return engine, reasons
            reasons.append(reason)
        logger.warning("%s on %s: torch, which is slow (%s)", self.task, device, "; ".join(reasons))
        return self.oracle, reasons

    def _try(self, name: str, device: torch.device) -> tuple[Engine[Task] | None, str]:
        if not backends.is_installed(name):
            package = backends.OPTIONAL_PACKAGES[name]
            return None, f"{name} is not installed; pip install {package.install}"
        if name not in self._for(device):
            return None, f"{name} is used on CUDA only"
        try:
            engine = self.candidates[name](device)
            with torch.inference_mode(False), torch.enable_grad():
                problem = self.check(engine.run, device)
        except torch.OutOfMemoryError:  # says nothing about the engine
            raise
        except Exception as error:  # a broken native package raises anything; torch still works
            problem = f"it does not run: {error}"
        else:
            if not problem:
                return engine, ""
        return None, f"{name} is not used: {problem}"


def _numbered(device: torch.device) -> torch.device:
    """`cuda` as the device that it stands for."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _warp_encoder(device: torch.device) -> Engine[Encoder]:
    from .warp_encoding import encode_warp

    return Engine("warp", encode_warp, capturable=device.type == "cuda")


def _warp_compositor(device: torch.device) -> Engine[Compositor]:
    from .warp_volume import composite_warp

    return Engine("warp", composite_warp, capturable=device.type == "cuda")


def _warp_distance_network(device: torch.device) -> Engine[DistanceNetwork]:
    from .warp_networks import distance_network_warp

    return Engine("warp", distance_network_warp, capturable=False)


def _warp_colour_network(device: torch.device) -> Engine[ColourNetwork]:
    from .warp_networks import colour_network_warp

    return Engine("warp", colour_network_warp, capturable=False)


def _warp_sampler(device: torch.device) -> Engine[Sampler]:
    from .warp_sampling import place_samples_warp

    return Engine("warp", place_samples_warp, capturable=False)


def _tinycudann_encoder(device: torch.device) -> Engine[Encoder]:
    from .tcnn_encoding import encode_tinycudann

    return Engine("tinycudann", encode_tinycudann, capturable=False)


def _nerfacc_compositor(device: torch.device) -> Engine[Compositor]:
    from .nerfacc_volume import composite_nerfacc

    return Engine("nerfacc", composite_nerfacc, capturable=False)


HASH_GRIDS = Engines[Encoder](
    "hash grid",
    "V3D_HASH_GRID",
    encode_torch,
    {"warp": _warp_encoder, "tinycudann": _tinycudann_encoder},
    checks.compare_encoders,
)

COMPOSITORS = Engines[Compositor](
    "compositing",
    "V3D_COMPOSITING",
    composite_torch,
    {"warp": _warp_compositor, "nerfacc": _nerfacc_compositor},
    checks.compare_compositors,
)

DISTANCE_NETWORKS = Engines[DistanceNetwork](
    "distance network",
    "V3D_NETWORKS",
    distance_network_torch,
    {"warp": _warp_distance_network},
    checks.compare_distance_networks,
    devices=("cpu",),
)

COLOUR_NETWORKS = Engines[ColourNetwork](
    "colour network",
    "V3D_NETWORKS",
    colour_network_torch,
    {"warp": _warp_colour_network},
    checks.compare_colour_networks,
    devices=("cpu",),
)

SAMPLERS = Engines[Sampler](
    "samples along rays",
    "V3D_SAMPLES",
    place_samples_torch,
    {"warp": _warp_sampler},
    checks.compare_samplers,
    devices=("cpu",),
)
