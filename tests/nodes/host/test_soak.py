"""The soak of `soak.py`, on request: V3D_TEST_SOAK=1."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TIMEOUT_S = 3600  # 200 prompts take 6 minutes on two idle cores


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("V3D_TEST_SOAK"), reason="minutes; set V3D_TEST_SOAK=1")
def test_hundreds_of_prompts_leak_nothing_and_get_the_right_answers(tmp_path):
    figures = tmp_path / "figures.json"
    program = Path(__file__).with_name("soak.py")
    done = subprocess.run(
        [sys.executable, str(program), "--out", str(figures)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert figures.is_file(), done.stderr[-4000:]
    assert json.loads(figures.read_text(encoding="utf-8"))["failures"] == []
    assert done.returncode == 0
