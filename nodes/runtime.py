"""How v3d_core runs inside ComfyUI: device, memory, autograd, progress, cancelling, errors."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from comfy import model_management
from comfy.cli_args import args
from comfy.utils import ProgressBar
from comfy_api.v0_0_2 import io
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..v3d_core.backends import MissingPackageError
from ..v3d_core.progress import Preview

log = logging.getLogger("V3D")

_Value = TypeVar("_Value")

WRITTEN = (str, int, float, list, dict)  # what a prompt's JSON holds
# Core's loaders give None for what a file lacks; the nodes say then what to load.
MAY_BE_NOTHING = ("CLIP_VISION", "VAE")
TEXT_EVENT = "v3d.text"
TEXT_INTERVAL_S = 0.25  # a line under the node that changes faster cannot be read
PREVIEW_INTERVAL_S = 0.5  # at least this long between two pictures
PREVIEW_SHARE = 0.1  # of the time may go into rendering pictures nobody keeps


def compute_device() -> torch.device:
    """CUDA (or ROCm) when ComfyUI uses it, else the CPU.

    Other devices lack operators and float64; the fit is tested on these two.
    """
    device = model_management.get_torch_device()
    if device.type in ("cuda", "cpu"):
        return device
    log.info("V3D computes on the CPU; %s devices are not supported", device.type)
    return torch.device("cpu")


@contextmanager
def fitting(estimate_bytes: int) -> Iterator[torch.device]:
    """Scope of an optimisation: autograd works, the device has room, and is freed afterwards.

    ComfyUI runs every prompt in inference mode. Tensors from outside stay inference tensors in
    here, so pass them through `owned` first.
    """
    device = compute_device()
    if device.type != "cpu":
        needed = estimate_bytes + model_management.minimum_inference_memory()
        model_management.free_memory(needed, device)
    try:
        with torch.inference_mode(False):
            yield device
    finally:
        model_management.soft_empty_cache()


def owned(value: _Value, device: torch.device) -> _Value:
    """A float32 copy of a v3d_core value on `device` that autograd may save and we may change."""
    changes = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if isinstance(item, Tensor):
            dtype = torch.float32 if item.is_floating_point() else item.dtype
            changes[field.name] = item.to(device, dtype, copy=True)
        elif dataclasses.is_dataclass(item):
            changes[field.name] = owned(item, device)
    return dataclasses.replace(value, **changes)


class NodeProgress:
    """v3d_core's `Progress` on the node: bar, picture and a line of text; raises on Cancel."""

    def __init__(
        self, time_left: bool = False, preview_interval_s: float = PREVIEW_INTERVAL_S
    ) -> None:
        """`time_left` adds steps and seconds left to the text, for work of even steps."""
        self._time_left, self._preview_interval = time_left, preview_interval_s
        self._started = time.monotonic()
        self._bar: ProgressBar | None = None
        self._next_preview = 0.0
        self._next_text = 0.0

    def __call__(
        self, step: int, total: int, preview: Preview | None = None, text: str = ""
    ) -> None:
        """Show one step; ComfyUI's interrupt exception passes through the caller."""
        # ProgressBar looks for Cancel too, but only when it is not throttled.
        model_management.throw_exception_if_processing_interrupted()
        if self._bar is None:
            self._bar = ProgressBar(total)
        self._bar.update_absolute(step, total, self._picture(preview))
        now = time.monotonic()
        if step == 0:  # what goes before the first step says nothing about the others
            self._started = now
        if text and (now >= self._next_text or step >= total):
            self._next_text = now + TEXT_INTERVAL_S
            if self._time_left and 0 < step < total:
                left = (now - self._started) * (total - step) / step
                text += f", step {step} of {total}, {left:.0f} s left"
            show_text(text)

    def _picture(self, preview: Preview | None) -> tuple[str, Image.Image, int] | None:
        start = time.monotonic()
        if preview is None or start < self._next_preview:
            return None
        picture = picture_from_tensor(preview())
        cost = time.monotonic() - start
        self._next_preview = start + max(self._preview_interval, cost / PREVIEW_SHARE)
        return ("JPEG", picture, args.preview_size)


def picture_from_tensor(image: Tensor) -> Image.Image:  # [H, W, 3] in [0, 1]
    """A picture to show; not for measuring."""
    levels = image.detach().float().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    return Image.fromarray(levels.numpy())


def show_text(text: str) -> None:
    """Put a line of text under the node that runs now.

    The front end (1.45) looks for the node "12:5" of a subgraph in a way that fails whenever a
    subgraph is open, with an error in the browser's console: web/progress_text.js shows those.
    """
    running, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if running is None or server is None:
        return
    if ":" not in str(running.node_id):
        server.send_progress_text(text, running.node_id)
        return
    message = {"prompt_id": running.prompt_id, "node_id": str(running.node_id), "text": text}
    server.send_sync(TEXT_EVENT, message, server.client_id)


def tell(name: str, message: str) -> None:
    """Say what a node decided: in the log and under the node."""
    log.info("%s: %s", name, message)
    show_text(message)


def named_errors(execute: Callable) -> Callable:
    """Wrap a node's `execute` so that what the user can mend is reported under its display name."""
    kinds = (ValueError, OSError, MissingPackageError)
    known: list[io.Schema] = []  # filled once: some schemas list folders

    @functools.wraps(execute)
    def wrapper(cls, **inputs):
        # not GET_SCHEMA: it stores what it finds on the class, which is locked in a run
        known[:] = known or [cls.define_schema()]
        try:
            check_inputs(known[0], inputs)
            return execute(cls, **inputs)
        except kinds as error:
            kind = next(kind for kind in kinds if isinstance(error, kind))
            raise kind(f"{known[0].display_name}: {error}") from error

    return wrapper


def check_inputs(schema: io.Schema, inputs: dict[str, object]) -> None:
    """Refuse what only a prompt from elsewhere than the front end can hold.

    The host lets any text, number or object of a prompt pass where a connection belongs, numbers
    that are none pass the limits of a widget, and so do connections to inputs that do not exist.
    """
    if surplus := set(inputs) - {entry.id for entry in schema.inputs}:
        raise ValueError(f"there is no input {min(surplus)!r:.80}; take it out of the prompt")
    for entry in schema.inputs:
        value, kind = inputs.get(entry.id), entry.get_io_type()
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{entry.id} is {value}; a number is needed")
        if isinstance(entry, io.DynamicCombo.Input):
            if value is None:  # what the host makes of a choice that it does not know
                known = ", ".join(option.key for option in entry.options)
                raise ValueError(f"{entry.id} must be one of {known}")
        elif not isinstance(entry, io.WidgetInput):
            missing = value is None and not entry.optional and kind not in MAY_BE_NOTHING
            camera = kind == io.Load3DCamera.io_type and isinstance(value, dict)
            if missing or (isinstance(value, WRITTEN) and not camera):
                raise ValueError(f"{entry.id} is {value!r:.80}; connect an output of type {kind}")
