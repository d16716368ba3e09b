"""Model weights: .safetensors and torch pickles in, .safetensors out, one tensor in memory at a time.

The format of https://github.com/huggingface/safetensors: 8 bytes of header length, a JSON header
with the type, shape and place of every tensor, then the tensors, little endian, without gaps.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import pickletools
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor

from .atomic import atomic_path

MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit

_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# All that pickles of plain tensors name: less than torch allows, and never what other code in the
# process has added to torch's list.
_PLAIN_GLOBALS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
    r"|torch (Size|device|[A-Za-z0-9]+Storage|b?float\d+|u?int\d+|bool)"
)
_WRAPPERS = ("state_dict", "model", "module")  # where trainers put the tensors
_AGAIN = "download it again"
_OTHER_FILE = "choose the file with the weights"
_Entry = tuple[torch.dtype, tuple[int, ...]]  # type and shape


class WeightsError(ValueError):
    """A weight file that cannot be used; the text names it, what is wrong and the remedy."""


class WeightFile:
    """Tensors of one file, read one at a time; made by `open_weights`.

    Attributes:
        path: The file.
        metadata: The texts in the header of a .safetensors file; empty for pickles.
        ignored: Entries of a pickle that are not tensors or lie beside its state dict.
    """

    def __init__(
        self,
        path: Path,
        entries: dict[str, _Entry],
        get: Callable[[str], Tensor],
        release: Callable[[], object],
        metadata: dict[str, str] | None = None,
        ignored: Iterable[str] = (),
    ) -> None:
        self.path = path
        self.metadata = metadata or {}
        self.ignored = tuple(ignored)
        self._entries = entries
        self._get: Callable[[str], Tensor] | None = get
        self._release = release

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file, so that it can be moved or deleted; names and shapes stay."""
        if self._get is not None:
            self._get = None
            self._release()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def keys(self) -> list[str]:
        """Names of the tensors in the order of the file."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._entry(name)[1]

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor in the file, without reading it."""
        return self._entry(name)[0]

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A contiguous copy on the CPU, of the given type or the file's, that outlives the file."""
        dtype = dtype or self.dtype(name)
        if self._get is None:
            raise _error(self.path, "the file is closed", f"read {name!r} before closing it")
        with _damage_named(self.path):
            tensor = self._get(name).detach()
        return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            problem = f"{name!r} is not among its {len(self)} tensors ({_some(self)})"
            raise _error(self.path, problem, "choose the file that has it")
        return self._entries[name]


def open_weights(path: str | os.PathLike[str]) -> WeightFile:
    """Open a .safetensors file or a torch pickle (.ckpt, .pt, .pth, .bin) without running any code.

    The content decides, so a renamed file works. Of a pickle that wraps its tensors, those under
    `state_dict` are taken (else `model` or `module`); names stay as they are. The file is mapped,
    not loaded, except for torch's format from before version 1.6, which is loaded as a whole.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        WeightsError: The file is something else, is damaged, or is a pickle that asks for code.
    """
    path = Path(path)
    size = path.stat().st_size
    if not path.is_file():
        raise _error(path, "a folder or device, not a file", "choose the weight file itself")
    with open(path, "rb") as file:
        head = file.read(512)
    length = int.from_bytes(head[:8], "little")
    with _damage_named(path):
        # first, since some header lengths look like the beginning of a pickle
        if head[8:9] == b"{" and length <= MAX_HEADER_BYTES:
            return _open_safetensors(path, size)
        if head.startswith(b"PK\x03\x04"):
            return _open_pickle(path, size, zipped=True)
        if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):  # pickle protocols
            return _open_pickle(path, size, zipped=False)
        _refuse_stand_in(path, head, size)
        if path.suffix.lower() in (".safetensors", ".sft"):  # whatever is in it, name its sizes
            return _open_safetensors(path, size)
    begin = head[:8].hex(" ")
    raise _error(path, f"no .safetensors or torch file: its {size} bytes begin with {begin}")


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a .safetensors file, complete or not at all, holding one tensor at a time.

    Args:
        path: The file to write.
        tensors: Names and tensors in the order of the layout, possibly from a generator. Each is
            converted to the type in the layout; values beyond its range become infinite.
        layout: Type and shape of every tensor, in the order of the file.
        metadata: Texts for the header.

    Raises:
        WeightsError: The tensors are not those of the layout; a file at `path` stays as it was.
    """
    header = _header(path, layout, metadata)
    due_names = iter(layout)
    items = tensors.items() if isinstance(tensors, Mapping) else tensors
    pairs = cast("Iterable[tuple[str, Tensor]]", items)  # a mapping is an Iterable[str], too
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, tensor in pairs:
            due = next(due_names, None)
            if name != due or tuple(tensor.shape) != tuple(layout[name][1]):
                expected = "nothing more" if due is None else f"{due!r} {tuple(layout[due][1])}"
                raise WeightsError(
                    f"cannot write {path}: {name!r} {tuple(tensor.shape)} came, the layout has "
                    f"{expected} there; give its names in its order, with its shapes"
                )
            data = tensor.detach().to("cpu", layout[name][0]).contiguous()
            raw = data.view(-1).view(torch.uint8).view(-1, data.element_size())
            file.write((raw.flip(1) if sys.byteorder == "big" else raw).numpy().data)
            del tensor, data, raw  # before the next one is made
        if missing := list(due_names):
            raise WeightsError(
                f"cannot write {path}: {len(missing)} tensors of the layout did not come, the "
                f"first is {missing[0]!r}; give all of them"
            )


def _header(
    path: str | os.PathLike[str], layout: Mapping[str, _Entry], metadata: Mapping[str, str] | None
) -> bytes:
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = {str(key): str(text) for key, text in metadata.items()}
    end = 0
    for name, (dtype, shape) in layout.items():
        if name == "__metadata__" or dtype not in _DTYPE_NAMES:
            known = ", ".join(map(str, _DTYPE_NAMES))
            raise WeightsError(
                f"cannot write {path}: {name!r} of type {dtype}; choose another name than "
                f"__metadata__ and one of the types {known}"
            )
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        entry = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        header[name] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)  # the library, too, aligns the data to 8 bytes


def _open_safetensors(path: Path, size: int) -> WeightFile:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size or length > MAX_HEADER_BYTES:
            problem = f"it expects a header of {length} bytes (at most {MAX_HEADER_BYTES} are read)"
            raise _error(path, f"cut off or damaged: {problem}, the file has {size} bytes")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", None)
    places = {name: [int(at) for at in header[name]["data_offsets"]] for name in header}
    expected = 8 + length + max((end for _, end in places.values()), default=0)
    if size != expected:
        damage = "cut off" if size < expected else "damaged"
        raise _error(path, f"{damage}: expected {expected} bytes, the file has {size}")
    entries: dict[str, _Entry] = {}
    for name in sorted(header, key=places.__getitem__):
        kind = header[name]["dtype"]
        if kind not in _DTYPES:
            remedy = f"get a file of the types {', '.join(_DTYPES)}"
            raise _error(path, f"{name!r} is of type {kind!r}, which is not supported", remedy)
        entries[name] = (_DTYPES[kind], tuple(header[name]["shape"]))
    handle = safe_open(path, framework="pt", device="cpu")  # checks types, shapes and places
    release = partial(handle.__exit__, None, None, None)
    return WeightFile(path, entries, handle.get_tensor, release, metadata)


def _open_pickle(path: Path, size: int, zipped: bool) -> WeightFile:
    if zipped:
        _scan_pickle(path, size, BytesIO(_pickle_in_zip(path)))
    else:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for _ in ("magic number", "version", "machine", "tensors", "names of storages"):
                _scan_pickle(path, size, data)
    with open(path, "rb") as file:
        # torch believes this suffix, so a misnamed file goes in without its name, and unmapped
        source = file if path.suffix == ".safetensors" else path
        mapped = zipped and source is path
        loaded = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)  # noqa: TID251
    tensors, ignored = _state_dict(path, loaded)
    for name, tensor in tensors.items():
        claimed = max(tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size())
        if claimed > size:
            raise _error(path, f"damaged: {name!r} expects {claimed} bytes, the file has {size}")
    entries = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    return WeightFile(path, entries, tensors.__getitem__, tensors.clear, ignored=ignored)


def _pickle_in_zip(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        program = any(name.endswith("/constants.pkl") for name in names)  # TorchScript
        packed = any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist())
        if len(pickles) != 1 or program or packed:
            problem = f"an archive ({_some(names)}) unlike those that torch.save writes"
            raise _error(path, problem, "unpack it, or get the .safetensors form of the weights")
        return archive.read(pickles[0])


def _scan_pickle(path: Path, size: int, pickle: Any) -> None:
    """Refuse a pickle for names beyond those of plain tensors and for sizes beyond the file's.

    The operations are listed, not run.
    """
    texts = ["?", "?"]
    number = 0
    for operation, argument, _ in pickletools.genops(pickle):
        wanted = None
        if operation.name in ("GLOBAL", "INST"):
            wanted = str(argument)
        elif operation.name == "STACK_GLOBAL":  # its names are the last two texts
            wanted = " ".join(texts)
        elif operation.name.startswith("EXT"):
            wanted = f"extension {argument}"
        elif isinstance(argument, str):
            texts = [texts[1], argument]
        elif isinstance(argument, int) and "PUT" not in operation.name:
            number = argument
        elif operation.name == "BINPERSID" and number > size:  # (.., number of elements, None)
            problem = f"damaged: a tensor expects {number} numbers, the file has {size} bytes"
            raise _error(path, problem)
        if wanted and not _PLAIN_GLOBALS.fullmatch(wanted):
            problem = f"the pickle asks for {wanted.replace(' ', '.')}, which may run code"
            remedy = "get the .safetensors form of the weights, or a file of plain tensors"
            raise _error(path, f"{problem}; nothing was run", remedy)


def _state_dict(path: Path, loaded: object) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by name, and the names of all else."""
    if not isinstance(loaded, dict):
        raise _error(path, f"one {type(loaded).__name__}, not tensors by name", _OTHER_FILE)
    tensors, ignored = _split(loaded, prefix="")
    for wrapper in _WRAPPERS:
        if isinstance(inside := loaded.get(wrapper), dict) and _split(inside, prefix="")[0]:
            tensors, ignored = _split(inside, prefix=f"{wrapper}.")
            ignored += [str(key) for key in loaded if key != wrapper]
            break
    if not tensors:
        raise _error(path, f"no tensors by name, only {_some(ignored)}", _OTHER_FILE)
    return tensors, ignored


def _split(values: dict[Any, Any], prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    tensors = {k: v for k, v in values.items() if isinstance(k, str) and isinstance(v, Tensor)}
    return tensors, [f"{prefix}{key}" for key in values if key not in tensors]


def _refuse_stand_in(path: Path, head: bytes, size: int) -> None:
    """Say what a failed download left in place of the weights."""
    text = head.decode("utf-8-sig", errors="replace").strip()
    remedy = _AGAIN
    if not text:
        found = "an empty file"
    elif text.startswith("version https://git-lfs"):
        expected = re.search(r"^size (\d+)", text, re.MULTILINE)
        found = f"a git-lfs pointer (expected {expected[1] if expected else 'more'} bytes)"
        remedy = "run 'git lfs pull' or download the file itself"
    elif re.match(r"<(!doctype|html|head|\?xml)", text, re.IGNORECASE):
        found = "a web page"
        remedy = "log in or accept the licence there if it asks for that, then download it again"
    elif "\ufffd" not in text[:80] and all(c.isprintable() or c.isspace() for c in text[:80]):
        found = f"the text {text[:80]!r}"
    else:
        return
    raise _error(path, f"{found} in place of weights, the file has {size} bytes", remedy)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Give whatever a parser raises on foreign bytes the path, the size and a remedy."""
    try:
        yield
    except (WeightsError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each parser has its own kinds, and damage finds all of them
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        size = path.stat().st_size
        raise _error(path, f"damaged or cut off, the file has {size} bytes ({reason})") from error


def _error(path: Path, problem: str, remedy: str = _AGAIN) -> WeightsError:
    return WeightsError(f"{path}: {problem}; {remedy}")


def _some(names: Iterable[str]) -> str:
    first = list(islice(names, 4))
    return ", ".join([*first[:3], "..."] if len(first) > 3 else first) or "nothing"
