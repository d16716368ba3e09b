"""Pictures to orbits on disk: each cut out, prepared, sampled and written to a folder of its own."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .backends import MissingPackageError, remove_background
from .cameras import Orbit, orbit_cameras
from .diffusion.diffusers_backend import load_diffusers_model
from .diffusion.families import OrbitFamily, family_of
from .diffusion.layout import UNetShape
from .diffusion.model_files import ModelParts
from .diffusion.orbit import OrbitConfig, OrbitModel, sample_orbit
from .formats.atomic import atomic_folder
from .formats.pictures import list_pictures, read_masks, read_pictures
from .formats.transforms import transforms_document
from .formats.video import write_video
from .formats.views import save_views
from .images import from_uint8
from .orbit_folder import REPORT_NAME, differences, earlier_report, files_of, fingerprints
from .pose_views import pose_views
from .prepare import PrepareConfig, PreparedPicture, prepare_picture
from .reconstruct import StageProgress, no_bar, prepare_output, write_png
from .report import Stopwatch, environment, memory, write_report

logger = logging.getLogger(__name__)

ORBIT_VIDEO_FPS = 6  # pictures per second: V3D's 18 take 3 s, as long as the turntable
LARGEST_SEED = 2**64 - 1  # of torch's generators
BAD_INPUT = (ValueError, FileNotFoundError, NotADirectoryError)  # what the user can mend

_FRAME_FILE = re.compile(r"r_\d{3,}\.png")


@dataclass(frozen=True)
class PictureJob:
    """A picture, the folder its orbit goes to, and its mask (white = object) if there is one."""

    picture: Path
    folder: Path
    mask: Path | None = None


ReadPicture = Callable[[PictureJob, PrepareConfig], PreparedPicture]


@dataclass(frozen=True)
class ModelSource:
    """Which model samples, and how; it is loaded when the first picture needs it.

    Attributes:
        parts: Where its networks are.
        device: Where they work.
        dtype, offload, compile_unet: As in `load_diffusers_model`.
    """

    parts: ModelParts
    device: torch.device
    dtype: torch.dtype | None = None
    offload: bool | None = None
    compile_unet: bool = False

    @property
    def family(self) -> OrbitFamily:
        """The kind of model that it is."""
        assert isinstance(self.parts.unet.shape, UNetShape)
        return family_of(self.parts.unet.shape)

    def load(self) -> OrbitModel:
        """The model, ready to sample."""
        return load_diffusers_model(
            self.parts, self.device, self.dtype, self.offload, self.compile_unet
        )

    def description(self) -> dict[str, Any]:
        """What decides about the result: the files, by size and time, and the kind of numbers."""
        files = {}
        for kind in ("unet", "vae", "clip"):
            path: Path = getattr(self.parts, kind).path
            stat = path.stat()
            files[kind] = {
                "file": path.name,
                "bytes": stat.st_size,
                "modified_ns": stat.st_mtime_ns,
            }
        number = "automatic" if self.dtype is None else str(self.dtype).removeprefix("torch.")
        return {"files": files, "dtype": number, "device": self.device.type}


@dataclass(frozen=True)
class PictureOutcome:
    """What became of one picture.

    Attributes:
        job: The picture and its folder.
        kind: "made", "kept" (the folder had this very orbit already), or "failed".
        text: Why it failed, or what was replaced.
        bad_input: Whether a failure is the input's.
        report: What stands in orbit.json; empty when it failed.
    """

    job: PictureJob
    kind: str
    text: str = ""
    bad_input: bool = False
    report: dict[str, Any] = dataclasses.field(default_factory=dict)


def plan_jobs(
    inputs: Sequence[str | Path], out: str | Path, masks: str | Path | None = None
) -> list[PictureJob]:
    """A folder `out/<stem>` for every picture.

    Args:
        inputs: Picture files, and folders of them (sub-folders are left out).
        out: Where the folders shall be.
        masks: A mask file for the only picture, or a folder of masks named like the pictures.

    Raises:
        ValueError: A folder has no pictures, two pictures would share a folder, or one mask is
            given for several pictures.
        FileNotFoundError: The masks are not there.
    """
    found: dict[Path, Path] = {}
    for given in map(Path, inputs):
        for path in list_pictures(given) if given.is_dir() else [given]:
            found.setdefault(path.resolve(), path)
    by_name: dict[str, Path] = {}
    for path in found.values():
        other = by_name.setdefault(path.stem.lower(), path)
        if other is not path:
            raise ValueError(
                f"{other} and {path} would both go to {Path(out) / path.stem}; rename one, or "
                "sample them into different folders"
            )
    pictures = [*by_name.values()]
    of_picture: dict[str, Path] = {}
    if masks is not None:
        masks = Path(masks)
        if not masks.exists():
            raise FileNotFoundError(f"{masks}: no such file or folder of masks")
        if masks.is_dir():
            of_picture = {path.stem: path for path in list_pictures(masks)}
            # a mask that lacks is missed only where the picture has no alpha
            of_picture = {p.stem: of_picture.get(p.stem, masks / f"{p.stem}.png") for p in pictures}
        elif len(pictures) == 1:
            of_picture = {pictures[0].stem: masks}
        else:
            raise ValueError(
                f"{len(pictures)} pictures but one mask, {masks}; give a folder of masks that are "
                "named like the pictures"
            )
    return [PictureJob(p, Path(out) / p.stem, of_picture.get(p.stem)) for p in pictures]


def sample_pictures(
    jobs: Sequence[PictureJob],
    source: ModelSource,
    config: OrbitConfig,
    prepare: PrepareConfig,
    seed: int,
    *,
    overwrite: bool = False,
    stage_progress: StageProgress = no_bar,
    tell: Callable[[PictureOutcome], None] = lambda outcome: None,
    read: ReadPicture | None = None,
) -> list[PictureOutcome]:
    """Sample an orbit of every picture and write each to its folder.

    Each picture is sampled from the same seed on its own, so neither order nor company change an
    orbit. A folder appears complete or not at all, and one that holds this very orbit already is
    kept. A picture that fails does not stop the others.

    Args:
        jobs: From `plan_jobs`.
        source: The model.
        config: How to sample.
        prepare: How to place the object.
        seed: Start noise of every picture.
        overwrite: Sample again what is there already.
        stage_progress: Opens a progress bar for each picture; raising in it ends the whole run.
        tell: Told of every outcome as it comes.
        read: Instead of `read_and_prepare`, where that was done before.

    Returns:
        One outcome per job, in their order.

    Raises:
        ValueError: The seed is none, or the output cannot be written.
        MissingPackageError: diffusers or transformers is missing.
        CheckpointError: The model cannot be loaded.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed is {seed}; it must be a whole number from 0 to {LARGEST_SEED}")
    for parent in dict.fromkeys(job.folder.parent for job in jobs):
        prepare_output(parent)
    settings = {
        "sampler": dataclasses.asdict(config.sampler),
        "guidance": dataclasses.asdict(config.guidance),
        "conditioning": dataclasses.asdict(config.conditioning),
        "prepare": dataclasses.asdict(prepare),
    }
    common = {"seed": seed, "settings": settings, "model": source.description()}
    model: OrbitModel | None = None
    outcomes: list[PictureOutcome] = []

    def end(outcome: PictureOutcome) -> None:
        outcomes.append(outcome)
        tell(outcome)

    for job in jobs:
        stopwatch = Stopwatch()
        try:
            identity = {**fingerprints(job.picture, job.mask), **common}
            earlier = earlier_report(job.folder)
            changed = differences(earlier, identity, job.folder)
            if earlier and not changed and not overwrite:
                end(PictureOutcome(job, "kept", report=earlier))
                continue
            with stopwatch.stage("prepare"):
                prepared = (read or read_and_prepare)(job, prepare)
        except Exception as error:
            end(_failed(job, error))
            continue
        if model is None:  # outside of the `try`: a model that fails is no picture's fault
            with stopwatch.stage("load model"):
                model = source.load()
        try:
            if source.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(source.device)
            with stopwatch.stage("sample"), stage_progress(job.picture.stem) as progress:
                orbit = sample_orbit(model, prepared.image[None], config, seed, progress)
            report = {"picture": job.picture.name, **identity, "orbit": orbit.report}
            cameras = source.family.orbit(len(orbit.frames), config.conditioning.elevation_deg)
            report = _write_orbit(
                job.folder,
                orbit.frames,
                cameras,
                prepared,
                report,
                source.device,
                stopwatch,
                earlier,
            )
        except Exception as error:
            end(_failed(job, error))
            continue
        text = f"replaced an orbit of another {', '.join(changed)}" if earlier and changed else ""
        end(PictureOutcome(job, "made", text, report=report))
    return outcomes


def read_and_prepare(job: PictureJob, config: PrepareConfig) -> PreparedPicture:
    """Cut out by alpha, the mask, the flat background, or rembg, in this order.

    Raises:
        ValueError: The picture cannot be read, or nothing tells object from background.
    """
    rgba = read_pictures([job.picture])[0]
    opaque = bool((rgba[..., 3] == 255).all())
    image = from_uint8(rgba)
    if job.mask is not None and (opaque or job.mask.is_file()):
        return prepare_picture(image, read_masks([job.mask])[0], config)
    try:
        return prepare_picture(image, None, config)
    except ValueError as error:
        if not opaque:
            raise
        try:
            mask = remove_background(rgba[..., :3].contiguous())
        except MissingPackageError as missing:
            raise ValueError(f"{error}. {missing}") from error
    prepared = prepare_picture(image, mask, config)
    return dataclasses.replace(prepared, notes=("rembg made the mask.", *prepared.notes))


def _write_orbit(
    folder: Path,
    frames: Tensor,  # [T, S, S, 3]
    cameras: Orbit,
    prepared: PreparedPicture,
    report: dict[str, Any],
    device: torch.device,
    stopwatch: Stopwatch,
    earlier: dict[str, Any],
) -> dict[str, Any]:
    """All files of an orbit at once, and its report."""
    names = tuple(f"r_{index:03d}" for index in range(len(frames)))
    files = ["prepared.png", "orbit.mp4", "transforms.json", *(f"{name}.png" for name in names)]
    fresh = not folder.exists()
    try:
        with atomic_folder(folder) as staging:
            with stopwatch.stage("write"):
                warnings = _write_frames(staging, frames, cameras, names)
                write_video(staging / "orbit.mp4", frames, ORBIT_VIDEO_FPS)
                write_png(staging / "prepared.png", prepared.image)
            report = {
                **report,
                **_environment(device),
                "seconds": stopwatch.rounded(),
                "peak_memory": memory(device),
                "files": files,
                "notes": list(prepared.notes),
                "warnings": warnings,
            }
            write_report(staging / REPORT_NAME, report)
    except BaseException:
        if fresh:
            with suppress(OSError):
                folder.rmdir()
        raise
    for name in set(files_of(earlier)) - {*files}:  # of a longer orbit
        if _FRAME_FILE.fullmatch(name):
            (folder / name).unlink(missing_ok=True)
    return report


def _write_frames(folder: Path, frames: Tensor, orbit: Orbit, names: tuple[str, ...]) -> list[str]:
    """Frames with their cameras, cut out where that can be done; what was noticed."""
    cameras = orbit_cameras(orbit, frames.shape[2], frames.shape[1])
    try:
        posed = pose_views(frames, cameras, names=names, min_views=1)
    except ValueError as error:
        for name, frame in zip(names, frames, strict=True):
            write_png(folder / f"{name}.png", frame)
        write_report(
            folder / "transforms.json",
            transforms_document(cameras, [f"./{name}.png" for name in names]),
        )
        return [
            "The frames are kept with their background, because the object could not be cut out "
            f"of them: {error}"
        ]
    save_views(folder, posed.views)
    return list(posed.warnings)


def _failed(job: PictureJob, error: Exception) -> PictureOutcome:
    logger.info("%s failed", job.picture, exc_info=error)
    text = str(error) or type(error).__name__
    bad_input = isinstance(error, BAD_INPUT)
    kind = "" if bad_input or isinstance(error, OSError) else f"{type(error).__name__}: "
    return PictureOutcome(job, "failed", f"{kind}{text}", bad_input)


def _environment(device: torch.device) -> dict[str, Any]:
    found = environment(device)
    for name in ("diffusers", "transformers"):
        with suppress(PackageNotFoundError):
            found["packages"][name] = version(name)
    return found
