"""The door to rembg: only its mask, never a download, and messages that say what is missing."""

import sys
import types

import numpy as np
import pytest
import torch

from v3d_core import backends

PICTURE = torch.zeros(6, 8, 3, dtype=torch.uint8)
PICTURE[2:4, 1:7] = 200


class FakeSession:
    """As rembg's: opens whatever its `download_models` names, which would fetch it."""

    def __init__(self, model_name, sess_opts, *args, **kwargs):
        assert model_name == "u2net" and sess_opts == "options"
        with open(self.download_models()) as file:
            if file.read() != "weights":
                raise RuntimeError("no graph was found")

    @classmethod
    def download_models(cls, *args, **kwargs):
        raise AssertionError("a download was tried")


def fake_remove(image, session, only_mask):
    assert only_mask and isinstance(session, FakeSession)
    assert isinstance(image, np.ndarray) and image.dtype == np.uint8
    return np.where(image.max(-1) > 100, 255, 51).astype(np.uint8)


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Importable stand-ins for rembg and onnxruntime, and an empty home."""
    sessions = types.ModuleType("rembg.sessions.u2net")
    sessions.U2netSession = FakeSession
    rembg = types.ModuleType("rembg")
    rembg.remove = fake_remove
    onnxruntime = types.ModuleType("onnxruntime")
    onnxruntime.SessionOptions = lambda: "options"
    for module in (rembg, types.ModuleType("rembg.sessions"), sessions, onnxruntime):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("U2NET_HOME", "REMBG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


def put_model(folder, text="weights"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "u2net.onnx").write_text(text)


@pytest.mark.parametrize(
    ("variable", "folder"),
    [
        (None, ".u2net"),  # older versions of rembg
        (None, ".rembg/models/u2net"),  # newer ones
        ("U2NET_HOME", "there"),
        ("REMBG_HOME", "there/models/u2net"),
        ("XDG_DATA_HOME", "there/.u2net"),
        ("XDG_DATA_HOME", "there/rembg/models/u2net"),
    ],
)
def test_the_mask_is_made_with_the_model_that_is_there(home, monkeypatch, variable, folder):
    if variable:
        monkeypatch.setenv(variable, str(home / "there"))
    put_model(home / folder)
    mask = backends.remove_background(PICTURE)
    expected = torch.full((6, 8), 0.2)
    expected[2:4, 1:7] = 1
    assert mask.dtype == torch.float32
    torch.testing.assert_close(mask, expected)


def test_an_absent_model_is_named_with_its_place_and_source_and_not_fetched(home):
    place = home / ".u2net" / "u2net.onnx"
    with pytest.raises(backends.MissingPackageError) as caught:
        backends.remove_background(PICTURE)
    for part in (str(place), "github.com/danielgatis/rembg/releases", "alpha channel", "--masks"):
        assert part in str(caught.value)
    assert not place.parent.exists()


def test_a_damaged_model_says_so(home):
    put_model(home / ".u2net", "half of it")
    with pytest.raises(backends.MissingPackageError, match=r"cannot read .*no graph was found"):
        backends.remove_background(PICTURE)


@pytest.mark.parametrize("package", ["rembg", "onnxruntime"])
def test_an_absent_package_is_named_with_its_pip_line(home, monkeypatch, package):
    put_model(home / ".u2net")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(backends, "is_installed", lambda name: False)
    with pytest.raises(backends.MissingPackageError, match=f"pip install {package}"):
        backends.remove_background(PICTURE)


def test_a_package_that_exits_when_imported_does_not_end_the_process(monkeypatch, tmp_path):
    """rembg does, when onnxruntime is there but broken."""
    (tmp_path / "rembg.py").write_text("raise SystemExit(1)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "rembg", raising=False)
    with pytest.raises(backends.MissingPackageError, match="does not import"):
        backends.load("rembg")


@pytest.mark.parametrize("picture", [PICTURE[None], PICTURE[..., :1], PICTURE.float() / 255])
def test_anything_but_one_picture_of_bytes_is_refused(picture):
    with pytest.raises(ValueError, match=r"expected \[H, W, 3\] uint8"):
        backends.remove_background(picture)
