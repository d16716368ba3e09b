"""Run a tool in this project's own environment: `python3 dev.py v3d demo`, `python3 dev.py pytest`.

The first call makes `.venv` beside this file and installs the project with its `cli` and `dev`
extras; later calls only do so again when pyproject.toml or constraints.txt has changed.
"""

import hashlib
import importlib.util
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
EXE = ".exe" if os.name == "nt" else ""
STAMP = VENV / "installed.txt"


def wanted_stamp():
    """What a complete environment of this checkout was made from."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return f"{ROOT}\n{digest.hexdigest()}\n"


def install():
    """Make the environment, or bring it up to date; raises CalledProcessError or OSError."""
    stamp = STAMP.read_text(encoding="utf-8") if STAMP.exists() else ""
    python = BIN / ("python" + EXE)
    if stamp == wanted_stamp() and python.exists():
        return
    print(f"Installing into {VENV}; the first time takes minutes (torch).", file=sys.stderr)
    VENV.mkdir(exist_ok=True)
    if not (stamp.startswith(f"{ROOT}\n") and python.exists()):
        # one that was made here for another folder is emptied, one without a stamp is not ours
        clear = ["--clear"] if stamp else []
        subprocess.run([sys.executable, "-m", "venv", *clear, str(VENV)], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "--upgrade", "pip"], check=True)
    subprocess.run(
        [*pip, "-c", str(ROOT / "constraints.txt"), "-e", str(ROOT) + "[cli,dev]"], check=True
    )
    STAMP.write_text(wanted_stamp(), encoding="utf-8")


def main(arguments):
    """Run `arguments` in the environment and return the exit code."""
    if sys.version_info < (3, 10):
        return "Python 3.10 or newer is needed, this is {}.{}".format(*sys.version_info[:2])
    if not arguments:
        return __doc__
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        return "This Python cannot make environments: on Debian or Ubuntu, apt install python3-venv"
    try:
        install()
    except subprocess.CalledProcessError as error:
        return f"Installing failed (exit code {error.returncode}); the lines above say why"
    except OSError as error:
        return f"Cannot write {VENV}: {error}; copy the project to a folder of your own"
    tool = BIN / (arguments[0] + EXE)
    if not tool.exists():
        return f"No tool {arguments[0]!r} in {BIN}"
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    environment = dict(os.environ, VIRTUAL_ENV=str(VENV), PATH=path)
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see v3d_core/__main__.py
    process = subprocess.Popen([str(tool), *arguments[1:]], env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the tool got it too and ends by itself
            continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
