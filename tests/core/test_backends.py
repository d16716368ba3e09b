"""Optional packages: named with the line that installs them, and never fetched behind one's back."""

import sys
import types

import pytest
import torch

from v3d_core import backends


class FakeLpips(torch.nn.Module):
    """Mean absolute difference in the shape that lpips.LPIPS returns, [V, 1, 1, 1]."""

    def __init__(self, net, verbose):
        super().__init__()
        assert net == "alex" and verbose is False

    def forward(self, first, second):
        assert first.shape[1] == 3
        assert first.amin() >= -1 and first.amax() <= 1
        return (first - second).abs().mean(dim=(1, 2, 3), keepdim=True)


@pytest.fixture
def fake_lpips(monkeypatch, tmp_path):
    """An importable `lpips` and an empty torch hub; a download fails the test."""
    module = types.ModuleType("lpips")
    module.LPIPS = FakeLpips
    monkeypatch.setitem(sys.modules, "lpips", module)
    monkeypatch.setattr(backends, "is_installed", lambda name: name == "lpips")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def no_download(*_, **__):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_download)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / backends.LPIPS_TRUNK_FILE


@pytest.mark.parametrize("package", backends.OPTIONAL_PACKAGES.values(), ids=lambda p: p.module)
def test_a_missing_package_is_named_with_its_pip_line(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package.module, None)
    monkeypatch.setattr(backends, "is_installed", lambda name: False)
    with pytest.raises(backends.MissingPackageError, match=f"pip install {package.install}"):
        backends.load(package.module)


def test_a_broken_package_says_what_broke(monkeypatch, tmp_path):
    (tmp_path / "xatlas.py").write_text("raise OSError('libfoo.so is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "xatlas", raising=False)
    with pytest.raises(backends.MissingPackageError, match=r"does not import .*libfoo\.so"):
        backends.load("xatlas")


def test_lpips_without_its_weights_is_unavailable_and_downloads_nothing(fake_lpips):
    distance, reason = backends.load_lpips()
    assert distance is None and str(fake_lpips.parent) in reason


def test_lpips_with_its_weights_gives_one_distance_per_picture(fake_lpips):
    fake_lpips.write_bytes(b"weights")
    distance, name = backends.load_lpips()
    images = torch.rand(2, 8, 8, 3)
    assert name == "alex" and distance is not None
    assert torch.equal(distance(images, images), torch.zeros(2))
    expected = (images - 1).abs().mean(dim=(1, 2, 3)) * 2
    assert torch.allclose(distance(images, torch.ones_like(images)), expected)


def test_lpips_with_damaged_weights_is_unavailable_with_the_reason(fake_lpips, monkeypatch):
    def damaged(*_, **__):
        raise EOFError("file ends too early")

    fake_lpips.write_bytes(b"")
    monkeypatch.setattr(sys.modules["lpips"], "LPIPS", damaged)
    distance, reason = backends.load_lpips()
    assert distance is None and "file ends too early" in reason
