"""What an evaluation measures: the methods, their seconds and memory, and the consistency of an orbit."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .evaluation_surface import SAMPLES
from .images import composite
from .mesh.asset import AssetConfig, make_asset
from .mesh.config import SplatMeshConfig
from .mesh.from_splats import extract_surface, mesh_from_splats
from .mesh.fusion import DistanceVolume
from .mesh.visibility import render_texture, render_vertex_colours
from .metrics import psnr
from .neus.config import NeusFitConfig
from .neus.distance import field_distance
from .neus.extract import DEFAULT_RESOLUTION, extract_mesh
from .neus.field import SDFField
from .neus.fit import fit_neus
from .neus.start import distance_to_occupied
from .progress import Preview, Progress, silent
from .reconstruct import guide_of_splat, straight_renders
from .report import peak_memory_mib
from .splats.config import SplatFitConfig
from .splats.fit import SplatFit, fit_splats
from .splats.raster import render_splats
from .structures import Cameras, Mesh, Views
from .visual_hull import tight_visual_hull

METHODS = ("hull", "splat", "splat-mesh", "neus", "texture", "consistency")
DEFAULT_METHODS = ("splat", "splat-mesh", "neus", "texture", "consistency")
HULL_RESOLUTION = 224  # voxels along the longest side
HULL_MARGIN = 2  # empty voxels around it
RAYS = 3  # along each side of a pixel, where meshes are rendered
WARM_UP_STEPS = 30  # of fits that only load kernels
FEWEST_CONSISTENT = 4  # views: two for each half

Value = TypeVar("Value")


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated, and how; settings of the stages are those of `v3d reconstruct`."""

    methods: tuple[str, ...] = DEFAULT_METHODS
    splat: SplatFitConfig = field(default_factory=SplatFitConfig)  # run r takes its seed + r
    guide: SplatFitConfig | None = None  # of the splat that guides `neus`; None: that one
    mesh: SplatMeshConfig = field(default_factory=SplatMeshConfig)
    neus: NeusFitConfig = field(default_factory=NeusFitConfig)
    asset: AssetConfig = field(default_factory=AssetConfig)
    resolution: int = DEFAULT_RESOLUTION  # voxels of the NeuS mesh
    hull_resolution: int = HULL_RESOLUTION  # voxels of the visual hull
    runs: int = 1  # with seeds one after the other
    samples: int = SAMPLES  # points on each surface
    rays: int = RAYS  # along each side of a pixel, where meshes are rendered

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods:
            raise ValueError(f"methods {unknown}: there are {', '.join(METHODS)}; name one or more")
        for name in ("runs", "samples", "rays"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def surface(self) -> str:
        """The method whose mesh gets the texture: the NeuS mesh where one is asked for."""
        return "neus" if "neus" in self.methods else "splat-mesh"

    def settings(self, method: str) -> dict[str, Any]:
        """All settings that a method's figures depend on, plain."""
        if method == "texture":
            return {**self.settings(self.surface), "asset": dataclasses.asdict(self.asset)}
        settings: dict[str, Any] = {"runs": self.runs, "samples": self.samples, "rays": self.rays}
        if method == "hull":
            return {**settings, "resolution": self.hull_resolution}
        settings["splat"] = dataclasses.asdict(self.splat)
        if method == "splat-mesh":
            settings["mesh"] = dataclasses.asdict(self.mesh)
        if method == "neus":
            settings["splat"] = dataclasses.asdict(self.guide or self.splat)
            settings |= {"neus": dataclasses.asdict(self.neus), "resolution": self.resolution}
        return settings


class Cost(NamedTuple):
    """Wall-clock seconds, and the peak memory in MiB: torch's on CUDA, else the whole process'."""

    seconds: float
    peak_mib: float

    def then(self, other: Cost) -> Cost:
        """Of both, one after the other."""
        return Cost(self.seconds + other.seconds, max(self.peak_mib, other.peak_mib))


def measured(device: torch.device, work: Callable[[], Value]) -> tuple[Value, Cost]:
    """The result of some work and its cost; work queued on CUDA is waited for.

    Python's garbage is collected before. On a CPU the peak is the resident memory of the whole
    process since it began.
    """
    on_cuda = device.type == "cuda"
    gc.collect()
    if on_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    value = work()
    if on_cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if on_cuda else peak_memory_mib()
    return value, Cost(seconds, peak)


class Pipeline:
    """The stages of one run on one object, each done at its first use and measured.

    A method costs what its stages cost from views in memory on, whoever asked for them first.
    """

    def __init__(self, views: Views, config: EvaluationConfig, run: int) -> None:
        """`views` lie on the device that does the work; `run` is added to the seeds."""
        self.views, self.config = views, config
        self.seed = config.splat.seed + run
        self._done: dict[str, tuple[Any, Cost]] = {}

    def _stage(self, name: str, work: Callable[[], Value]) -> tuple[Value, Cost]:
        if name not in self._done:
            self._done[name] = measured(self.views.device, work)
        return self._done[name]

    def fit(self, progress: Progress = silent) -> tuple[SplatFit, Cost]:
        """The splat."""
        config = self.config.splat.with_changes(seed=self.seed)
        return self._stage("fit", lambda: fit_splats(self.views, config, progress=progress))

    def guide(self, progress: Progress = silent) -> tuple[SplatFit, Cost]:
        """The splat that guides the NeuS fit."""
        if self.config.guide is None:
            return self.fit(progress)
        config = self.config.guide.with_changes(seed=self.seed)
        return self._stage("guide", lambda: fit_splats(self.views, config, progress=progress))

    def mesh(self, method: str, progress: Progress = silent) -> tuple[Mesh, Cost]:
        """The mesh of a method other than `splat` and `consistency`."""
        if method == "hull":
            return self._stage("hull", lambda: hull_mesh(self.views, self.config.hull_resolution))
        if method == "texture":
            return self._texture(progress)
        if method == "splat-mesh":
            fit, cost = self.fit(progress)
            mesh, own = self._stage(method, lambda: self._splat_mesh(fit, progress))
            return mesh, cost.then(own)
        fit, cost = self.guide(progress)
        field_, own = self._stage("field", lambda: self._field(fit, progress))
        cost = cost.then(own)
        mesh, own = self._stage(
            method, lambda: extract_mesh(field_, self.config.resolution, progress=progress)
        )
        return mesh, cost.then(own)

    def _splat_mesh(self, fit: SplatFit, progress: Progress) -> Mesh:
        return mesh_from_splats(
            fit.splats,
            fit.views.cameras,
            self.config.mesh,
            render=render_splats,
            views=fit.views,  # aligned where they disagreed
            progress=progress,
        )

    def _field(self, fit: SplatFit, progress: Progress) -> SDFField:
        config = self.config.neus.with_changes(seed=self.seed)
        guide, depths, config = guide_of_splat(fit, config)
        return fit_neus(guide, config, depths=depths, progress=progress).field

    def _texture(self, progress: Progress) -> tuple[Mesh, Cost]:
        surface = self.config.surface
        mesh, cost = self.mesh(surface, progress)
        distance = field_distance(self._done["field"][0]) if surface == "neus" else None
        asset, own = self._stage(
            "texture",
            lambda: make_asset(
                mesh.to(self.views.device),
                self.views,
                self.config.asset,
                distance=distance,
                progress=progress,
            ),
        )
        return asset.mesh, cost.then(own)


def warm_up(views: Views, config: EvaluationConfig, progress: Progress = silent) -> None:
    """Work that nobody times, so that kernels are compiled and memory pools filled.

    On CUDA the whole splat fit, as its memory pool grows with it; on a CPU a few steps.
    """
    fits, neus = set(config.methods) - {"hull"}, "neus" in config.methods
    if not fits:
        return
    splat = config.splat
    if views.device.type == "cpu":
        splat = splat.with_changes(steps=min(splat.steps, WARM_UP_STEPS), seconds=0.0)
    surface = config.neus.with_changes(steps=min(config.neus.steps, WARM_UP_STEPS))
    trial = Pipeline(views, dataclasses.replace(config, splat=splat, neus=surface), 0)
    trial.fit(progress)
    if neus:
        trial._field(trial.fit()[0], progress)


def hull_mesh(views: Views, resolution: int = HULL_RESOLUTION) -> Mesh:
    """The visual hull of the masks: what a reconstruction should beat; without colours."""
    hull = tight_visual_hull(views, resolution)
    padded = torch.nn.functional.pad(hull.occupied, (HULL_MARGIN,) * 6)
    distance = distance_to_occupied(padded)
    origin = hull.centre - hull.half_size - (HULL_MARGIN - 0.5) * hull.voxel
    return extract_surface(DistanceVolume(distance, origin, hull.voxel))


def render_mesh(
    mesh: Mesh, cameras: Cameras, rays: int = RAYS, progress: Progress = silent
) -> tuple[Tensor, Tensor]:
    """A mesh, unlit, with its texture or else its vertex colours.

    Returns:
        Straight colours [V, H, W, 3] and coverage [V, H, W], on the CPU.

    Raises:
        ValueError: The mesh has neither.
    """
    render = render_vertex_colours if mesh.texture is None else render_texture
    images, masks = render(mesh, cameras.to(mesh.device), samples=rays, progress=progress)
    return images.cpu(), masks.cpu()


@dataclass(frozen=True)
class Consistency:
    """How far the views of an orbit show one object; see `consistency`.

    Attributes:
        scores: `consistency`, `consistency_object`, `agreement`, `agreement_object`, dB.
        unseen: For each view, the render of the half that was not fitted to it, on white, on the
            CPU. [V, H, W, 3]
    """

    scores: dict[str, float]
    unseen: Tensor  # [V, H, W, 3]


def consistency(views: Views, config: SplatFitConfig, progress: Progress = silent) -> Consistency:
    """How well two halves of an orbit agree about what they show; needs no truth.

    Views 0, 2, 4, ... are fitted alone, and views 1, 3, 5, ... alone, with the same settings and
    seed and without aligning frames, which would correct what shall be measured. Each of the two
    splats is rendered on white at the cameras of the half that it never saw. `consistency` is the
    PSNR between these renders and the pictures there, the mean over all views, dB: the held-out
    score of fits to half the views, for every view of the orbit. Frames of one object score about
    what a fit of them scores on held-out truth; frames that disagree score less, as each half
    predicts another object than the other shows. It does not see faults that all views share.

    `agreement` is the PSNR between the two splats' renders at those cameras, of the one that never
    saw the view and the one that was fitted to it: both average the noise of single frames and
    blur alike, so it is higher. With `_object` both are of the pixels that the view's mask covers.

    Args:
        views: In the order of the orbit, on the device that shall do the work.
        config: How to fit each half.
        progress: Told about both fits and the renders.

    Raises:
        ValueError: There are fewer than four views.
    """
    count = len(views)
    if count < FEWEST_CONSISTENT:
        raise ValueError(
            f"consistency: {count} views, but {FEWEST_CONSISTENT} are needed, two for each half"
        )
    config = config.with_changes(align="off")
    halves = [list(range(first, count, 2)) for first in (0, 1)]
    splats = [
        fit_splats(views[half], config, progress=_part(progress, number)).splats
        for number, half in enumerate(halves)
    ]
    white = []  # of all views: renders of the even half's splat, then of the odd half's
    for one in splats:
        colours, alphas = straight_renders(one, views.cameras, _part(progress, 2))
        white.append(composite(colours, alphas))
    even = torch.arange(count)[:, None, None, None] % 2 == 0
    fitted, unseen = torch.where(even, white[0], white[1]), torch.where(even, white[1], white[0])
    views = views.to("cpu")
    pictures, masks = composite(views.images, views.masks), views.masks > 0

    def mean(first: Tensor, second: Tensor, pixels: Tensor | None) -> float:
        chosen = [None if pixels is None else pixels[v] for v in range(count)]
        return sum(psnr(first[v], second[v], chosen[v]) for v in range(count)) / count

    scores = {
        "consistency": mean(unseen, pictures, None),
        "consistency_object": mean(unseen, pictures, masks),
        "agreement": mean(unseen, fitted, None),
        "agreement_object": mean(unseen, fitted, masks),
    }
    return Consistency(scores, unseen)


def _part(progress: Progress, number: int) -> Progress:
    """The progress of one of three parts of equal length."""

    def told(step: int, total: int, preview: Preview | None = None, text: str = "") -> None:
        progress(number * total + step, 3 * total, preview, text)

    return told
