"""Find ComfyUI and build the Python environment that the node tests run it with.

One command builds or reuses it and prints its interpreter (exit code 3 and the reason when there
is no ComfyUI or no packages can be reached, which is when the node tests skip):

    python tests/nodes/comfy_env.py

and this runs every node test in it, which `python -m pytest` in the project's own environment
does as well:

    python tests/nodes/comfy_env.py --test

ComfyUI is looked for at COMFYUI_PATH, two folders up from this repository (it stands in
custom_nodes/) and at ~/ComfyUI. COMFYUI_PYTHON names an interpreter that has ComfyUI's
requirements already; nothing is built then. Only the standard library is used here.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = REPOSITORY / ".venv-comfy"
HOST_TESTS = Path(__file__).resolve().parent / "host"
INSIDE = "V3D_TESTS_INSIDE_COMFYUI"  # set for the Python that runs tests/nodes/host
INSTALL_TIMEOUT_S = 1800  # about 100 wheels; torch alone is up to 3 GB on Linux with CUDA

# Data that ComfyUI only serves to its front end; 420 MB that no test looks at.
NOT_NEEDED = ("comfyui-workflow-templates", "comfyui-embedded-docs")
# Bound to torch 2.13 of constraints.txt; without dependencies, so that torch stays what it is.
TORCH_SIBLINGS = ("torchvision==0.28.0", "torchaudio==2.11.0")


class Host(NamedTuple):
    """A ComfyUI tree with the interpreter that can run it, or why there is none."""

    comfyui: Path | None
    python: Path | None
    reason: str  # why something is missing, "" when all is there


def find_comfyui() -> Path | None:
    """The first folder that holds ComfyUI's main.py, in the order of the module docstring."""
    named = os.environ.get("COMFYUI_PATH")
    places = [Path(named)] if named else [REPOSITORY.parents[1], Path.home() / "ComfyUI"]
    for place in places:
        if (place / "main.py").is_file() and (place / "comfy_api").is_dir():
            return place.resolve()
    return None


def find_or_build(*, build: bool = True) -> Host:
    """The host for the tests; builds `.venv-comfy` when it is missing or out of date."""
    comfyui = find_comfyui()
    if comfyui is None:
        where = os.environ.get("COMFYUI_PATH") or f"{REPOSITORY.parents[1]} and ~/ComfyUI"
        return Host(None, None, f"no ComfyUI at {where}; set COMFYUI_PATH to a checkout")
    named = os.environ.get("COMFYUI_PYTHON")
    if named:
        return Host(comfyui, Path(named), "")
    python = _interpreter(ENVIRONMENT)
    stamp = ENVIRONMENT / "built-for.txt"
    wanted = _fingerprint(comfyui)
    if stamp.is_file() and stamp.read_text() == wanted and _starts(python):
        return Host(comfyui, python, "")
    if not build:
        return Host(comfyui, None, "run `python tests/nodes/comfy_env.py` to build .venv-comfy")
    failure = _build(comfyui)
    if failure:
        return Host(comfyui, None, failure)
    stamp.write_text(wanted)
    return Host(comfyui, python, "")


def _starts(python: Path) -> bool:
    """False when the environment is gone, or the one it borrows torch from."""
    find = "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"
    return python.is_file() and subprocess.run([python, "-c", find]).returncode == 0


def _interpreter(environment: Path) -> Path:
    windows = os.name == "nt"
    return environment / ("Scripts" if windows else "bin") / ("python.exe" if windows else "python")


def _fingerprint(comfyui: Path) -> str:
    """Changes with everything that decides what is installed."""
    constraints = REPOSITORY / "constraints.txt"
    pins = constraints.read_text(encoding="utf-8") if constraints.is_file() else ""
    recipe = [*_requirements(comfyui), *TORCH_SIBLINGS, pins, str(ENVIRONMENT)]
    return hashlib.sha256("\n".join(recipe).encode()).hexdigest()


def _build(comfyui: Path) -> str:
    """Make `.venv-comfy`; returns why that failed, or ""."""
    sys.stderr.write(f"building {ENVIRONMENT} for {comfyui} (a few minutes, once)\n")
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    ENVIRONMENT.mkdir(parents=True)
    (ENVIRONMENT / ".gitignore").write_text("*\n")
    log = ENVIRONMENT / "install.log"
    python = _interpreter(ENVIRONMENT)
    steps = [[sys.executable, "-m", "venv", str(ENVIRONMENT)]]
    wanted = ENVIRONMENT / "requirements.txt"
    wanted.write_text("\n".join(_requirements(comfyui)) + "\n")
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    constraints = REPOSITORY / "constraints.txt"
    pinned = ["-c", str(constraints)] if constraints.is_file() else []
    steps.append([*pip, *pinned, "-r", str(wanted)])
    steps.append([*pip, "--no-deps", *TORCH_SIBLINGS])
    with log.open("w", encoding="utf-8") as sink:
        for number, step in enumerate(steps):
            try:
                done = subprocess.run(
                    step, stdout=sink, stderr=subprocess.STDOUT, timeout=INSTALL_TIMEOUT_S
                )
            except subprocess.TimeoutExpired:
                return f"`{' '.join(step)}` took over {INSTALL_TIMEOUT_S} s, see {log}"
            if done.returncode:
                return f"`{' '.join(step)}` failed: {_last_error(log)} (all of it in {log})"
            if number == 0:
                _borrow_packages(python)
    return _mend_torchaudio(python)


def _requirements(comfyui: Path) -> list[str]:
    """ComfyUI's own list without torch's siblings and served data, then ours and pytest."""
    dropped = (*NOT_NEEDED, *(sibling.split("==")[0] for sibling in TORCH_SIBLINGS))
    kept = []
    for path in (comfyui / "requirements.txt", REPOSITORY / "requirements.txt"):
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        kept += [line for line in lines if not line.strip().startswith(dropped)]
    return [*kept, "trimesh", "scikit-image", "pytest"]


def _borrow_packages(python: Path) -> None:
    """Let the new environment see the packages of the running one, torch above all.

    Its own site-packages come first, so what ComfyUI needs newer is installed over them.
    """
    if sys.prefix == sys.base_prefix:
        return
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout
    lender = Path(own.strip()) / "_borrowed.pth"
    lender.write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")


def _mend_torchaudio(python: Path) -> str:
    """Drop torchaudio's compiled part when it was built for another torch (CUDA against CPU).

    ComfyUI imports torchaudio for audio nodes; without the libraries the import works.
    """
    probe = [str(python), "-c", "import torchaudio"]
    if subprocess.run(probe, capture_output=True).returncode == 0:
        return ""
    find = (
        "import importlib.util as u; print(u.find_spec('torchaudio').submodule_search_locations[0])"
    )
    found = subprocess.run([python, "-c", find], capture_output=True, text=True)
    if found.returncode:
        return "torchaudio was not installed"
    for library in (Path(found.stdout.strip()) / "lib").glob("*.so"):
        library.unlink()
    done = subprocess.run(probe, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"torchaudio does not import: {done.stderr[-300:]}"


def _last_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no output"])[-1]


def host_environment(host: Host) -> dict[str, str]:
    """Environment variables for a Python that runs the host or the tests inside it."""
    return {
        **os.environ,
        "COMFYUI_PATH": str(host.comfyui),
        "COMFYUI_PYTHON": str(host.python),
        INSIDE: "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def host_test_command(host: Host, *options: str) -> list[str]:
    """The command that runs the host tests with the host's interpreter, from ComfyUI's folder.

    This repository must not be on the import path there: its package `nodes` would hide
    ComfyUI's module of that name.
    """
    settings = ["-c", str(REPOSITORY / "pyproject.toml"), "--rootdir", str(REPOSITORY)]
    settings += ["-o", "pythonpath=", "-p", "no:cacheprovider"]
    return [str(host.python), "-m", "pytest", *settings, str(HOST_TESTS), *options]


def main() -> int:
    """Build or find the environment; with --test run the node tests in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test", action="store_true", help="run the node tests in it")
    arguments, options = parser.parse_known_args()
    host = find_or_build()
    if host.reason:
        sys.stderr.write(f"no environment for the node tests: {host.reason}\n")
        return 3
    sys.stdout.write(f"{host.python}\n")
    sys.stdout.flush()
    if not arguments.test:
        return 0
    command = host_test_command(host, *options)
    return subprocess.run(command, cwd=host.comfyui, env=host_environment(host)).returncode


if __name__ == "__main__":
    sys.exit(main())
