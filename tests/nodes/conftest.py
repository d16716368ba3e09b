"""The tests in `host/` need ComfyUI's packages; `test_inside_comfyui.py` runs them in such a Python."""

import os

collect_ignore = [] if os.environ.get("V3D_TESTS_INSIDE_COMFYUI") else ["host"]


def pytest_terminal_summary(terminalreporter):
    """Say how many tests the one in `test_inside_comfyui.py` stands for."""
    for report in terminalreporter.stats.get("passed", []):
        told = dict(getattr(report, "user_properties", []))
        if "host_tests" in told:
            line = "tests/nodes/host: {host_tests} tests passed in {comfyui}".format(**told)
            terminalreporter.write_line(line)
