"""`v3d env`: which engines and packages were found, which are used and why, what would help."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .cli_shared import chosen_device, say
from .environment import environment_text, inspect_environment


def add_env_command(commands: Any) -> None:
    """Add `env`."""
    env = commands.add_parser(
        "env", help="engines and packages that were found, which are used, what would be faster"
    )
    env.add_argument("--json", action="store_true", help="for programs")
    env.add_argument(
        "--quick", action="store_true", help="list what is installed, import and try nothing"
    )
    env.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="%(default)s"
    )
    env.set_defaults(run=run_env)


def run_env(options: argparse.Namespace) -> None:
    """Print the report."""
    report = inspect_environment(chosen_device(options.device), try_out=not options.quick)
    say(json.dumps(report, indent=2) if options.json else environment_text(report))
