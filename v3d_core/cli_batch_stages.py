"""What `v3d batch` does to one item: the steps of `v3d image-to-3d` and `v3d reconstruct`."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .batch_store import PICTURE, SCORES, Item, ItemLog
from .cli_generate import (
    DTYPES,
    OFFLOAD,
    chosen_parts,
    chosen_settings,
)
from .cli_input import chosen_orbit
from .cli_neus import chosen_neus
from .cli_shared import chosen_device, shown_options
from .diffusion.orbit import OrbitModel
from .formats.views import has_split, load_views
from .generate import ModelSource, PictureJob, read_and_prepare, sample_pictures
from .holdout import hold_out_every
from .mesh.config import SplatMeshConfig
from .pose_views import LoadedViews
from .prepare import PreparedPicture
from .reconstruct import reconstruct
from .report import Stopwatch, write_report
from .structures import Views

ORBIT_FOLDER = "orbit"  # in a picture's result, as `v3d image-to-3d` makes it


@dataclasses.dataclass(frozen=True)
class KeptModel(ModelSource):
    """A model that is loaded once, by whichever picture comes first."""

    loaded: list[OrbitModel] = dataclasses.field(default_factory=list)

    def load(self) -> OrbitModel:
        """The model, ready to sample."""
        if not self.loaded:
            self.loaded.append(super().load())
        return self.loaded[0]


@dataclasses.dataclass
class _Prepared:
    """An item's input in memory: a picture, or views to fit and to score."""

    picture: PreparedPicture | None = None
    views: Views | None = None
    test_views: Views | None = None
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclasses.dataclass
class _Computed:
    """What is left to write, and the report that is complete when it is written."""

    report: dict[str, Any]
    writes: list[Callable[[], object]]


class FromOptions:
    """`batch.Stages` from the options of the command line.

    Raises:
        ValueError: An option is wrong, or there is no model where there are pictures.
    """

    def __init__(self, options: argparse.Namespace, pictures: bool) -> None:
        from .cli import chosen_asset, chosen_fit  # which offers this command itself

        self.options = options
        self.device = chosen_device(options.device)
        self.fit, self.asset = chosen_fit(options), chosen_asset(options)
        self.neus = chosen_neus(options) if options.mesh == "neus" else None
        self.mesh = SplatMeshConfig() if options.mesh == "splat" else None
        self.orbit = chosen_orbit(options)
        if pictures:
            self.sampling, self.preparing = chosen_settings(options, self.model.parts)

    @cached_property
    def model(self) -> KeptModel:
        """The model of pictures; its files are looked for, not loaded."""
        options = self.options
        return KeptModel(
            chosen_parts(options),
            self.device,
            DTYPES.get(options.dtype),
            OFFLOAD[options.offload],
            options.compile,
        )

    def settings(self, item: Item) -> dict[str, Any]:
        """All that decides about the result besides the input."""
        configs = {"fit": self.fit, "asset": self.asset, "neus": self.neus, "mesh": self.mesh}
        found: dict[str, Any] = {
            name: None if config is None else dataclasses.asdict(config)
            for name, config in configs.items()
        }
        found["hold_out"] = self.options.hold_out
        if item.kind == PICTURE:
            return {
                **found,
                "seed": self.options.seed,
                "sampling": dataclasses.asdict(self.sampling),
                "prepare": dataclasses.asdict(self.preparing),
                "model": self.model.description(),
            }
        return {**found, "orbit": dataclasses.asdict(self.orbit), "frames": self.options.frames}

    def prepare(self, item: Item, log: ItemLog) -> _Prepared:
        """Read and cut out, on the CPU."""
        start = time.perf_counter()
        if item.kind == PICTURE:
            job = PictureJob(item.source, item.source.parent, item.masks)
            prepared = _Prepared(picture=read_and_prepare(job, self.preparing))
        else:
            prepared = self._load(item.source, item.masks, self.options.frames, log)
        prepared.seconds = time.perf_counter() - start
        log.line(f"read: {prepared.seconds:.2f} s")
        return prepared

    def compute(self, item: Item, prepared: _Prepared, folder: Path, log: ItemLog) -> _Computed:
        """Sample where it is a picture, then fit, mesh and texture."""
        stopwatch = Stopwatch()
        stopwatch.seconds["load"] = prepared.seconds
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        if prepared.picture is not None:
            with stopwatch.stage("sample"):
                self._sample(item, prepared.picture, folder / ORBIT_FOLDER, log)
            with stopwatch.stage("load"):
                prepared = self._load(folder / ORBIT_FOLDER, None, None, log)
        assert prepared.views is not None
        writes: list[Callable[[], object]] = []
        report = reconstruct(
            prepared.views.to(self.device),
            folder,
            self.fit,
            self.mesh,
            neus_config=self.neus,
            asset_config=self.asset,
            test_views=prepared.test_views,
            warnings=prepared.warnings,
            stage_progress=log.stage,
            stopwatch=stopwatch,
            write=writes.append,
        )
        return _Computed(report, writes)

    def finish(self, item: Item, computed: _Computed, folder: Path, log: ItemLog) -> dict[str, Any]:
        """Encode and write the files, score the held-out ones, report."""
        start = time.perf_counter()
        for write in computed.writes:
            write()
        options = {**shown_options(self.options), "input": str(item.source)}
        write_report(folder / "report.json", {"options": options, **computed.report})
        log.line(f"write: {time.perf_counter() - start:.2f} s")
        scores = computed.report["scores"]
        return {"scores": scores and {name: scores.get(name) for name in SCORES}}

    def _load(
        self, source: Path, masks: Path | None, frames: int | None, log: ItemLog
    ) -> _Prepared:
        loaded: LoadedViews = load_views(
            source, orbit=self.orbit, masks=masks, split="train", frames=frames
        )
        for warning in loaded.warnings:
            log.line(f"note: {warning}")
        if has_split(source, "test"):
            if self.options.hold_out:
                raise ValueError(f"{source} has test views of its own; leave out --hold-out")
            test = load_views(source, orbit=self.orbit, split="test")
            return _Prepared(None, loaded.views, test.views, tuple(loaded.warnings))
        views, test_views = hold_out_every(loaded.views, self.options.hold_out)
        return _Prepared(None, views, test_views, tuple(loaded.warnings))

    def _sample(self, item: Item, picture: PreparedPicture, folder: Path, log: ItemLog) -> None:
        earlier = self.options.out / item.name / ORBIT_FOLDER
        if earlier.is_dir() and not self.options.overwrite:  # it may be this very orbit
            shutil.copytree(earlier, folder)
        (outcome,) = sample_pictures(
            [PictureJob(item.source, folder, item.masks)],
            self.model,
            self.sampling,
            self.preparing,
            self.options.seed,
            stage_progress=log.stage,
            read=lambda job, config: picture,
        )
        if outcome.kind == "failed":
            log.check()
            raise (ValueError if outcome.bad_input else RuntimeError)(outcome.text)
        for note in [*outcome.report["notes"], *outcome.report["warnings"]]:
            log.line(f"note: {note}")
