"""dev.py: installs once, again when the project's lists change, and passes the exit code on."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def dev(monkeypatch, tmp_path):
    """The module, pointed at an empty checkout, with its installer recorded instead of run."""
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "STAMP", tmp_path / ".venv" / "installed.txt")
    monkeypatch.setattr(module, "BIN", Path(sys.executable).parent)
    module.commands = []

    def record(command, check):
        assert check
        module.commands.append(command)
        (tmp_path / ".venv").mkdir(exist_ok=True)

    monkeypatch.setattr(module.subprocess, "run", record)
    return module


def test_first_call_makes_the_environment_and_later_calls_do_not(dev):
    dev.install()
    assert "venv" in dev.commands[0]
    last = dev.commands[-1]
    assert last[last.index("-c") + 1].endswith("constraints.txt")
    assert last[-1].endswith("[cli,dev]")
    dev.commands.clear()
    dev.install()
    assert dev.commands == []


def test_changed_requirements_install_again_into_the_same_environment(dev):
    dev.install()
    dev.commands.clear()
    (dev.ROOT / "pyproject.toml").write_text("changed")
    dev.install()
    assert dev.commands and not any("venv" in command for command in dev.commands)


def test_an_environment_somebody_else_made_is_never_emptied(dev):
    dev.VENV.mkdir()
    dev.install()
    assert not any("--clear" in command for command in dev.commands)


def test_environment_of_another_folder_is_made_anew(dev):
    dev.install()
    dev.STAMP.write_text("/elsewhere\nabc\n")
    dev.commands.clear()
    dev.install()
    assert "--clear" in dev.commands[0]


def test_failed_install_is_reported_and_repeated_next_time(dev, monkeypatch):
    def broken(command, check):
        raise subprocess.CalledProcessError(3, command)

    monkeypatch.setattr(dev.subprocess, "run", broken)
    assert "exit code 3" in dev.main(["python"])
    assert not dev.STAMP.exists()


def test_unwritable_folder_is_reported_with_its_name_before_anything_runs(dev):
    dev.VENV.write_text("a file where the folder should be")
    assert str(dev.VENV) in dev.main(["python"])
    assert dev.commands == []


def test_old_python_and_python_without_venv_are_told_apart(dev, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(dev.importlib.util, "find_spec", lambda name: None)
        assert "python3-venv" in dev.main(["python"])
    monkeypatch.setattr(dev.sys, "version_info", (3, 9, 1))
    assert "3.10 or newer" in dev.main(["python"]) and "3.9" in dev.main(["python"])
    assert dev.commands == []


def test_exit_code_of_the_tool_is_passed_on(dev):
    python = os.path.basename(sys.executable).removesuffix(".exe")
    assert dev.main([python, "-c", "import sys; sys.exit(7)"]) == 7
    assert "no-such-tool" in dev.main(["no-such-tool"])
