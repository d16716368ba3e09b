"""The fitted field: signed distance, its gradient and a colour at every point of a cube.

Distance = that of a start shape, read from a grid, plus a residual of a small network over a hash
grid (Mueller et al. 2022). With one hidden layer the gradient is written out, so that losses on
normals need first-order gradients only (NeuS2, Wang et al. 2023, does so for ReLU).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoding import HashGrid, encode
from .networks import Layers, Places, colour_network, distance_network
from .trilinear import interleaved, trilinear

GEOMETRY_FEATURES = 15  # outputs of the distance network that only the colour reads
RESIDUAL_STD = 1e-3  # of the last layer at the start: the field starts as its start shape
TABLE_RANGE = 1e-4  # of the hash grid's entries at the start (Mueller et al. 2022)
INV_S_SCALE = 10.0  # inv_s = exp(scale * parameter), as NeuS
CHUNK = 1 << 18  # points evaluated at once without gradients


class Codes(NamedTuple):
    """What the colour network reads of points besides normal and direction.

    Attributes:
        outputs: Of the distance network. [N, O]
        places: Points as both networks know them.
    """

    outputs: Tensor
    places: Places


class Sampled(NamedTuple):
    """The field at points, differentiable in its parameters.

    Attributes:
        sdf: Signed distance, world units, negative inside. [N]
        gradients: d sdf / d point. [N, 3]
        codes: What the colour network reads besides normal and direction.
    """

    sdf: Tensor
    gradients: Tensor
    codes: Codes


class SDFField(nn.Module):
    """Signed distance and colour in a cube, world frame.

    Attributes:
        centre: Of the cube, world units. [3]
        half_size: Half its side, world units.
        start: Signed distance of the start shape and its gradient at R cell centres a side,
            axes x, y, z; distance in units of half the side. [4, R, R, R]
        level_weights: From 0 to 1, how far the features of each level have joined. [grid.width]
    """

    centre: Tensor
    start: Tensor
    level_weights: Tensor

    def __init__(
        self,
        centre: Tensor,  # [3]
        half_size: float,
        start: Tensor,  # [4, R, R, R]
        grid: HashGrid,
        *,
        hidden: int,
        view_direction: bool = False,
        inv_s: float = 20.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """A field that is its start shape, but for what `RESIDUAL_STD` adds.

        Args:
            centre: Of the cube, world units. [3]
            half_size: Half its side, world units.
            start: As the attribute; see `start_from_distance`. [4, R, R, R]
            grid: Layout of the hash grid over the cube.
            hidden: Units of the one hidden layer of either network.
            view_direction: Whether colours change with the direction they are seen from.
            inv_s: NeuS's sharpness at the start, 1 / world unit.
            generator: On the CPU; draws the table and the networks.
        """
        super().__init__()
        self.half_size, self.grid, self.hidden = float(half_size), grid, hidden
        self.view_direction = view_direction
        self.register_buffer("centre", centre.detach().clone())
        self.register_buffer("start", interleaved(start.detach().clone()))
        self.register_buffer("level_weights", torch.ones(grid.width))

        def normal(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * std)

        inputs = 3 + grid.width
        uniform = torch.rand(grid.entries, 2, generator=generator)
        self.table = nn.Parameter((2 * uniform - 1) * TABLE_RANGE)
        self.weight1 = normal(hidden, inputs, std=math.sqrt(2 / inputs))
        self.bias1 = nn.Parameter(torch.zeros(hidden))
        self.weight2 = normal(1 + GEOMETRY_FEATURES, hidden, std=RESIDUAL_STD)
        self.bias2 = nn.Parameter(torch.zeros(1 + GEOMETRY_FEATURES))
        colour_inputs = 1 + GEOMETRY_FEATURES + inputs + 3 + 3 * view_direction
        self.colour1 = normal(hidden, colour_inputs, std=math.sqrt(2 / colour_inputs))
        self.colour_bias1 = nn.Parameter(torch.zeros(hidden))
        self.colour2 = normal(3, hidden, std=math.sqrt(1 / hidden))
        self.colour_bias2 = nn.Parameter(torch.zeros(3))
        self.log_inv_s = nn.Parameter(torch.tensor(math.log(inv_s) / INV_S_SCALE))

    @property
    def device(self) -> torch.device:
        """Where the field lives."""
        return self.centre.device

    @property
    def inv_s(self) -> Tensor:  # []
        """Sharpness of the surface, 1 / world unit."""
        return torch.exp(INV_S_SCALE * self.log_inv_s)

    def settings(self) -> dict[str, Any]:
        """What is needed besides the tensors to make this field again, ready for JSON."""
        return {
            "half_size": self.half_size,
            "levels": self.grid.levels,
            "coarsest": self.grid.base,
            "finest": self.grid.finest,
            "log2_entries": self.grid.log2_entries,
            "hidden": self.hidden,
            "view_direction": self.view_direction,
        }

    @classmethod
    def from_settings(cls, settings: dict[str, Any], state: dict[str, Tensor]) -> SDFField:
        """The field of `settings()` and `state_dict()`, where the tensors live.

        Raises:
            ValueError: They do not belong together; the message names what differs.
        """
        try:
            grid = HashGrid(
                levels=settings["levels"],
                base=settings["coarsest"],
                finest=settings["finest"],
                log2_entries=settings["log2_entries"],
            )
            field = cls(
                state["centre"],
                settings["half_size"],
                state["start"],
                grid,
                hidden=settings["hidden"],
                view_direction=settings["view_direction"],
                generator=torch.Generator(),  # overwritten, but torch's own stays as it was
            ).to(state["centre"].device)
            field.load_state_dict(state)
        except KeyError as error:
            raise ValueError(f"the field has no {error}") from error
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(f"the field's tensors do not fit its settings: {error}") from error
        return field

    def evaluate(self, points: Tensor) -> Sampled:  # [N, 3] world
        """Distance, gradient and what the colour reads, differentiable in the parameters."""
        unit = (points - self.centre) / self.half_size  # [-1, 1]
        encoded = encode(unit / 2 + 0.5, self.table, self.grid)
        places = Places(unit, encoded.features, self.level_weights)
        seen = distance_network(places, self._distance_layers())
        start, start_gradient = self._start_at(unit)
        gradients = start_gradient + seen.by_unit + encoded.pull_back(seen.by_features) / 2
        sdf = (start + seen.residual) * self.half_size
        return Sampled(sdf, gradients, Codes(seen.outputs, places))

    def shade(
        self,
        codes: Codes,
        normals: Tensor,  # [N, 3] unit
        directions: Tensor,  # [N, 3] unit, of the rays
    ) -> Tensor:  # [N, 3]
        """Colours, sRGB in [0, 1]."""
        layers = Layers(self.colour1, self.colour_bias1, self.colour2, self.colour_bias2)
        along = directions if self.view_direction else None
        return colour_network(*codes, normals, along, layers)

    @torch.no_grad()
    def sdf(self, points: Tensor) -> Tensor:  # [N, 3] -> [N]
        """Signed distance in world units, negative inside; without gradients, in chunks."""
        return torch.cat([self._sdf(chunk) for chunk in points.split(CHUNK)])

    @torch.no_grad()
    def sdf_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance [N] and its gradient [N, 3] at points [N, 3]; in chunks."""
        parts = [self.evaluate(chunk)[:2] for chunk in points.split(CHUNK)]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    @torch.no_grad()
    def colours(self, points: Tensor, gradients: Tensor) -> Tensor:  # [N, 3] twice -> [N, 3]
        """sRGB in [0, 1] at points with these gradients, seen along the normal."""
        colours = []
        for some, slopes in zip(points.split(CHUNK), gradients.split(CHUNK), strict=True):
            normals = F.normalize(slopes, dim=-1)
            colours.append(self.shade(self.evaluate(some).codes, normals, -normals))
        return torch.cat(colours)

    def _sdf(self, points: Tensor) -> Tensor:
        unit = (points - self.centre) / self.half_size
        encoded = encode(unit / 2 + 0.5, self.table, self.grid, jacobian=False)
        places = Places(unit, encoded.features, self.level_weights)
        residual = distance_network(places, self._distance_layers(), slopes=False).residual
        return (self._start_at(unit)[0] + residual) * self.half_size

    def _distance_layers(self) -> Layers:
        return Layers(self.weight1, self.bias1, self.weight2, self.bias2)

    def _start_at(self, unit: Tensor) -> tuple[Tensor, Tensor]:  # [N, 3] -> [N], [N, 3]
        """The start shape between its samples, clamped at the cube's faces.

        Distance and gradient are interpolated one by one: the gradient is smooth that way.
        """
        values = trilinear(self.start, unit)
        return values[0], values[1:].T


def start_from_distance(distance: Tensor) -> Tensor:  # [R, R, R] -> [4, R, R, R]
    """`SDFField.start` of samples of a signed distance in units of half the cube's side."""
    spacing = 2 / len(distance)
    gradient = torch.stack(torch.gradient(distance, spacing=spacing))
    return torch.cat([distance[None], gradient])
