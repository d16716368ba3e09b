"""Who may import whom, read from the source: see the layout in the README."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("diffusion", "splats", "neus", "mesh", "training")
COMMAND_LINE = ("cli", "cli_env", "cli_generate", "cli_input", "cli_neus", "cli_shared", "generate")
COMMAND_LINE += ("cli_refine", "cli_train", "cli_train_data", "nano", "nano_check", "reconstruct")
COMMAND_LINE += ("cli_evaluate", "evaluation", "evaluation_methods", "evaluation_surface")
COMMAND_LINE += ("evaluation_units",)
COMMAND_LINE += ("cli_batch", "cli_batch_stages", "demo_picture")
# the only ones that see every stage
ASSEMBLERS = ("__init__", "__main__", "environment", *COMMAND_LINE)
HOST = ("comfy", "comfy_api", "comfy_api_nodes", "comfy_execution", "comfy_extras", "folder_paths")
HOST += ("server", "nodes", "execution", "torchvision", "torchaudio")
OPTIONAL = ("warp", "gsplat", "nerfacc", "tinycudann", "xatlas", "lpips", "rembg")
OPTIONAL += ("diffusers", "transformers", "onnxruntime", "ray")
STARTS_PROGRAMS_OR_CONNECTIONS = ("subprocess", "urllib.request", "requests", "socket", "httpx")
MAX_LINES = 400


def imports(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import; relative ones resolved, with `..` before them."""
    package = path.with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += [node.module] if node.module else []
            for alias in node.names:  # `from . import x` names a module in the alias
                yield node.lineno, (".." if node.level else "") + ".".join([*base, alias.name])


@cache
def module_level_lines(source: str) -> set[int]:
    """Lines of the statements that run when a module is imported."""
    return {node.lineno for node in ast.parse(source).body}


def needs_warp(parts: list[str] | tuple[str, ...]) -> bool:
    """Whether a module of v3d_core is a kernel, or a stage's `warp_*` that launches kernels.

    The launchers import kernels when loaded, so both may be loaded only where Warp was found.
    """
    own, inner = (*parts[1:3], "", "")[:2]
    return own == "kernels" or (own in STAGES and inner.startswith("warp_"))


def breaches(sources: dict[Path, str]) -> list[str]:
    """Every broken rule in files given by their path from the repository root."""
    found = []
    for path, source in sorted(sources.items()):
        core = path.parts[0] == "v3d_core"
        own = path.with_suffix("").parts[1] if len(path.parts) > 1 else ""
        if path.stem in sys.stdlib_module_names:
            found.append(f"{path}: named like a module of the standard library")
        if (lines := source.count("\n")) >= MAX_LINES:
            found.append(f"{path}: {lines} lines, must stay under {MAX_LINES}")
        for line, name in imports(path, source):
            relative = name.startswith("..")
            parts = name.lstrip(".").split(".")
            where = f"{path}:{line}: imports {name.lstrip('.')}"
            if parts[0] == "v3d_core" and not relative:
                found.append(f"{where} absolutely; the host knows it under another name")
            if any(
                name == bad or name.startswith(bad + ".") for bad in STARTS_PROGRAMS_OR_CONNECTIONS
            ):
                found.append(f"{where}; the pack starts no programs and opens no connections")
            kernel_source = core and own == "kernels" and parts[0] == "warp"
            if parts[0] in OPTIONAL and not kernel_source and not (core and own == "backends"):
                found.append(f"{where}; optional packages come through v3d_core/backends.py")
            if not core:
                continue
            if parts[0] in HOST or (relative and parts[0] != "v3d_core"):
                found.append(f"{where}; v3d_core knows no host")
            target = parts[1] if relative and len(parts) > 1 else ""
            if target in STAGES and target != own and own not in ASSEMBLERS:
                found.append(f"{where}; stages meet in v3d_core/structures.py only")
            at_load = relative and line in module_level_lines(source)
            if at_load and needs_warp(parts) and not needs_warp(path.with_suffix("").parts):
                found.append(f"{where} when loaded; kernels need Warp, import them at first use")
            if target in COMMAND_LINE and own not in ASSEMBLERS:
                found.append(f"{where}; only the command line may")
            if own == "structures" and relative:
                found.append(f"{where}; structures stand on torch alone")
    return found


def shipped_sources() -> dict[Path, str]:
    files = [*(ROOT / "v3d_core").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")]
    files += [ROOT / "__init__.py"] if (ROOT / "__init__.py").exists() else []
    return {file.relative_to(ROOT): file.read_text(encoding="utf-8") for file in files}


def test_shipped_files_keep_every_layer_rule():
    assert breaches(shipped_sources()) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("v3d_core/splats/fit.py", "from ..neus import field", "stages meet"),
        ("v3d_core/splats/fit.py", "from ..mesh.clean import keep_largest", "stages meet"),
        ("v3d_core/formats/ply.py", "from ..splats.raster import render_splats", "stages meet"),
        ("v3d_core/losses.py", "from . import splats", "stages meet"),
        ("v3d_core/splats/fit.py", "from .. import mesh", "stages meet"),
        ("v3d_core/splats/fit.py", "def f():\n    import comfy.utils", "knows no host"),
        ("v3d_core/images.py", "from torchvision.io import read_image", "knows no host"),
        ("v3d_core/images.py", "from .. import nodes", "knows no host"),
        ("v3d_core/images.py", "from v3d_core.structures import Mesh", "absolutely"),
        ("nodes/mesh.py", "from v3d_core.structures import Mesh", "absolutely"),
        ("v3d_core/splats/raster.py", "import gsplat", "backends.py"),
        ("nodes/mesh.py", "def f():\n    import xatlas", "backends.py"),
        ("v3d_core/splats/raster.py", "from ..kernels import splat_tiles", "first use"),
        ("v3d_core/splats/engines.py", "from .warp_raster import rasterize_warp", "first use"),
        ("v3d_core/splats/engines.py", "from . import warp_raster", "first use"),
        ("v3d_core/reconstruct.py", "from .splats.warp_raster import engine", "first use"),
        ("v3d_core/losses.py", "from .kernels import photometric_cuda", "first use"),
        ("v3d_core/structures.py", "from .cameras import look_at", "torch alone"),
        ("v3d_core/splats/fit.py", "from ..cli import main", "command line"),
        ("v3d_core/diffusion/orbit.py", "from ..generate import sample_pictures", "command line"),
        ("v3d_core/prepare.py", "from .cli_shared import say", "command line"),
        ("v3d_core/reconstruct.py", "def f():\n    import diffusers", "backends.py"),
        ("nodes/mesh.py", "import subprocess", "no programs"),
        ("v3d_core/formats/io.py", "", "standard library"),
        ("v3d_core/losses.py", "\n" * MAX_LINES, "lines"),
    ],
)
def test_a_planted_breach_is_found(path, source, complaint):
    found = breaches({Path(path): source})
    assert len(found) == 1 and complaint in found[0], found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("v3d_core/splats/fit.py", "from ..structures import Views\nfrom .densify import split"),
        ("v3d_core/cli.py", "from .splats.fit import fit_splats\nfrom .mesh import clean"),
        ("v3d_core/generate.py", "from .diffusion.orbit import sample_orbit"),
        ("v3d_core/backends.py", "def f():\n    import gsplat"),
        ("v3d_core/kernels/splat_tiles.py", "import warp as wp"),
        ("v3d_core/splats/raster.py", "def f():\n    from ..kernels import splat_tiles"),
        ("v3d_core/splats/engines.py", "def f():\n    from .warp_raster import rasterize_warp"),
        ("v3d_core/splats/warp_raster.py", "from ..kernels import splat_tiles"),
        ("v3d_core/splats/warp_cuda_raster.py", "from .warp_raster import project"),
        ("nodes/mesh.py", "from ..v3d_core.structures import Mesh\nimport comfy.utils"),
    ],
)
def test_lawful_imports_are_not_reported(path, source):
    assert breaches({Path(path): source}) == []


def test_root_init_does_nothing_when_imported():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    lawful = (ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in tree.body:
        documentation = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        assert documentation or future or isinstance(node, lawful), ast.unparse(node)
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            assert not any(isinstance(part, ast.Call) for part in ast.walk(node))


def run_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_importing_v3d_core_loads_neither_torch_nor_any_stage():
    run_python(
        "import sys, v3d_core\n"
        "assert v3d_core.__version__\n"
        "heavy = [m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy')]\n"
        "assert not heavy and not [m for m in sys.modules if m.startswith('v3d_core.')]"
    )


def test_every_public_name_resolves_without_host_or_optional_packages():
    run_python(
        "import sys\n"
        f"for name in {HOST + OPTIONAL!r}: sys.modules[name] = None\n"
        "import v3d_core\n"
        "from v3d_core import *\n"
        "missing = [name for name in v3d_core.__all__ if name not in globals()]\n"
        "assert not missing, missing\n"
        "assert not set(v3d_core.__all__) - set(dir(v3d_core))\n"
        "modules = [n for n in v3d_core.__all__ if type(globals()[n]) is type(sys)]\n"
        "assert not modules, modules"
    )


def test_an_unknown_public_name_is_an_attribute_error():
    import v3d_core

    with pytest.raises(AttributeError, match="no_such_name"):
        _ = v3d_core.no_such_name
