"""The tests in `host/` need ComfyUI's packages; `test_inside_comfyui.py` runs them in such a Python."""

import os

collect_ignore = [] if os.environ.get("V3D_TESTS_INSIDE_COMFYUI") else ["host"]
