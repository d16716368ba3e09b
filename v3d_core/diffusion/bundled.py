"""V3D-nano, the small orbit model that comes with the pack, and what its files say about it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..formats.weights import open_weights
from .checkpoint import CheckpointError
from .families import V3D, OrbitFamily
from .guidance import Guidance

NANO = "nano"  # its name on the command line
NANO_FILE = Path(__file__).resolve().parents[1] / "data" / "v3d_nano.safetensors"
NANO_SHA256 = "36fae056a1ffbf7a83d2f024fa082ab3875777f6d210ea8499ebcd89ef061d60"
NANO_SCALE = 1.0  # guidance: none; see docs/nano.md
NANO_STEPS = 6  # of the sampler; see docs/nano.md
CARD = "v3d_nano"  # entry of the metadata, JSON; `v3d convert` keeps it
TRAINING_CARD = "v3d_training"  # the same of models that `v3d train` made


@dataclass(frozen=True)
class TrainedFor:
    """What a model makes its orbits with, where its file says so; else V3D's numbers hold.

    Attributes:
        name: What the model is called in messages.
        size: Side of its frames, px.
        scale: Guidance that suits it; None where nobody tried.
        steps: Of the sampler that suit it; None where nobody tried.
    """

    name: str
    size: int
    scale: float | None
    steps: int | None = None

    def advice(self, size: int, guidance: Guidance) -> list[str]:
        """A sentence for each setting that the model was not made for."""
        said = []
        if size != self.size:
            said.append(f"{self.name} makes frames of {self.size} px, not of {size} px.")
        if self.scale is not None and guidance.scale != self.scale:
            said.append(
                f"{self.name} is made for a guidance scale of {self.scale:g}; {guidance.scale:g} "
                "gives worse colours and shapes."
            )
        return said


def chosen_numbers(
    trained: TrainedFor | None,
    steps: int | None,
    scale: float | None,
    family: OrbitFamily = V3D,
) -> tuple[int, float, list[str]]:
    """Steps and guidance scale of an orbit: those given, else the model's own, else its kind's.

    Returns:
        Steps, scale, and sentences that say which of them were not given and whose they are.
    """
    said: dict[str, list[str]] = {}

    def own(name: str, of_its_kind: float) -> float:
        value, owner = getattr(trained, name, None), getattr(trained, "name", "")
        if value is None:
            value, owner = of_its_kind, family.name
        said.setdefault(owner, []).append(f"{name} {value:g}")
        return value

    steps = int(own("steps", family.steps)) if steps is None else steps
    scale = own("scale", family.guidance.scale) if scale is None else scale
    return steps, scale, [f"{owner}'s own: {', '.join(names)}." for owner, names in said.items()]


def nano_file() -> Path:
    """The weights of V3D-nano.

    Raises:
        CheckpointError: The file is missing from the installation.
    """
    if not NANO_FILE.is_file():
        raise CheckpointError(
            f"{NANO_FILE} is missing; it comes with every copy of this project: get it again, or "
            "give another model"
        )
    return NANO_FILE


def trained_for(path: Path) -> TrainedFor | None:
    """What the card in a model's file says, or None where it has none."""
    if path.suffix.lower() != ".safetensors":
        return None
    with open_weights(path) as file:
        cards = {
            name: file.metadata[name] for name in (CARD, TRAINING_CARD) if name in file.metadata
        }
    try:
        said = {name: json.loads(text) for name, text in cards.items()}
        if CARD in said:
            size = int(said[CARD]["recipe"]["size"])
            return TrainedFor("V3D-nano", size, NANO_SCALE, NANO_STEPS)
        size = said.get(TRAINING_CARD, {}).get("size")  # fine-tuned models have none: V3D's numbers
        return None if size is None else TrainedFor(path.name, int(size), None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: its entry {' or '.join(map(repr, cards))} is damaged ({error})"
        ) from error
