"""Weight files: round trips, the official library's opinion, hostile pickles and damaged files."""

import builtins
import gc
import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from v3d_core.formats.atomic import OutputError
from v3d_core.formats.weights import WeightFile, WeightsError, open_weights, write_safetensors

ROOT = Path(__file__).resolve().parents[2]
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]
FORMS = ["zip", "old"]  # of torch.save
STATE = {"a": torch.ones(2, 3), "b": torch.zeros(4)}


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1, 1).view(torch.uint8).numpy().tobytes()


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal in type, shape and every byte, NaN and -0 included."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert bytes_of(actual) == bytes_of(expected)


def layout_of(tensors: dict) -> dict:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def save_pickle(value: object, path: Path, form: str = "zip") -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=form == "zip")
    return path


@st.composite
def tensors(draw: st.DrawFn, dtypes: list = FLOATS + INTEGERS + FLOAT8) -> torch.Tensor:
    """Any bit pattern of any type; scalars and empty tensors are among them."""
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    count = torch.Size(shape).numel() * dtype.itemsize
    data = bytearray(draw(st.binary(min_size=count, max_size=count)))
    if dtype == torch.bool:
        data = bytearray(octet & 1 for octet in data)
    if not data:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


names = st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__")
states = st.dictionaries(names, tensors(), max_size=6)
plain_states = st.dictionaries(names, tensors(FLOATS + INTEGERS), min_size=1, max_size=6)
few = settings(max_examples=30, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


# Round trips


def test_a_header_length_that_looks_like_a_pickle_is_still_a_header(tmp_path):
    path = tmp_path / "a.ckpt"
    for length in (0x0280, 0x0480):  # the bytes 80 02 and 80 04
        write_safetensors(path, STATE, layout_of(STATE), {"filling": ""})
        filling = length - int.from_bytes(path.read_bytes()[:8], "little")
        write_safetensors(path, STATE, layout_of(STATE), {"filling": "x" * filling})
        assert path.read_bytes()[:2] == length.to_bytes(2, "little")
        with open_weights(path) as file:
            assert file.keys() == ["a", "b"] and len(file.metadata["filling"]) == filling


@few
@given(state=states, metadata=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3))
def test_the_official_library_reads_what_is_written(folder, state, metadata):
    path = folder / "ours.safetensors"
    write_safetensors(path, iter(state.items()), layout_of(state), metadata)
    official = safetensors.torch.load_file(path)
    assert set(official) == set(state)
    for name, tensor in state.items():
        assert_same(official[name], tensor)
    with safetensors.safe_open(path, "pt") as file:
        assert (file.metadata() or {}) == metadata
    with open_weights(path) as file:
        assert file.keys() == list(state) == list(file) and file.metadata == metadata


@few
@given(state=states)
def test_what_the_official_library_writes_is_read(folder, state):
    path = folder / "official.safetensors"
    safetensors.torch.save_file(state, path, {"format": "pt"})
    with open_weights(path) as file:
        assert set(file) == set(state) and len(file) == len(state)
        assert file.metadata == {"format": "pt"} and file.ignored == ()
        for name, tensor in state.items():
            assert name in file
            assert (file.dtype(name), file.shape(name)) == (tensor.dtype, tuple(tensor.shape))
            assert_same(file.read(name), tensor)


@pytest.mark.parametrize("form", FORMS)
@few
@given(state=plain_states)
def test_what_torch_saves_is_read(folder, form, state):
    path = save_pickle(state, folder / f"{form}.ckpt", form)
    with open_weights(path) as file:
        assert file.keys() == list(state) and file.metadata == {} and file.ignored == ()
        for name, tensor in state.items():
            assert (file.dtype(name), file.shape(name)) == (tensor.dtype, tuple(tensor.shape))
            assert_same(file.read(name), tensor)


@given(dtype=st.sampled_from(FLOATS), tensor=tensors(FLOATS))
@few
def test_types_are_converted_as_torch_converts_them(folder, dtype, tensor):
    path = folder / "converted.safetensors"
    write_safetensors(path, {"a": tensor}, {"a": (dtype, tuple(tensor.shape))})
    expected = tensor.to(dtype)
    torch.testing.assert_close(
        safetensors.torch.load_file(path)["a"], expected, rtol=0, atol=0, equal_nan=True
    )
    with open_weights(save_pickle({"a": tensor}, folder / "converted.pt")) as file:
        back = file.read("a", dtype)
    torch.testing.assert_close(back, expected, rtol=0, atol=0, equal_nan=True)


def test_tensors_lie_in_the_order_of_the_layout_whatever_their_alignment(tmp_path):
    state = {
        "z": torch.tensor([1, 2, 3], dtype=torch.int8),
        "b": torch.tensor([1.5, -2.0], dtype=torch.float64),
        "a": torch.tensor(0.5, dtype=torch.bfloat16),
    }
    path = tmp_path / "a.safetensors"
    write_safetensors(path, state, layout_of(state))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert [(n, e["data_offsets"]) for n, e in header.items()] == [
        ("z", [0, 3]),
        ("b", [3, 19]),
        ("a", [19, 21]),
    ]
    assert data[8 + length :] == b"".join(bytes_of(tensor) for tensor in state.values())
    for name, tensor in safetensors.torch.load_file(path).items():
        assert_same(tensor, state[name])


def test_a_big_endian_machine_writes_little_endian_too(tmp_path, monkeypatch):
    value = torch.tensor([[1, 2], [3, 4]], dtype=torch.int32)
    swapped = torch.from_numpy(value.numpy().byteswap())  # as its memory would look to us
    monkeypatch.setattr(sys, "byteorder", "big")
    write_safetensors(tmp_path / "a.safetensors", {"a": swapped}, layout_of({"a": value}))
    monkeypatch.undo()
    assert_same(safetensors.torch.load_file(tmp_path / "a.safetensors")["a"], value)


def test_views_parameters_and_shared_storage_are_read_as_separate_contiguous_tensors(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "turned": base.T,
        "row": base[2],
        "parameter": torch.nn.Parameter(base[:2]),
        "broadcast": torch.ones(1).expand(5),
    }
    with open_weights(save_pickle(state, tmp_path / "a.pt")) as file:
        for name, tensor in state.items():
            back = file.read(name)
            assert_same(back, tensor)
            assert back.is_contiguous() and not back.requires_grad
            assert back.untyped_storage().nbytes() == back.numel() * 4
        file.read("row").fill_(-1)
        assert_same(file.read("turned"), base.T)


# What is taken from a pickle


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module"])
def test_the_wrapped_tensors_are_taken_and_all_else_is_named(tmp_path, wrapper):
    inside = {
        "module.a": torch.ones(2),
        "_orig_mod.b": torch.zeros(1),
        "steps": 7,
        3: torch.ones(1),
    }
    value = {"epoch": 4, wrapper: inside, "optimizer": {"lr": [0.1]}, "extra": torch.ones(1)}
    with open_weights(save_pickle(value, tmp_path / "a.ckpt")) as file:
        assert file.keys() == ["module.a", "_orig_mod.b"]
        beside = {"epoch", "optimizer", "extra"}
        assert set(file.ignored) == beside | {f"{wrapper}.steps", f"{wrapper}.3"}


def test_state_dict_goes_before_model_and_a_model_without_tensors_is_no_wrapper(tmp_path):
    both = {"model": {"a": torch.ones(1)}, "state_dict": {"b": torch.ones(1)}}
    with open_weights(save_pickle(both, tmp_path / "a.pt")) as file:
        assert file.keys() == ["b"] and file.ignored == ("model",)
    settings_beside = {"model": {"width": 320}, "a": torch.ones(1)}
    with open_weights(save_pickle(settings_beside, tmp_path / "b.pt")) as file:
        assert file.keys() == ["a"] and file.ignored == ("model",)


def test_a_module_s_own_state_dict_is_read(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    with open_weights(save_pickle(module.state_dict(), tmp_path / "a.pth")) as file:
        back = {name: file.read(name) for name in file}
    module.load_state_dict(back, strict=True)
    assert file.ignored == () and back["1.num_batches_tracked"].shape == ()


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (torch.ones(2), "one Tensor, not tensors by name"),
        ([torch.ones(2)], "one list, not tensors by name"),
        ({}, "no tensors by name, only nothing"),
        ({"epoch": 3, "a": [1], "b": None, "c": "", "d": 1.5}, "only epoch, a, b, ..."),
    ],
)
def test_a_pickle_without_named_tensors_says_what_it_has(tmp_path, value, complaint):
    with pytest.raises(WeightsError, match=complaint) as error:
        open_weights(save_pickle(value, tmp_path / "a.pt"))
    assert str(tmp_path / "a.pt") in str(error.value) and "choose the file" in str(error.value)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt", "bin", "txt", ""])
@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
def test_the_content_decides_not_the_name(tmp_path, form, suffix):
    path = tmp_path / f"weights.{suffix}"
    state = {"a": torch.arange(3.0)}
    if form == "safetensors":
        write_safetensors(path, state, layout_of(state))
    else:
        save_pickle(state, path, form)
    with open_weights(str(path)) as file:
        assert_same(file.read("a"), state["a"])
        assert file.path == path


# Reading, closing


@pytest.mark.parametrize("form", ["zip", "safetensors"])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc/self/maps")
def test_closing_lets_go_of_the_mapped_file_at_once(tmp_path, form):
    path = tmp_path / "a.weights"
    state = {"a": torch.arange(100_000.0), "b": torch.ones(3)}
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        save_pickle(state, path)
    gc.disable()
    try:
        with open_weights(path) as file:
            back = file.read("a")
            assert str(path) in Path("/proc/self/maps").read_text() or form == "safetensors"
        assert str(path) not in Path("/proc/self/maps").read_text()
        assert str(path) not in {
            os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
        }
    finally:
        gc.enable()
    path.write_bytes(b"something else")
    assert_same(back, state["a"])
    assert file.keys() == ["a", "b"] and file.shape("b") == (3,)
    with pytest.raises(WeightsError, match="the file is closed; read 'a' before closing it"):
        file.read("a")
    file.close()


def test_an_unknown_name_shows_the_names_that_are_there(tmp_path):
    state = {name: torch.ones(1) for name in "abcde"}
    write_safetensors(tmp_path / "a.sft", state, layout_of(state))
    with open_weights(tmp_path / "a.sft") as file:
        assert "q" not in file
        for ask in (file.read, file.shape, file.dtype):
            with pytest.raises(
                WeightsError, match=r"'q' is not among its 5 tensors \(a, b, c, ...\)"
            ):
                ask("q")


# Pickles that want to run code


class Exploit:
    """Creates a file when it is unpickled in the ordinary way."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class OwnClass:
    pass


def exploits(trace: Path) -> dict[str, tuple[object, str]]:
    """Objects by name, each with the global that a refusal must name."""
    system = f"{os.system.__module__}.system"  # posix.system or nt.system
    return {
        "os.system": (Exploit(os.system, f'echo ran > "{trace}"'), system),
        "eval": (Exploit(eval, f"open({str(trace)!r}, 'w').close()"), "eval"),
        "open": (Exploit(open, str(trace), "w"), "open"),
        "getattr": (Exploit(getattr, OwnClass, "x"), "getattr"),
        "own class": (OwnClass(), "OwnClass"),
    }


def write_exploit(value: object, path: Path, form: str) -> None:
    state = {"state_dict": {"a": torch.ones(2), "b": value}}
    if form in FORMS:
        save_pickle(state, path, form)
    else:
        path.write_bytes(pickle.dumps(state["state_dict"]["b"], int(form)))


@pytest.mark.parametrize("form", [*FORMS, "2", "3", "4", "5"])
@pytest.mark.parametrize("name", ["os.system", "eval", "open", "getattr", "own class"])
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_pickle_that_wants_code_is_refused_by_name_and_nothing_runs(tmp_path, form, name, suffix):
    trace, path = tmp_path / "trace", tmp_path / f"evil.{suffix}"
    value, wanted = exploits(trace)[name]
    write_exploit(value, path, form)
    with pytest.raises(WeightsError) as error:
        open_weights(path)
    text = str(error.value)
    assert not trace.exists()
    assert str(path) in text and wanted in text and "nothing was run" in text
    assert ".safetensors form" in text and "plain tensors" in text


@pytest.mark.parametrize("name", ["os.system", "eval", "open"])
def test_the_exploits_are_real(tmp_path, name):
    trace, path = tmp_path / "trace", tmp_path / "evil.pt"
    write_exploit(exploits(trace)[name][0], path, "zip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        torch.load(path, weights_only=False)
        gc.collect()
    assert trace.exists()


@pytest.mark.parametrize("protocol", [0, 1])
def test_pickles_of_text_protocols_are_refused_unread(tmp_path, protocol):
    trace, path = tmp_path / "trace", tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps(exploits(trace)["os.system"][0], protocol))
    with pytest.raises(WeightsError, match="download it again"):
        open_weights(path)
    assert not trace.exists()


@pytest.mark.skipif(not hasattr(torch.serialization, "safe_globals"), reason="torch before 2.5")
def test_what_others_add_to_torch_s_list_stays_refused_here(tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "evil.pt"
    write_exploit(exploits(trace)["eval"][0], path, "zip")
    with torch.serialization.safe_globals([(builtins.eval, "builtins.eval")]):
        with pytest.raises(WeightsError, match=r"asks for \w+.eval"):
            open_weights(path)
    assert not trace.exists()


def test_instances_and_extensions_of_old_protocols_are_refused_by_name(tmp_path):
    path = tmp_path / "evil.pt"
    for code, wanted in [
        (b"\x80\x02(ios\nabort\n.", "os.abort"),  # INST
        (b"\x80\x02\x82\x07.", "extension.7"),  # EXT1
        (b"\x80\x04\x93.", r"\?\.\?"),  # STACK_GLOBAL on an empty stack
        (b"\x80\x02ctorch.hub\nload\n.", "torch.hub.load"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
    ]:
        path.write_bytes(code)
        with pytest.raises(WeightsError, match=f"asks for {wanted}, which may run code"):
            open_weights(path)


# Damaged files and files that are something else


def good_files(folder: Path) -> dict[str, bytes]:
    state = {"first": torch.arange(300.0), "second": torch.ones(7, 5, dtype=torch.float16)}
    safetensors.torch.save_file(state, folder / "good.safetensors", {"format": "pt"})
    files = {"safetensors": (folder / "good.safetensors").read_bytes()}
    for form in FORMS:
        files[form] = save_pickle(state, folder / f"{form}.pt", form).read_bytes()
    return files


def assert_refused(path: Path, data: bytes, *parts: str) -> str:
    path.write_bytes(data)
    with pytest.raises(WeightsError) as error:
        open_weights(path)
    text = str(error.value)
    for part in (str(path), *parts):
        assert part in text, (part, text)
    return text


def header_edited(data: bytes, edit) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def test_a_cut_safetensors_file_names_both_sizes_wherever_it_is_cut(tmp_path):
    data = good_files(tmp_path)["safetensors"]
    length = int.from_bytes(data[:8], "little")
    path = tmp_path / "cut.safetensors"
    for size in (8, 9, 20, 7 + length):
        text = assert_refused(path, data[:size], f"has {size} bytes", "download it again")
        assert f"a header of {length} bytes" in text
    for size in (8 + length, 9 + length, len(data) - 1):
        expected = f"cut off: expected {len(data)} bytes, the file has {size}; download it again"
        assert_refused(path, data[:size], expected)
    for size in (1, 7):
        assert_refused(path, data[:size], f"has {size} bytes", "download it again")
    assert_refused(path, data + b"\0", f"expected {len(data)} bytes, the file has {len(data) + 1};")


@pytest.mark.parametrize("form", FORMS)
def test_a_cut_pickle_names_its_size_wherever_it_is_cut(tmp_path, form):
    data = good_files(tmp_path)[form]
    for size in (len(data) - 1, len(data) - 40, len(data) // 2, 200, 30, 4):
        text = assert_refused(tmp_path / "cut.ckpt", data[:size], "download it again")
        assert f"the file has {size} bytes" in text or "magic" in text


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"", ["an empty file", "0 bytes", "download it again"]),
        (b"<!DOCTYPE html>\n<html><body>", ["a web page", "log in", "download it again"]),
        (b"\n  <html lang='en'>", ["a web page", "download it again"]),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error>", ["a web page", "download it again"]),
        (b'{"error":{"message":"gated"}}', ["the text '{\"error\":{", "download it again"]),
        (b"Invalid credentials\n", ["the text 'Invalid credentials'", "20 bytes"]),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:8daf\nsize 6490292209\n",
            ["git-lfs pointer (expected 6490292209 bytes)", "the file has 75 bytes", "git lfs pull"],
        ),
        (b"\xff\xd8\xff\xe0" + bytes(range(255)), ["259 bytes", "download it again"]),
        (b"\x80\x02}q\0.", ["damaged", "download it again"]),
    ],
)  # fmt: skip
def test_what_a_failed_download_leaves_is_recognised(tmp_path, data, parts, suffix):
    assert_refused(tmp_path / f"a.{suffix}", data, *parts)


@given(data=st.binary(max_size=400), start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"{"]))
@settings(max_examples=80, deadline=None)
def test_random_bytes_are_refused_with_path_and_remedy(folder, data, start):
    for name in ("random.safetensors", "random.pth"):
        text = assert_refused(folder / name, start + data)
        assert "download it again" in text or "get the .safetensors form" in text


def test_folders_missing_files_and_devices_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="a folder or device, not a file; choose the weight"):
        open_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        open_weights(tmp_path / "none.ckpt")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.ckpt")
        with pytest.raises(WeightsError, match="not a file"):
            open_weights(tmp_path / "pipe.ckpt")


def shift(name: str, begin: int, end: int):
    def edit(header):
        header[name]["data_offsets"] = [begin, end]

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        shift("first", 1, 1201),  # overlap
        shift("second", 1200, 2**62),
        shift("second", -70, 0),
        shift("second", 1270, 1200),
        shift("second", 1200.5, 1e308),
        lambda header: header["second"].update(shape=[2**40, 2**40]),
        lambda header: header["second"].update(shape=[7, 6]),
        lambda header: header["second"].update(shape=[-7, -5]),
        lambda header: header["second"].update(shape="35"),
        lambda header: header["second"].update(dtype="F32"),
        lambda header: header["second"].update(dtype=["F16"]),
        lambda header: header["second"].pop("data_offsets"),
        lambda header: header.update(third=7),
        lambda header: header.update(__metadata__={"format": 7}),
        lambda header: header.pop("second"),
    ],
)
def test_headers_that_contradict_the_file_are_refused(tmp_path, edit):
    data = good_files(tmp_path)["safetensors"]
    text = assert_refused(tmp_path / "a.safetensors", header_edited(data, edit))
    assert "download it again" in text or "not supported" in text


def test_absurd_header_lengths_are_refused_before_anything_is_allocated(tmp_path):
    data = good_files(tmp_path)["safetensors"]
    path = tmp_path / "a.safetensors"
    for length in (len(data) - 7, 2**31, 2**47, 2**63 + 5, 2**64 - 1):
        absurd = length.to_bytes(8, "little") + data[8:]
        assert_refused(path, absurd, f"a header of {length} bytes", f"has {len(data)} bytes")
    with open(path, "wb") as file:  # a sparse file, large enough for the header it claims
        file.write((100_000_001).to_bytes(8, "little") + b"{")
        file.truncate(200_000_000)
    with pytest.raises(WeightsError, match="at most 100000000 are read"):
        open_weights(path)


def test_headers_of_other_json_are_refused(tmp_path):
    for text in (b"[]      ", b"{" * 5000, b"[" * 100_000, b'{"a":', b"null", b"{}}", b'{"a":{}}'):
        data = len(text).to_bytes(8, "little") + text
        assert_refused(tmp_path / "a.safetensors", data, "download it again")


def test_a_type_that_is_not_supported_is_named(tmp_path):
    data = good_files(tmp_path)["safetensors"]
    edited = header_edited(data, lambda header: header["second"].update(dtype="F4"))
    expected = ["'second' is of type 'F4', which is not supported", "get a file of", "BF16"]
    assert_refused(tmp_path / "a.safetensors", edited, *expected)


def with_numbers_replaced(data: bytes, new: bytes, places: slice) -> bytes:
    """Bytes of a torch file whose 16-bit integers 30000 become others."""
    old = b"M" + (30_000).to_bytes(2, "little")
    parts = data.split(old)
    joints = [old] * (len(parts) - 1)
    joints[places] = [new] * len(joints[places])
    return b"".join(part + joint for part, joint in zip(parts, [*joints, b""], strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("places", [slice(None), slice(0, 1), slice(1, 2)])
@pytest.mark.parametrize("number", [2**31 - 1, 2**40, 2**62, -5])
def test_absurd_sizes_in_a_pickle_are_refused(tmp_path, form, places, number):
    new = b"\x8a\x08" + number.to_bytes(8, "little", signed=True)  # LONG1
    path = save_pickle({"a": torch.zeros(30_000)}, tmp_path / "a.pt", form)
    if form == "old":
        data = with_numbers_replaced(path.read_bytes(), new, places)
    else:
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, entry in entries.items():
                edited = with_numbers_replaced(entry, new, places)
                archive.writestr(name, edited if name.endswith("data.pkl") else entry)
        data = path.read_bytes()
    assert_refused(tmp_path / "b.pt", data, f"the file has {len(data)} bytes", "download it again")


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    path = save_pickle({"a": torch.zeros(1).expand(2**40)}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=f"'a' expects {2**42} bytes, the file has"):
        open_weights(path)


def test_archives_that_torch_save_did_not_write_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert_refused(path, path.read_bytes(), "an archive (readme.txt) unlike", "unpack it")
    save_pickle({"a": torch.zeros(100)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "b.pt", "w", 8) as packed:
        for name in source.namelist():
            packed.writestr(name, source.read(name))
    with pytest.raises(WeightsError, match=r"unlike those that torch\.save writes"):
        open_weights(tmp_path / "b.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/constants.pkl", b"\x80\x02).")  # as TorchScript has
    with pytest.raises(WeightsError, match=r"get the \.safetensors form"):
        open_weights(path)


@pytest.fixture(scope="module")
def undamaged(folder):
    """Made once: torch's old form has addresses in it, so that no two files are equally long."""
    return good_files(folder)


@pytest.mark.parametrize("form", ["safetensors", *FORMS])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_bytes_give_tensors_or_a_weights_error(folder, undamaged, form, data):
    content = bytearray(undamaged[form])
    for _ in range(data.draw(st.integers(1, 3))):
        span = (0, len(content) - 1) if data.draw(st.booleans()) else (0, 400)
        content[data.draw(st.integers(*span))] = data.draw(st.integers(0, 255))
    path = folder / f"damaged.{form}"
    path.write_bytes(content)
    try:
        with open_weights(path) as file:
            for name in file:
                tensor = file.read(name)
                assert tuple(tensor.shape) == file.shape(name)
    except WeightsError as error:
        assert str(path) in str(error)


# Writing


@pytest.mark.parametrize(
    ("pairs", "complaint"),
    [
        ([("b", STATE["b"]), ("a", STATE["a"])], r"'b' \(4,\) came, the layout has 'a' \(2, 3\)"),
        ([("a", STATE["a"]), ("c", STATE["b"])], r"'c' \(4,\) came, the layout has 'b' \(4,\)"),
        ([("a", STATE["a"].T), ("b", STATE["b"])], r"'a' \(3, 2\) came, the layout has 'a' \(2, 3"),
        ([*STATE.items(), ("b", STATE["b"])], "the layout has nothing more there"),
        ([("a", STATE["a"])], "1 tensors of the layout did not come, the first is 'b'"),
        ([], "2 tensors of the layout did not come, the first is 'a'"),
    ],
)
def test_tensors_that_differ_from_the_layout_leave_the_old_file_alone(tmp_path, pairs, complaint):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(WeightsError, match=complaint) as error:
        write_safetensors(path, iter(pairs), layout_of(STATE))
    assert str(path) in str(error.value)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_source_passes_through_and_leaves_nothing(tmp_path):
    def broken():
        yield "a", STATE["a"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_safetensors(tmp_path / "a.safetensors", broken(), layout_of(STATE))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "layout", [{"a": (torch.complex64, (2,))}, {"__metadata__": (torch.float32, (2,))}]
)
def test_layouts_that_the_format_cannot_hold_are_refused(tmp_path, layout):
    with pytest.raises(WeightsError, match="choose another name than __metadata__"):
        write_safetensors(tmp_path / "a.safetensors", {}, layout)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="it is a folder"):
        write_safetensors(tmp_path, STATE, layout_of(STATE))


def test_what_was_handed_over_is_not_changed(tmp_path):
    source = torch.nn.Parameter(torch.tensor([1 / 3]))
    write_safetensors(tmp_path / "a.safetensors", {"a": source}, {"a": (torch.float16, (1,))})
    assert source.dtype == torch.float32 and source.requires_grad
    assert_same(source, torch.tensor([1 / 3]))


# Memory


MEASURE = """
import sys, torch
from v3d_core.formats.weights import open_weights, write_safetensors

def anonymous_mb():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith("RssAnon:")).split()[1]) / 1024

source, target = sys.argv[1:]
peak = 0.0
def watched(file, dtype=None):
    global peak
    for name in file:
        tensor = file.read(name, dtype)
        peak = max(peak, anonymous_mb())
        yield name, tensor
        del tensor

write_safetensors(target + ".warm-up", [("a", torch.ones(9))], {"a": (torch.float16, (9,))})
start = anonymous_mb()
with open_weights(source) as file:
    layout = {name: (torch.float16, file.shape(name)) for name in file}
    write_safetensors(target, watched(file), layout)
with open_weights(target) as file:
    total = sum(tensor.double().sum().item() for _, tensor in watched(file, torch.float32))
print(peak - start, total)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="anonymous memory is read from /proc/self/status"
)
def test_converting_200_mb_needs_the_memory_of_one_tensor(tmp_path):
    count, size = 50, 1_000_000  # tensors of 4 MB; glibc keeps about eight freed ones of a size
    state = {f"t{i}": torch.full((size,), float(i)) for i in range(count)}
    save_pickle(state, tmp_path / "a.ckpt")
    del state
    command = [sys.executable, "-c", MEASURE, tmp_path / "a.ckpt", tmp_path / "a.safetensors"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60)
    raised_mb, total = map(float, done.stdout.split())
    assert total == size * sum(range(count))
    assert raised_mb < 60, raised_mb


def test_the_type_of_an_open_file_is_public(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", STATE, layout_of(STATE))
    file = open_weights(tmp_path / "a.safetensors")
    assert isinstance(file, WeightFile)
    file.close()
