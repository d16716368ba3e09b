"""Random coloured objects for training orbit models: compositions of primitives, by seed.

`python -m v3d_core.training.objects --sheet FILE.png --seeds 0 64` draws a contact sheet.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..cameras import V3D_ORBIT, orbit_cameras
from ..formats.atomic import atomic_path
from ..images import composite, contact_sheet, from_uint8, to_uint8
from . import objects_beings as beings
from . import objects_shapes as shapes
from . import objects_things as things
from . import objects_vehicles as vehicles
from .objects_build import Build, Draw, Part, draw_palette, turn
from .objects_framing import framed
from .objects_table import ObjectTable, joined

FAMILIES = (
    beings.quadruped,
    beings.doll,
    beings.bird,
    beings.fish,
    beings.mushroom,
    beings.tree,
    beings.sweets,
    vehicles.car,
    vehicles.plane,
    vehicles.boat,
    things.vessel,
    things.vessel,
    things.chair,
    things.table_lamp,
    things.house,
    things.totem,
    shapes.machine,
    shapes.free,
    shapes.free,
    shapes.blocks,
)
FRAME_SHARE = (0.62, 0.73)  # of the frame, the longest side of any view's outline; V3D: 0.70
FACING_SHARE = 0.75  # of the objects turn their front to view 0, within FACING_DEG
FACING_DEG = 50.0
FRAMED_AT_ONCE = 256  # objects; 40 MB of points


def random_objects(seeds: Sequence[int]) -> ObjectTable:
    """The objects of some seeds, framed for V3D's orbit; a seed's object is always the same.

    Args:
        seeds: Whole numbers, not negative.
    """
    tables = [framed([], [])]
    for begin in range(0, len(seeds), FRAMED_AT_ONCE):
        built = [_build(int(seed)) for seed in seeds[begin : begin + FRAMED_AT_ONCE]]
        tables.append(framed([parts for parts, _ in built], [share for _, share in built]))
    return joined(tables)


def _build(seed: int) -> tuple[list[Part], float]:
    # parts of an object in free units, turned; and the share of the frame it shall fill
    if seed < 0:
        raise ValueError(f"random_objects: seeds must not be negative, got {seed}")
    draw = Draw(seed)
    family = draw.choice(FAMILIES)
    build = Build(draw, draw_palette(draw))
    share = draw(*FRAME_SHARE)
    yaw = draw(-FACING_DEG, FACING_DEG) if draw.chance(FACING_SHARE) else draw(-180, 180)
    family(build)
    rows = turn(yaw)
    return [part.turned(rows) for part in build.parts], share


def draw_sheet(path: Path, first: int, count: int, size: int = 128, view: int = 0) -> None:
    """Write one picture of many objects on white.

    Args:
        path: The PNG file.
        first: First seed.
        count: Number of objects.
        size: Pixels of each picture's side.
        view: Which view of V3D's orbit.
    """
    from .tracing import render_orbits

    camera = orbit_cameras(V3D_ORBIT, size, size)[view : view + 1]
    table = random_objects(range(first, first + count))
    pictures = from_uint8(render_orbits(table, camera, size, supersample=3)[:, 0])
    colours = composite(pictures[..., :3], pictures[..., 3])
    with atomic_path(path) as temporary:
        Image.fromarray(to_uint8(contact_sheet(colours)).numpy()).save(temporary)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw a contact sheet of training objects.")
    parser.add_argument("--sheet", type=Path, required=True, help="the PNG file to write")
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 64), metavar=("FIRST", "END"))
    parser.add_argument("--size", type=int, default=128, help="pixels of each picture's side")
    parser.add_argument("--view", type=int, default=0, help="view of the orbit, 0 to 17")
    chosen = parser.parse_args()
    begin, end = chosen.seeds
    draw_sheet(chosen.sheet, begin, end - begin, chosen.size, chosen.view)
