"""Starts ComfyUI's main.py, or makes its modules importable, in an environment of `comfy_env.py`.

python tests/nodes/host/bootstrap.py --cpu --port 8200 --base-directory DIR
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

COMFYUI = Path(os.environ["COMFYUI_PATH"])
_OPERATORS = []  # torch forgets a library's operators when its object dies


def declare_torchvision_operators() -> None:
    """Declare two operators that torchvision registers shapes for when it is imported.

    A torchvision built for CUDA cannot load its compiled part beside a CPU torch; ComfyUI needs
    only the Python part here.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        import torch

        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _OPERATORS.append(library)


def make_importable(*options: str) -> None:
    """Put ComfyUI on the import path, with its command line set to `options`."""
    declare_torchvision_operators()
    if str(COMFYUI) not in sys.path:
        sys.path.insert(0, str(COMFYUI))
    kept, sys.argv = sys.argv, [str(COMFYUI / "main.py"), *options]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = kept


if __name__ == "__main__":
    declare_torchvision_operators()
    sys.path[0] = str(COMFYUI)
    sys.argv[0] = str(COMFYUI / "main.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
