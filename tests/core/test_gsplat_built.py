"""gsplat counts only when its compiled code is there; its own build is never started."""

import importlib.machinery
import sys
import types

import pytest

from v3d_core import backends

# what gsplat/cuda/_backend.py of 1.5.3 does, with a mark where it would compile
BACKEND = """
from pathlib import Path
try:
    from gsplat import csrc as _C
except ImportError:
    (Path(__file__).parent / "build_started").touch()
    _C = None
"""


@pytest.fixture
def gsplat(monkeypatch, tmp_path):
    """A gsplat on sys.path without compiled code, and torch's extension folder, empty."""
    package = tmp_path / "site" / "gsplat"
    (package / "cuda").mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '1.5.3'\n")
    (package / "cuda" / "__init__.py").write_text("")
    (package / "cuda" / "_backend.py").write_text(BACKEND)
    for name in [name for name in sys.modules if name.split(".")[0] == "gsplat"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    yield package
    assert not (package / "cuda" / "build_started").exists(), "a build was started"
    for name in [name for name in sys.modules if name.split(".")[0] == "gsplat"]:
        sys.modules.pop(name)


@pytest.fixture
def own_build(tmp_path):
    """The library that gsplat's own build leaves, as an empty file."""
    folder = tmp_path / "extensions" / "gsplat_cuda"
    folder.mkdir(parents=True)
    suffix = ".pyd" if sys.platform == "win32" else ".so"
    library = folder / f"gsplat_cuda{suffix}"
    library.touch()
    return library


def pretend_libraries_load(monkeypatch):
    loaded = []

    def load_library(name, path):
        loaded.append((name, path))
        return types.ModuleType(name)

    monkeypatch.setattr(backends, "_load_library", load_library)
    return loaded


def test_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "gsplat", None)
    assert backends.gsplat_is_built() == (False, "gsplat is not installed; pip install gsplat")


def test_source_only_wheel_is_not_built_and_not_imported(gsplat, tmp_path):
    (gsplat / "__init__.py").write_text("from .cuda import _backend\n")  # would build
    built, reason = backends.gsplat_is_built()
    assert not built and "not compiled" in reason and "nvcc" in reason
    assert "gsplat" not in sys.modules
    assert not (tmp_path / "extensions").exists()  # torch's own look-up would have made it


def test_prebuilt_wheel_is_loaded_from_its_file(gsplat, monkeypatch):
    monkeypatch.setattr(importlib.machinery, "EXTENSION_SUFFIXES", [".py"])
    (gsplat / "csrc.py").write_text("answer = 42\n")
    assert backends.gsplat_is_built() == (True, "")
    assert sys.modules["gsplat.cuda._backend"]._C.answer == 42
    assert backends.gsplat_is_built() == (True, "")  # and again


@pytest.mark.parametrize("eager", [False, True], ids=["lazy", "touches its code on import"])
def test_finished_own_build_is_loaded_without_a_compiler(gsplat, own_build, monkeypatch, eager):
    if eager:
        (gsplat / "__init__.py").write_text("from .cuda import _backend\n")
    loaded = pretend_libraries_load(monkeypatch)
    module, reason = backends.load_gsplat()
    assert reason == "" and module is sys.modules["gsplat"]
    assert loaded == [("gsplat_cuda", own_build)]
    assert sys.modules["gsplat.cuda._backend"]._C is sys.modules["gsplat.csrc"]


def test_build_at_work_does_not_count(gsplat, own_build):
    (own_build.parent / "lock").touch()
    built, reason = backends.gsplat_is_built()
    assert not built and "being built" in reason and str(own_build.parent / "lock") in reason
    assert (own_build.parent / "lock").exists()
    assert "gsplat" not in sys.modules


def test_library_that_does_not_load_is_named_and_gsplat_not_imported(gsplat, own_build):
    own_build.write_bytes(b"no library")
    built, reason = backends.gsplat_is_built()
    assert not built and "does not load" in reason and str(own_build) in reason
    assert "gsplat" not in sys.modules and "gsplat.csrc" not in sys.modules


def test_broken_package_says_what_broke(gsplat, own_build, monkeypatch):
    pretend_libraries_load(monkeypatch)
    (gsplat / "__init__.py").write_text("import jaxtyping_is_missing\n")
    built, reason = backends.gsplat_is_built()
    assert not built and "jaxtyping_is_missing" in reason


def test_imported_by_others_before_its_code_was_there(gsplat, own_build, monkeypatch):
    backend = types.ModuleType("gsplat.cuda._backend")
    backend._C = None
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", backend)
    built, reason = backends.gsplat_is_built()
    assert not built and "restart" in reason
    backend._C = types.ModuleType("csrc")
    assert backends.gsplat_is_built() == (True, "")


def test_folder_of_torchs_extensions_is_torchs_own(monkeypatch, tmp_path):
    cpp_extension = pytest.importorskip("torch.utils.cpp_extension")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for named in (None, str(tmp_path / "named")):
        if named is None:
            monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
        else:
            monkeypatch.setenv("TORCH_EXTENSIONS_DIR", named)
        expected = cpp_extension._get_build_directory("gsplat_cuda", False)
        assert str(backends._torch_extensions_folder() / "gsplat_cuda") == expected
