"""The public protocol on a folder of objects: every method fitted, scored and reported; resumable.

Each pair of object and method is a unit of its own: `OUT/OBJECT/METHOD/` with `result.json`, the
rendered held-out views in `test/`, the splat or mesh, and `comparison.png`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import __version__
from .evaluation_methods import EvaluationConfig, Pipeline, warm_up
from .evaluation_report import html_page, markdown_page
from .evaluation_units import (
    COMPARISON_NAME,
    RESULT_NAME,
    ObjectData,
    earlier_result,
    folder_of_run,
    input_hash,
    load_object,
    mean_figures,
    measure_run,
    nothing_to_score,
    plain,
)
from .formats.atomic import atomic_folder
from .formats.views import has_split
from .progress import Preview, Progress
from .reconstruct import StageProgress, no_bar, prepare_output
from .report import checkout_commit, machine, write_report

logger = logging.getLogger(__name__)

REPORT_NAMES = ("evaluation.json", "evaluation.md", "evaluation.html")


@dataclass(frozen=True)
class Unit:
    """What became of one method on one object.

    Attributes:
        object_name, method: Which.
        kind: "made", "kept" (the folder had it already), "skipped" (nothing to compare with), or
            "failed".
        reason: Why it was skipped or failed.
        result: What stands in result.json; empty unless made or kept.
    """

    object_name: str
    method: str
    kind: str
    reason: str = ""
    result: dict[str, Any] = dataclasses.field(default_factory=dict)


class _StoppedError(BaseException):
    """The caller's progress raised: not a failure of the object in work, so it passes by."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def find_objects(data: Path, only: Sequence[str] | None = None) -> list[Path]:
    """The folder itself where it has training views, else the folders in it that have.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: No object is in it, or not all that were asked for.
    """
    if not data.is_dir():
        raise FileNotFoundError(f"{data}: no such folder")
    found = [data] if has_split(data, "train") else []
    if not found:
        inside = sorted(path for path in data.iterdir() if path.is_dir())
        found = [p for p in inside if not p.name.startswith(".") and has_split(p, "train")]
    names = {path.resolve().name: path for path in found}
    if not names:
        raise ValueError(
            f"{data}: no transforms_train.json or transforms.json in it or in a folder in it"
        )
    if missing := [name for name in only or () if name not in names]:
        raise ValueError(f"{data}: no object {', '.join(missing)}; there are {', '.join(names)}")
    return [path for name, path in names.items() if not only or name in only]


def evaluate(
    data: str | Path,
    out: str | Path,
    config: EvaluationConfig,
    device: torch.device,
    *,
    only: Sequence[str] | None = None,
    overwrite: bool = False,
    preset: str = "",
    command: str = "",
    commit: str = "",
    stage_progress: StageProgress = no_bar,
    tell: Callable[[Unit], None] = lambda unit: None,
) -> dict[str, Any]:
    """Run methods on every object of a folder, score them, and write the three reports.

    A unit that `out` holds already, made by this version with equal settings, from equal input and
    on the same kind of device, is kept. One that fails is named in the reports and does not stop
    the rest. The reports are written at the end, also when the work is cancelled.

    Args:
        data: An object's folder, or a folder of them: nerf-synthetic data sets, folders of
            `v3d sample`; see `docs/conventions.md`. Pictures are scored where there are test
            views, surfaces where there is `gt_mesh.ply`, consistency everywhere.
        out: Folder for `REPORT_NAMES` and one folder per object.
        config: Methods and their settings.
        device: What does the work.
        only: Names of objects; None takes all.
        overwrite: Do again what is there already.
        preset: Name of the settings, for the tables.
        command: The command that was typed, for the reports.
        commit: Of the code; found out by `checkout_commit` if empty.
        stage_progress: Opens a progress bar for each unit; raising in it ends the whole run.
        tell: Told of every unit as it ends.

    Returns:
        What stands in evaluation.json.

    Raises:
        ValueError: There is no object, or the output cannot be written.
        FileNotFoundError: There is no such data folder.
    """
    out = Path(out)
    folders = find_objects(Path(data), only)
    prepare_output(out)
    record: dict[str, Any] = {
        "benchmark": "evaluate",
        "v3d": __version__,
        "command": command,
        "commit": commit or checkout_commit(),
        **machine(device),
        "results": {
            "preset": preset,
            "methods": [*config.methods],
            "runs": config.runs,
            "seed": config.splat.seed,
            "samples": config.samples,
            "on_cuda": device.type == "cuda",
            "settings": {method: plain(config.settings(method)) for method in config.methods},
            "objects": {},
        },
    }
    work = _Work(out, config, device, overwrite, stage_progress)
    try:
        for folder in folders:
            name = folder.resolve().name
            entry = record["results"]["objects"].setdefault(name, {"methods": {}})
            for unit in work.units_of(folder, name, entry):
                entry["methods"][unit.method] = {"kind": unit.kind, "reason": unit.reason}
                entry["methods"][unit.method] |= {
                    key: unit.result[key] for key in ("means", "runs", "lpips") if unit.result
                }
                tell(unit)
    except _StoppedError as stopped:
        raise stopped.error from None
    finally:
        write_reports(out, record)
    return record


def failures(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Object, method and reason of every unit that failed."""
    return [
        (name, method, unit["reason"])
        for name, entry in record["results"]["objects"].items()
        for method, unit in entry["methods"].items()
        if unit["kind"] == "failed"
    ]


def write_reports(out: Path, record: dict[str, Any]) -> None:
    """evaluation.json, .md and .html of a record, all or none; pictures are those in `out`."""
    pictures = {}
    for name, entry in record["results"]["objects"].items():
        for method, unit in entry["methods"].items():
            path = out / name / method / COMPARISON_NAME
            if unit["kind"] in ("made", "kept") and path.is_file():
                pictures[name, method] = path.read_bytes()
    with atomic_folder(out) as staging:
        write_report(staging / REPORT_NAMES[0], record)
        (staging / REPORT_NAMES[1]).write_text(markdown_page(record), encoding="utf-8")
        (staging / REPORT_NAMES[2]).write_text(html_page(record, pictures), encoding="utf-8")


@dataclass
class _Work:
    """One evaluation in progress."""

    out: Path
    config: EvaluationConfig
    device: torch.device
    overwrite: bool
    stage_progress: StageProgress
    warm: bool = False

    def units_of(self, folder: Path, name: str, entry: dict[str, Any]) -> Iterator[Unit]:
        """Every method on one object; `entry` gets what the data are."""
        try:
            fingerprint = input_hash(folder)
            data = load_object(folder, self.device)
        except Exception as error:
            yield from (_failed(name, method, error) for method in self.config.methods)
            return
        entry |= {"input_sha256": fingerprint, "views": len(data.views), "truth": bool(data.truth)}
        entry["size"] = [data.views.cameras.width, data.views.cameras.height]
        entry["test_views"] = 0 if data.test_views is None else len(data.test_views)
        runs = [Pipeline(data.views, self.config, run) for run in range(self.config.runs)]
        for method in self.config.methods:
            place = self.out / name / method
            identity = {
                "v3d": __version__,
                "device": self.device.type,
                "input_sha256": fingerprint,
                "settings": plain(self.config.settings(method)),
            }
            earlier = {} if self.overwrite else earlier_result(place, identity)
            if earlier:
                yield Unit(name, method, "kept", result=earlier)
            elif reason := nothing_to_score(method, data):
                yield Unit(name, method, "skipped", reason)
            else:
                yield self._unit(name, method, place, identity, data, runs)

    def _unit(
        self,
        name: str,
        method: str,
        place: Path,
        identity: dict[str, Any],
        data: ObjectData,
        runs: list[Pipeline],
    ) -> Unit:
        try:
            with self._progress(f"{name} {method}") as progress:
                if not self.warm:
                    warm_up(data.views, self.config, progress)
                    self.warm = True
                with atomic_folder(place) as staging:
                    rows, lpips = [], None
                    for pipeline in runs:
                        with folder_of_run(staging, first=not rows) as target:
                            row = measure_run(method, pipeline, data, target, progress)
                        lpips = row.pop("lpips_backend", None)
                        rows.append({"seed": pipeline.seed, **row})
                    means = mean_figures(rows)
                    result = {**identity, "means": means, "runs": rows, "lpips": lpips}
                    files = [p for p in staging.rglob("*") if p.is_file()]
                    result["files"] = sorted(p.relative_to(staging).as_posix() for p in files)
                    write_report(staging / RESULT_NAME, result)
        except Exception as error:
            return _failed(name, method, error)
        return Unit(name, method, "made", result=result)

    @contextmanager
    def _progress(self, stage: str) -> Iterator[Progress]:
        with self.stage_progress(stage) as progress:

            def told(step: int, total: int, preview: Preview | None = None, text: str = "") -> None:
                try:
                    progress(step, total, preview, text)
                except Exception as error:
                    raise _StoppedError(error) from error

            yield told


def _failed(name: str, method: str, error: Exception) -> Unit:
    logger.info("%s %s failed", name, method, exc_info=error)
    text = str(error) or type(error).__name__
    kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
    return Unit(name, method, "failed", f"{kind}{text}")
