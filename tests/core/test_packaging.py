"""What the package metadata promises: one list of requirements, and never a torch."""

import ast
import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
    for folder in ("locales", "web", "workflows", "subgraphs"):
        assert (ROOT / folder).is_dir()
        assert not [line for line in ignored if line.strip("/").split("/")[0] in (folder, "*")]


def shipped_files() -> list[str]:
    """Files of the published pack: what git tracks without what .comfyignore names."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    ignored = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    patterns = [name + "*" if name.endswith("/") else name for name in ignored]
    return [
        name
        for name in listed.stdout.splitlines()
        if (ROOT / name).is_file() and not any(fnmatch.fnmatch(name, p) for p in patterns)
    ]


WEIGHTS = "v3d_core/data/v3d_nano.safetensors"


def test_the_published_pack_is_below_10_mb_without_the_bundled_weights():
    sizes = {name: (ROOT / name).stat().st_size for name in shipped_files()}
    assert {"__init__.py", "v3d_core/environment.py", "requirements.txt"} <= sizes.keys()
    assert not [name for name in sizes if name.startswith(("tests/", "benchmarks/"))]
    assert sizes.pop(WEIGHTS) <= 32e6
    assert not [name for name in sizes if name.endswith((".safetensors", ".ckpt", ".pt", ".npy"))]
    assert sum(sizes.values()) < 10e6


def test_a_wheel_has_everything_below_the_data_folder():
    assert PROJECT["tool"]["setuptools"]["package-data"] == {"v3d_core": ["data/**/*"]}
    assert "v3d_core*" in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    data = {path for path in (ROOT / "v3d_core").glob("data/**/*") if path.is_file()}
    assert {path.relative_to(ROOT).as_posix() for path in data} <= set(shipped_files())


# What the registry's scanner flags or a user would not expect of nodes; `test_layers` looks at imports.
FLAGGED_CALLS = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}
FLAGGED_OF_OS = {"system", "popen", "startfile", "fork", "forkpty", "putenv"}
FLAGGED_MODULES = {
    "pickle",
    "marshal",
    "pty",
    "code",
    "pip",
    "ensurepip",
    "multiprocessing",
    "http",
}
FLAGGED_IN_SCRIPTS = re.compile(
    r"\beval\(|\bnew Function\b|\bimport\(|\bdocument\.write\b|\.(?:inner|outer)HTML\b|https?://"
)


def flagged(source: str) -> list[str]:
    """Calls and imports in Python that run text, start programs or change the process."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += [node.func.id] if node.func.id in FLAGGED_CALLS else []
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "os" and node.attr.startswith((*FLAGGED_OF_OS, "exec", "spawn")):
                found.append(f"os.{node.attr}")
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [] if node.level else [node.module or ""]
            found += [name for name in names if name.split(".")[0] in FLAGGED_MODULES]
        elif isinstance(node, ast.Assign):
            targets = [target.value for target in node.targets if isinstance(target, ast.Subscript)]
            found += [t for t in map(ast.unparse, targets) if t in ("os.environ", "sys.modules")]
    return found


def test_shipped_python_runs_no_text_and_starts_nothing():
    found = {
        name: problems
        for name in shipped_files()
        if name.endswith(".py") and (problems := flagged((ROOT / name).read_text("utf-8")))
    }
    workers = found.pop("v3d_core/batch_workers.py")
    # gsplat's compiled code under the name by which gsplat imports it; see `load_gsplat`
    assert found == {"v3d_core/backends.py": ["sys.modules"]}
    # `v3d batch` runs Python's own worker processes, each bound to its GPU by a variable; nothing
    # that ComfyUI loads imports it
    assert set(workers) == {"multiprocessing", "os.environ"}
    importers = {
        name
        for name in shipped_files()
        if name.endswith(".py") and "batch_workers import" in (ROOT / name).read_text("utf-8")
    }
    assert importers == {"v3d_core/cli_batch.py", "v3d_core/batch_ray.py"}


def test_shipped_scripts_run_no_text_and_reach_no_other_server():
    scripts = [name for name in shipped_files() if name.endswith((".js", ".mjs", ".html"))]
    for name in scripts:
        assert not FLAGGED_IN_SCRIPTS.findall((ROOT / name).read_text("utf-8")), name


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec(text)",
        "import os\nos.system('ls')",
        "import os\nos.execv(a, b)",
        "def f():\n    import pickle",
        "from pip._internal import main",
        "import os\nos.environ['A'] = 'b'",
    ],
)
def test_a_planted_call_is_found(source):
    assert len(flagged(source)) == 1


def test_methods_of_the_same_names_are_lawful():
    assert not flagged("model.eval()\nre.compile('a')\nfrom .code import x")
