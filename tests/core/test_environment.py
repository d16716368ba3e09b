"""`v3d env`: the truth about engines and packages, with any of them absent or broken."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from v3d_core import backends, environment
from v3d_core.cli import main
from v3d_core.splats import engines as splat_engines

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def report():
    return environment.inspect_environment(CPU)


def of(report, kind, name):
    key = {"engines": "task", "packages": "name"}[kind]
    return next(entry for entry in report[kind] if entry[key] == name)


def test_the_engines_are_those_that_the_choosers_choose(report):
    chosen = splat_engines.choose_engine(CPU, torch.float32).name
    assert of(report, "engines", "splat raster")["used"] == chosen
    assert len(report["engines"]) == 8
    assert all(engine["used"] for engine in report["engines"])


def test_every_optional_package_has_a_line_with_its_purpose(report):
    text = environment.environment_text(report)
    for name, package in backends.OPTIONAL_PACKAGES.items():
        # what is absent may be named in other lines as well: an engine that it would be
        lines = [line for line in text.splitlines() if line.startswith(f"  {name}")]
        (line,) = [line for line in lines if package.purpose in line]
        if not backends.is_installed(name):
            assert f"pip install {package.install}" in line


def test_an_absent_package_has_no_version_of_another_one(monkeypatch):
    installed = {"transformers": "5.0", "warp-lang": "1.17"}

    def version(name):
        if name not in installed:
            raise environment.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(environment, "version", version)
    packages = backends.OPTIONAL_PACKAGES
    assert environment._version(packages["diffusers"]) is None  # pip is given transformers too
    assert environment._version(packages["transformers"]) == "5.0"
    assert environment._version(packages["warp"]) == "1.17"


def test_quick_imports_and_tries_nothing(monkeypatch):
    def never(*_):
        raise AssertionError("something was tried")

    monkeypatch.setattr(backends, "load", never)
    monkeypatch.setattr(splat_engines, "choose_engine", never)
    report = environment.inspect_environment(CPU, try_out=False)
    assert all(engine["used"] is None for engine in report["engines"])
    assert "not tried" in environment.environment_text(report)


def test_quick_on_a_gpu_does_not_start_cuda(monkeypatch):
    def never(*_):
        raise AssertionError("CUDA was started")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "_lazy_init", never)
    report = environment.inspect_environment(torch.device("cuda"), try_out=False)
    assert report["device"]["memory_gib"] is None
    assert "device cuda: not started" in environment.environment_text(report)


@pytest.mark.cuda
def test_a_gpu_is_named_with_its_memory_and_the_drivers_version():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    report = environment.inspect_environment(torch.device("cuda"))
    assert report["device"]["name"] == torch.cuda.get_device_name()
    assert 0 < report["device"]["memory_gib"]["free"] <= report["device"]["memory_gib"]["total"]
    assert all(engine["used"] for engine in report["engines"])
    if torch.version.cuda:
        assert int(report["torch"]["driver"].split(".")[0]) >= 11


def test_a_forced_engine_and_one_that_does_not_exist_are_named(monkeypatch):
    monkeypatch.setenv("V3D_RASTERIZER", "torch")
    monkeypatch.setenv("V3D_HASH_GRID", "abacus")
    report = environment.inspect_environment(CPU)
    forced, wrong = of(report, "engines", "splat raster"), of(report, "engines", "hash grid")
    assert forced["used"] == "torch" and "V3D_RASTERIZER=torch" in forced["not_used"][0]
    assert wrong["used"] is None and "V3D_HASH_GRID=abacus" in wrong["why"]
    assert any("V3D_RASTERIZER" in line for line in report["faster"])


@pytest.mark.parametrize(
    ("build", "driver", "words"),
    [
        (None, None, "built for the CPU"),
        ("13.0", None, "no NVIDIA driver"),
        ("13.0", (12, 4), "supports 12.4; update the driver"),
        ("12.8", (13, 0), "sees no GPU"),
    ],
)
def test_the_advice_for_a_missing_gpu_names_what_is_missing(build, driver, words, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(environment, "_driver", lambda: driver)
    assert words in environment._device_advice(CPU)


def test_the_drivers_version_is_read_from_its_number(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")

    def library(number, failed=0):
        def tell(address):
            address._obj.value = number  # what byref points to
            return failed

        return lambda name: SimpleNamespace(cuDriverGetVersion=tell)

    monkeypatch.setattr(environment.ctypes, "CDLL", library(12040))
    assert environment._driver() == (12, 4)
    monkeypatch.setattr(environment.ctypes, "CDLL", library(0))
    assert environment._driver() is None
    monkeypatch.setattr(environment.ctypes, "CDLL", library(12040, failed=100))  # no device
    assert environment._driver() is None

    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(environment.ctypes, "CDLL", absent)
    assert environment._driver() is None
    monkeypatch.setattr(environment.ctypes, "CDLL", library(12040))
    monkeypatch.setattr(torch.version, "cuda", None)  # a build for the CPU needs none
    assert environment._driver() is None


def test_the_command_prints_json(capsys):
    assert main(["env", "--quick", "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["device"]["device"] == "cpu"


# One Python per state of the packages: what is imported cannot be made absent again.
_REPORT = """
import json, sys
for name in sys.argv[1].split(",") if sys.argv[1] else (): sys.modules[name] = None
from v3d_core import *
import torch
from v3d_core.environment import environment_text, inspect_environment
from v3d_core.mesh_queries import MeshQueries
from v3d_core.mesh.unwrap import unwrap
from v3d_core.structures import Mesh
torch.set_num_threads(1)
report = inspect_environment(torch.device("cpu"))
corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
hit = MeshQueries(corners, faces).cast(torch.tensor([[0.1, 0.2, -1]]), torch.tensor([[0, 0, 1.0]]))
report["distance"] = hit.distance.tolist()
report["charts"] = len(unwrap(Mesh(corners, faces)).uvs)
report["cuda"] = torch.cuda.is_initialized()
report["text"] = environment_text(report)
print(json.dumps(report))
"""


def report_of_another_python(blocked="", path=None):
    """What a fresh Python reports, and that a mesh is asked and unwrapped all the same."""
    places = os.pathsep.join(map(str, [*([path] if path else []), ROOT]))
    settings = {**os.environ, "PYTHONPATH": places, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-c", _REPORT, blocked],
        env=settings, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["distance"] == [1.0] and found["charts"] >= 4
    return found


@pytest.fixture(scope="module")
def nothing_optional():
    return report_of_another_python(",".join(backends.OPTIONAL_PACKAGES))


@pytest.fixture(scope="module")
def all_broken(tmp_path_factory):
    """Every optional package is there and raises when imported, as one built for another torch."""
    folder = tmp_path_factory.mktemp("broken")
    for name in backends.OPTIONAL_PACKAGES:
        (folder / name).mkdir()
        code = f"raise OSError('lib{name}.so: undefined symbol')"
        (folder / name / "__init__.py").write_text(code)
    return report_of_another_python(path=folder)


@pytest.mark.parametrize("name", backends.OPTIONAL_PACKAGES)
def test_an_absent_package_is_named_and_everything_else_works(name, nothing_optional):
    package = of(nothing_optional, "packages", name)
    assert package["state"] == "not installed"
    assert package["detail"] == f"pip install {backends.OPTIONAL_PACKAGES[name].install}"


@pytest.mark.parametrize("name", backends.OPTIONAL_PACKAGES)
def test_a_broken_package_is_named_with_its_error(name, all_broken):
    package = of(all_broken, "packages", name)
    if name in environment.CUDA_ONLY:
        assert "CUDA only" in package["detail"]
        return
    assert package["state"] == "cannot be used"
    library = "onnxruntime" if name == "rembg" else name  # which is imported before it
    assert f"lib{library}.so: undefined symbol" in package["detail"]


@pytest.mark.parametrize("state", ["nothing_optional", "all_broken"])
def test_without_packages_torch_computes_and_the_reasons_are_given(state, request):
    found = request.getfixturevalue(state)
    words = {"nothing_optional": "not installed", "all_broken": "undefined symbol"}[state]
    for engine in found["engines"]:
        assert engine["used"] == ("charts" if engine["task"] == "unwrapping" else "torch")
        assert any(words in reason for reason in engine["not_used"]), engine
        assert all(reason in found["faster"] for reason in engine["not_used"])
    assert not found["cuda"]
