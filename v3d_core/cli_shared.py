"""What the commands share: options, the terminal, the device."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .progress import Preview, Progress
from .splats.config import SplatFitConfig

EXIT_FAILURE, EXIT_BAD_INPUT, EXIT_CANCELLED = 1, 2, 130


def say(text: str) -> None:
    """A line for the user."""
    print(text)  # noqa: T201


def complain(text: str) -> None:
    """A line for the user that is no result."""
    print(text, file=sys.stderr)  # noqa: T201


def add_seed_and_device(parser: argparse._ActionsContainer) -> None:
    """Options of everything that computes."""
    parser.add_argument("--seed", type=int, default=SplatFitConfig().seed, help="%(default)s")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="%(default)s"
    )


def chosen_device(name: str) -> torch.device:
    """`auto` takes CUDA where torch sees it."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"--device cuda: torch {torch.__version__} sees no CUDA device; use --device cpu"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@contextmanager
def progress_bar(stage: str) -> Iterator[Progress]:
    """A bar on stderr for one stage of the work."""
    from tqdm import tqdm

    pause = 0.1 if sys.stderr.isatty() else 10.0  # s between lines; a log wants few of them
    with tqdm(desc=f"{stage:>12}", unit="step", mininterval=pause, dynamic_ncols=True) as bar:

        def progress(step: int, total: int, preview: Preview | None = None, text: str = "") -> None:
            del preview  # a terminal shows no pictures
            bar.total = total
            bar.set_postfix_str(text, refresh=False)
            bar.update(step - bar.n)

        yield progress


def shown_options(options: argparse.Namespace) -> dict[str, object]:
    """The options as they stand in a report."""
    given = {name: value for name, value in vars(options).items() if name not in ("run", "debug")}
    return {name: _plain(value) for name, value in given.items()}


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
