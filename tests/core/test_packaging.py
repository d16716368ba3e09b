"""What the package metadata promises: one list of requirements, and never a torch."""

import re
import sys
from pathlib import Path

import v3d_core

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# everything that the host's own requirements bring; naming them could change the user's versions
HOST_OWNS = {"torch", "torchvision", "torchaudio", "torchsde", "numpy", "scipy", "pillow"}
HOST_OWNS |= {"safetensors", "av", "tqdm", "psutil", "kornia", "transformers", "einops"}


def package_names(lines: list[str]) -> set[str]:
    return {re.split(r"[\s<>=!~\[;]", line, maxsplit=1)[0].lower() for line in lines}


def requirement_lines(name: str) -> list[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_requirements_file_equals_project_dependencies():
    assert requirement_lines("requirements.txt") == PROJECT["project"]["dependencies"]


def test_pack_requires_nothing_the_host_owns_and_pins_nothing():
    dependencies = PROJECT["project"]["dependencies"]
    assert not package_names(dependencies) & HOST_OWNS
    # an upper bound only where newer versions leave out hardware that the older ones serve
    loose = [line for line in dependencies if not line.startswith("warp-lang>=")]
    assert all(re.fullmatch(r"[a-z0-9-]+>=[\d.]+", line) for line in loose)


def test_constraints_pin_torch_and_only_torch():
    assert requirement_lines("constraints.txt") == ["torch==2.13.0"]


def test_registry_id_and_version_are_lawful():
    name = PROJECT["project"]["name"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,98}", name) and "comfyui" not in name
    assert re.fullmatch(r"\d+\.\d+\.\d+", v3d_core.__version__)
    version_file = ROOT / PROJECT["tool"]["comfy"]["version"]["path"]
    assert f'__version__ = "{v3d_core.__version__}"' in version_file.read_text(encoding="utf-8")


def test_development_files_stay_out_of_the_published_pack():
    ignored = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    assert {"dev.py", "tests/", "benchmarks/", ".ci/"} <= set(ignored)


def test_what_the_front_end_reads_is_published():
    ignored = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    for folder in ("locales", "web", "workflows"):
        assert (ROOT / folder).is_dir()
        assert not [line for line in ignored if line.strip("/").split("/")[0] in (folder, "*")]
