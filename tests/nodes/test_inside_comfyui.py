"""Runs every test of `tests/nodes/host` in a Python that has ComfyUI's requirements.

One test stands for all of them here; its failure names each one that failed. To run or select
them singly: `python tests/nodes/comfy_env.py --test -k NAME`.
"""

import importlib.util
import subprocess
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("comfy_env", Path(__file__).with_name("comfy_env.py"))
comfy_env = importlib.util.module_from_spec(spec)
spec.loader.exec_module(comfy_env)

TIMEOUT_S = 3600  # they take 4 minutes on 2 quiet cores; a slow machine took 8 for a third of them


@pytest.mark.comfy
@pytest.mark.slow
def test_every_host_test_passes_inside_comfyui(tmp_path, record_property):
    host = comfy_env.find_or_build()
    if host.reason:
        pytest.skip(f"nodes, workflows and chains with core nodes were not tested: {host.reason}")
    report = tmp_path / "host.xml"
    command = comfy_env.host_test_command(host, "-q", f"--junitxml={report}")
    environment = comfy_env.host_environment(host)
    done = subprocess.run(
        command,
        cwd=host.comfyui,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert report.is_file(), f"pytest did not start:\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    cases = list(ElementTree.parse(report).iter("testcase"))
    bad = [case.get("name") for case in cases if _child(case, "failure", "error")]
    skipped = [case.get("name") for case in cases if _child(case, "skipped")]
    assert not bad, f"{len(bad)} of {len(cases)} host tests failed: {bad}\n{done.stdout[-12000:]}"
    assert done.returncode == 0, done.stdout[-4000:]
    assert cases, f"no host test was collected:\n{done.stdout[-4000:]}"
    record_property("host_tests", len(cases) - len(skipped))
    record_property("comfyui", f"ComfyUI at {host.comfyui}")
    if skipped:
        warnings.warn(f"{len(skipped)} of {len(cases)} host tests skipped: {skipped}", stacklevel=1)


def _child(case: ElementTree.Element, *tags: str) -> bool:
    return any(case.find(tag) is not None for tag in tags)
