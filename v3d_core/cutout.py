"""Which pixels of a matte are the object, and what the object's own colours are at its edge.

Background removers leave haze and specks; files and masks carry colours of an old background in
the pixels that the object covers partly. An orbit model would paint both around the whole orbit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SMALLEST_OBJECT_PX = 8  # one pixel of the latent; anything smaller is dirt, not an object
PART_SHARE = 0.02  # of the largest part's pixels: what has fewer and lies apart is a speck
REACH_SHARE = 0.03  # of the longer side: how far soft edges reach out of what is surely object
SMALLEST_REACH_PX = 3.0  # of that distance; antialiasing and JPEG blur are this wide
WIDEST_EDGE = 4.0  # times `reach`: a broader band between clear and opaque is translucent stuff
UNEVEN_PX = 1.5  # antialiasing: coverage may be this far ahead of its place in that band ...
UNEVEN_SHARE = 0.2  # ... and in broad bands this share of their breadth
OPAQUE = 0.98  # coverage from which a colour is the object's own; cut-outs often end at 0.99
CLEAR = 0.02  # coverage up to which a colour is the background's own
EDGE_COVERAGE = (0.1, 0.9)  # between these, straight and mixed colours differ enough to tell
SOFT_SHARE = 0.05  # soft pixels per opaque one beside the background: with fewer, a hard mask
STRAIGHT_MISFIT = 0.6  # of what a wrong guess misses by, up to which edge colours are straight
MIXED_MISFIT = 0.3  # ... up to which they are mixed with one colour; wrong mattes have 0.45
FLAT_SPREAD = 0.03  # median difference (channels' sum) up to which a background is one colour
SMALLEST_CONTRAST = 0.05  # rms over the channels' sum; with less, mixing does not show
HARD_EDGE_MIX = (0.06, 0.6)  # mean share of background in the outermost pixels of a hard mask


@dataclass(frozen=True)
class Cutout:
    """The object of a picture in a window around it, as numpy arrays.

    Attributes:
        box: x0, y0, x1, y1 of the object in pixels of the picture, ends excluded.
        rows: Rows of the picture that the window has.
        columns: Columns of the picture that the window has.
        matte: Coverage in the window; 0 where nothing belongs to the object. [h, w]
        reach: Pixels by which soft edges reach out of what is surely object.
        notes: Sentences for people.
    """

    box: tuple[int, int, int, int]
    rows: slice
    columns: slice
    matte: np.ndarray
    reach: float
    notes: tuple[str, ...]


def cut_out(
    coverage: np.ndarray,  # [H, W]
    threshold: float,
) -> Cutout:
    """The largest connected part of a matte, with every part that is not far smaller or is near.

    Coverage fades out between `reach` and twice `reach` pixels from these parts: soft edges and
    hair stay, haze and specks elsewhere go.

    Args:
        coverage: 1 = object. [H, W]
        threshold: Coverage above which a pixel counts as object.

    Raises:
        ValueError: The mask is empty or full, or the object too small; with the numbers.
    """
    from scipy import ndimage

    labels = np.zeros(coverage.shape, np.int32)
    ndimage.label(coverage > threshold, np.ones((3, 3)), output=labels)
    pixels = np.bincount(labels.ravel())[1:]
    _check_share(coverage, threshold)
    kept = np.concatenate([[False], pixels >= PART_SHARE * pixels.max()])[labels]
    rows, columns = (np.flatnonzero(kept.any(axis=axis)) for axis in (1, 0))
    x0, y0, x1, y1 = (int(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    longer_side = max(x1 - x0, y1 - y0)
    if longer_side < SMALLEST_OBJECT_PX:
        raise ValueError(
            f"the object is {x1 - x0}x{y1 - y0} pixels, at least {SMALLEST_OBJECT_PX} are needed; "
            "is the mask right? If it is, use a larger picture"
        )
    reach = max(SMALLEST_REACH_PX, REACH_SHARE * longer_side)
    margin = int(2 * reach) + 1  # the fade ends within
    window = (
        slice(max(y0 - margin, 0), y1 + margin),
        slice(max(x0 - margin, 0), x1 + margin),
    )
    away = _distance_to(kept[window])
    fade = np.clip(2 - away / reach, 0, 1).astype(np.float32)
    notes = []
    beside = np.unique(labels[window][away <= reach])
    specks = len(pixels) - int(np.count_nonzero(beside))
    if specks:
        notes.append(
            f"Dropped {specks} small part{'s' if specks > 1 else ''} apart from the object."
        )
    height, width = coverage.shape
    sides = {"left": x0 == 0, "top": y0 == 0, "right": x1 == width, "bottom": y1 == height}
    if any(sides.values()):
        touched = ", ".join(side for side, touches in sides.items() if touches)
        notes.append(f"The object touches the picture's border ({touched}): it may be cut off.")
    return Cutout((x0, y0, x1, y1), *window, coverage[window] * fade, reach, tuple(notes))


def _check_share(coverage: np.ndarray, threshold: float) -> None:
    if coverage.max() <= threshold:
        raise ValueError(
            f"empty mask: no pixel above threshold {threshold:g}; the largest value is "
            f"{coverage.max():.3g}. If white means background in the mask, invert it; if the "
            "object is that faint, lower mask_threshold"
        )
    if coverage.min() > threshold:
        raise ValueError(
            f"the mask is full: its smallest value {coverage.min():.3g} is above threshold "
            f"{threshold:g}, so nothing has been cut out. Remove the background first, or give a "
            "mask with 1 on the object only"
        )


def straight_colours(
    colours: np.ndarray,  # [h, w, 3]
    coverage: np.ndarray,  # [h, w]
    cutout: Cutout,
) -> tuple[np.ndarray, str]:  # [h, w, 3]
    """The object's own colours where it covers pixels partly, and a note on what was mended.

    Files and masks leave three kinds of colour there: straight; mixed with one colour (black when
    multiplied by alpha, or an old background); and mixed with something else or along a wrong
    edge. Extending the opaque inside outwards predicts what the first two would look like. The
    kind that fits is undone exactly; of the third the prediction itself is used.

    Args:
        colours: sRGB in [0, 1] in the cutout's window. [h, w, 3]
        coverage: As given, there; haze included. [h, w]
        cutout: What belongs to the object.
    """
    from scipy import ndimage

    clear, opaque = cutout.matte <= CLEAR, cutout.matte >= OPAQUE
    outline = opaque & np.asarray(ndimage.binary_dilation(clear, np.ones((3, 3))), bool)
    core = opaque & ~outline
    if not core.any() or not clear.any():
        return colours, ""
    inside = _nearest(core, _local_mean(colours, core))
    background = np.median(colours[clear], axis=0)
    from_clear = _distance_to(clear)
    breadth = from_clear + _distance_to(core)  # of the band that a soft pixel is part of
    widest = WIDEST_EDGE * cutout.reach
    low, high = EDGE_COVERAGE
    soft = (coverage > low) & (coverage < high) & (breadth <= widest)
    if np.count_nonzero(soft) > SOFT_SHARE * np.count_nonzero(outline):
        flat = float(np.median(np.abs(colours[clear] - background).sum(axis=1))) <= FLAT_SPREAD
        kind = _kind_of_edge(colours[soft], coverage[soft], inside[soft], background, flat)
    else:
        mixed = outline.any() and _hard_edge_is_mixed(colours, inside, outline, clear)
        kind = "unknown" if mixed else "straight"
    if kind == "straight":
        return colours, ""
    if kind == "mixed":
        unmixed = background + (colours - background) / np.maximum(coverage, CLEAR)[..., None]
        name = "#" + "".join(f"{round(float(c) * 255):02x}" for c in background)
        return np.clip(unmixed, 0, 1), f"Soft edges were mixed with {name}: un-mixed."
    # Coverage grows evenly across an edge. Far ahead of that, it is a doubtful part of the object,
    # which keeps its colour; so does a band too broad for an edge: the middle of a vase of glass.
    ahead = np.where(outline, 0, coverage * breadth - from_clear)
    weight = np.clip(2 - ahead / np.maximum(UNEVEN_PX, UNEVEN_SHARE * breadth), 0, 1)
    weight *= np.clip(2 - breadth / widest, 0, 1) * ~core
    mended = (colours + weight[..., None] * (inside - colours)).astype(np.float32)
    return mended, "Edge colours were mixed with a background: continued from further inside."


def _kind_of_edge(
    colours: np.ndarray,  # [P, 3]
    coverage: np.ndarray,  # [P]
    inside: np.ndarray,  # [P, 3]
    background: np.ndarray,  # [3]
    flat: bool,
) -> str:
    """Whether soft pixels are straight, mixed with the background colour, or neither."""
    mixing = (1 - coverage[:, None]) * (background - inside)
    guesses_differ = _rms(mixing)
    straight_misfit, mixed_misfit = _rms(colours - inside), _rms(colours - inside - mixing)
    if straight_misfit <= STRAIGHT_MISFIT * min(guesses_differ, mixed_misfit):
        return "straight"
    if flat and mixed_misfit <= MIXED_MISFIT * guesses_differ:
        return "mixed"
    return "unknown" if guesses_differ >= SMALLEST_CONTRAST else "straight"


def _hard_edge_is_mixed(
    colours: np.ndarray, inside: np.ndarray, outline: np.ndarray, clear: np.ndarray
) -> bool:
    """Whether the outermost pixels of a mask without soft edges lean towards the background.

    Cut at coverage 0.5, they are a tenth background on average; drawn outlines are all their own.
    """
    contrast = (_nearest(clear, colours) - inside)[outline]
    share = ((colours - inside)[outline] * contrast).sum() / max((contrast**2).sum(), 1e-12)
    low, high = HARD_EDGE_MIX
    return _rms(contrast) >= SMALLEST_CONTRAST and low <= share <= high


def _local_mean(colours: np.ndarray, region: np.ndarray) -> np.ndarray:  # [h, w, 3]
    """Mean colour of those 3 x 3 neighbours that lie in the region."""
    from scipy import ndimage

    share = ndimage.uniform_filter(region.astype(np.float32), 3)
    total = ndimage.uniform_filter(colours * region[..., None], 3, axes=(0, 1))
    return total / np.maximum(share, 1 / 9)[..., None]


def _nearest(region: np.ndarray, values: np.ndarray) -> np.ndarray:  # [h, w, ...]
    """Every pixel's value taken from the nearest pixel of the region."""
    from scipy import ndimage

    where = ndimage.distance_transform_edt(~region, return_distances=False, return_indices=True)
    assert isinstance(where, np.ndarray)
    return values[where[0], where[1]]


def _distance_to(region: np.ndarray) -> np.ndarray:  # [h, w]
    """Pixels from every pixel to the nearest one of the region."""
    from scipy import ndimage

    distance = ndimage.distance_transform_edt(~region)
    assert isinstance(distance, np.ndarray)
    return distance


def _rms(colours: np.ndarray) -> float:  # [P, 3]
    return float(np.sqrt((colours**2).sum(axis=-1).mean()))
