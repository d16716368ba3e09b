"""NVIDIA Warp, started once: modules compiled and loaded, kernels launched on torch's tensors."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import backends

logger = logging.getLogger(__name__)

MAX_THREADS = 8  # more brought nothing for pictures of 512 px (a thousand tiles)
MAX_DESCRIBED = 10_000  # addresses whose descriptions are kept; far more than a fit has


class WarpEngine:
    """Warp's modules on one device, and on the CPU the threads that share its launches.

    The first engine ever compiles its modules, which takes seconds; Warp keeps them in its cache.
    """

    def __init__(self, device: torch.device, modules: tuple[ModuleType, ...]) -> None:
        warp = backends.load("warp")
        # no banner, and no warning that a machine without a GPU has none
        if hasattr(warp.config, "log_level"):
            warp.config.log_level = warp.LOG_ERROR
        else:  # before Warp 1.16
            warp.config.quiet = True
        with _native_stderr_closed():
            problem = init_with_a_cache(warp)
        if problem:  # said where it can be seen
            logger.warning(
                "Warp's cache of compiled kernels cannot be written (%s); %s is used instead. Set "
                "WARP_CACHE_PATH to a folder that stays, or kernels may be compiled again next time",
                problem,
                warp.config.kernel_cache_dir,
            )
        if device.type == "cuda" and not warp.is_cuda_available():
            raise RuntimeError(
                f"Warp {warp.__version__} finds no CUDA driver it can use; update the NVIDIA "
                "driver (525 or newer), or pip install 'warp-lang>=1.12,<1.18'"
            )
        self.warp = warp
        self.device = str(device) if device.type == "cuda" else "cpu"
        for module in modules:
            # loaded before the first launch: not thread-safe, and not allowed in a graph capture
            warp.load_module(module, device=self.device)
        self._streams: dict[int, object] = {}
        self._commands = threading.local()
        self._described: dict[tuple[int, int, int], Any] = {}
        self.threads = max(1, min(MAX_THREADS, _cores()))
        if device.type == "cpu":
            self.pool = ThreadPoolExecutor(self.threads, thread_name_prefix="v3d-kernels")

    def launch(self, kernel: object, inputs: list, threads: int = 1) -> None:
        """Run a kernel: on the calling thread on CPU, on torch's current stream on CUDA."""
        wrapped = [self._wrap(i) for i in inputs]
        if self.device == "cpu":
            self.warp.launch(kernel, dim=threads, inputs=wrapped, device="cpu")
            return
        handle = torch.cuda.current_stream(self.device).cuda_stream
        if handle not in self._streams:
            self._streams[handle] = self.warp.Stream(self.device, cuda_stream=handle)
        if threads:
            self._command(kernel, wrapped, threads).launch(self._streams[handle])

    def _command(self, kernel: object, arguments: list, threads: int) -> Any:
        """A recorded launch with these arguments: half the host's cost of a new one.

        One per thread, because autograd's backward pass runs on a thread of its own.
        """
        if not hasattr(self._commands, "of_kernel"):
            self._commands.of_kernel = {}
        commands: dict[int, tuple[Any, list, int]] = self._commands.of_kernel
        known = commands.get(id(kernel))
        if known is None:
            command = self.warp.launch(
                kernel, dim=threads, inputs=arguments, device=self.device, record_cmd=True
            )
            commands[id(kernel)] = (command, arguments, threads)
            return command
        command, before, threads_before = known
        if threads != threads_before:
            command.set_dim(threads)
        for index, (value, old) in enumerate(zip(arguments, before, strict=True)):
            if value is not old:
                command.set_param_at_index_from_ctype(index, value)
        commands[id(kernel)] = (command, arguments, threads)
        return command

    def share(self, kernel: object, inputs: list, items: int) -> None:
        """Run a kernel of `first` and `stride` over `items`: on all threads on CPU."""
        if self.device != "cpu":
            self.launch(kernel, [0, 1, *inputs], items)
            return
        wrapped = [self._wrap(i) for i in inputs]

        def part(first: int) -> None:
            count = len(range(first, items, self.threads))
            if count:
                arguments = [first, self.threads, *wrapped]
                self.warp.launch(kernel, dim=count, inputs=arguments, device="cpu")

        running = [self.pool.submit(part, first) for first in range(self.threads)]
        try:
            for future in running:
                future.result()
        finally:  # after Ctrl-C too: kernels must not outlive the memory that they use
            wait(running)

    def _wrap(self, value: object) -> object:
        """A tensor as snippets take it, a flat array; the C structs are kept, they cost 4 us."""
        if not isinstance(value, Tensor):
            return value
        key = (value.data_ptr(), value.numel(), value.element_size())
        described = self._described.get(key)
        if described is None:
            if len(self._described) >= MAX_DESCRIBED:
                self._described.clear()
            described = self.warp.from_torch(value.detach().view(-1), return_ctype=True)
            described._ref = None  # Warp would keep the tensor alive
            self._described[key] = described
        return described


def _cores() -> int:
    """Cores that this process may use, which a container or `taskset` may have made fewer."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def contiguous(tensor: Tensor) -> Tensor:
    """As the kernels read it: float32 without gaps."""
    if tensor.dtype == torch.float32 and tensor.is_contiguous():
        return tensor  # three calls saved, of hundreds in a step
    return tensor.float().contiguous()


def init_with_a_cache(warp: Any) -> str:
    """Start Warp; where its cache of compiled kernels cannot be written, with one that can.

    Returns:
        Why its own cache was not taken; nothing where it was.
    """
    try:
        warp.init()
        problem = _why_not_writable(warp.config.kernel_cache_dir)
    except OSError as error:  # the folder cannot even be made
        problem = str(error)
    if problem:
        warp.config.kernel_cache_dir = str(temporary_cache())
        warp.init()
    return problem


def _why_not_writable(folder: str) -> str:
    """The system's reason why no file can be made in a folder, or nothing."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return str(error)


def temporary_cache() -> Path:
    """A folder for compiled kernels below the system's temporary one, that nobody else can write.

    The next process of the same user finds it again; what is in it gets loaded as code, so one
    that somebody else could have filled is not taken.
    """
    if not hasattr(os, "getuid"):  # Windows: the temporary folder is the user's own
        folder = Path(tempfile.gettempdir()) / "v3d-kernels"
        folder.mkdir(exist_ok=True)
        return folder
    folder = Path(tempfile.gettempdir()) / f"v3d-kernels-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
        others = stat.S_IRWXG | stat.S_IRWXO
        if (
            stat.S_ISDIR(state.st_mode)
            and state.st_uid == os.getuid()
            and not state.st_mode & others
        ):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="v3d-kernels-"))


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Sends file descriptor 2 nowhere.

    Warp's native start-up code warns of a missing NVIDIA driver and cannot be asked not to; on a
    machine without a GPU that is no news.
    """
    try:
        saved = os.dup(2)
    except OSError:  # a windowed program has none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
