"""Cut-out of objects in front of one flat colour, by flood fill from the border and un-mixing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BORDER_SHARE = 0.005  # width of the border ring that is looked at, as a share of the shorter side
UNIFORM_SHARE = 0.75  # of the ring must have the background colour; an object may touch the rest
BORDER_SIGMAS = 4.0  # of the border's noise still count as background in the first flood fill
HALO_QUANTILE = 0.95  # of the differences beside the outline is called the noise there
HALO_TIMES = 4.0  # that noise, which has long tails, is the second one's tolerance
FIRST_TOLERANCE = 8 / 255  # largest channel difference of the first flood fill
LOWEST_TOLERANCE = 3 / 255  # of the second one, where the first finds no noise
HIGHEST_TOLERANCE = 24 / 255  # more spread than this is a pattern, not noise
HALO_PX = (2.0, 8.0)  # where compression noise is measured: an 8 x 8 block around the outline
COMPRESSION_NOISE = 0.5 / 255  # more noise than that beside the outline means JPEG or video
HALO_CHROMA_PX = 3.5  # how far halved chroma bleeds out of the object, with its filter
HALO_LUMA_SHARE = 0.25  # of the luma contrast further inside: less is bled chroma, not object
LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601, the Y of JPEG
EDGE_PX = 1.5  # pixels this near to the background (8 neighbours) may be mixed with it
HOLE_SHARE = 5e-4  # of the picture: enclosed flat regions at least this large may be holes
HOLE_NOISE = 2.0  # times that noise may a hole differ from the background's colour (rms)
HOLE_RIM_PX = 3  # within this distance a hole's rim reaches the object's colour; highlights fade
HOLE_RIM_CONTRAST = 24 / 255  # median difference from the background on that rim
HOLE_RIM_SHARE = 0.7  # of the contrast twice as far out; a highlight fades linearly: 0.5
ISLAND_SHARE = 5e-5  # of the picture: smaller islands in the background are compression noise
SMALLEST_UNMIXED = 0.05  # un-mixing divides by at least this coverage, or noise would explode
LARGEST_KEYED_SHARE = 0.9995  # above it the object itself has been keyed


def key_uniform_background(
    images: Tensor,  # [V, H, W, 3]
    holes: bool = True,
) -> tuple[Tensor, Tensor, str]:
    """Masks and straight colours of objects photographed or rendered before one flat colour.

    The colour is the median of the border, per view, so a slow drift of exposure does no harm.
    Background is what has that colour (within the border's own noise) and is connected to the
    border. A region of that colour inside the object stays object, unless `holes` is on and it is
    large, as flat as the background and of hard outline: then it is what one sees between the legs
    of a stool, where a highlight would fade. The
    pixels along the outline are un-mixed: coverage and straight colour are those which explain the
    pixel as a blend of the background with the nearest pixel inside, so that no rim of the
    background colour stays.

    Args:
        images: sRGB colours in [0, 1], composited on the background. [V, H, W, 3]
        holes: Key large enclosed regions of the background colour as well.

    Returns:
        Straight images [V, H, W, 3] (black where nothing is left), masks [V, H, W], and a sentence
        that says what was done, for the user to check.

    Raises:
        ValueError: The border of a view is not of one colour, or nothing or everything would be
            keyed; the text says in which view and what to do.
    """
    if not bool(torch.isfinite(images).all()):
        raise ValueError("background keying: images contain NaN or infinite values")
    pictures = images.detach().cpu().float().numpy()
    colours, tolerances = _background_colours(pictures)
    straight = np.empty_like(pictures)
    masks = np.empty(pictures.shape[:3], np.float32)
    hole_count = 0
    for view, picture in enumerate(pictures):
        background, view_holes = _background_region(
            picture, colours[view], tolerances[view], keep_holes=not holes
        )
        _check_keyed_share(view, float(background.mean()), picture.shape)
        masks[view], straight[view] = _unmix_edges(picture, background, colours[view])
        hole_count += view_holes
    text = _report(colours, masks, hole_count)
    return torch.from_numpy(straight).to(images), torch.from_numpy(masks).to(images), text


def _ring_width(shape: tuple[int, ...]) -> int:
    return max(1, round(BORDER_SHARE * min(shape[0], shape[1])))


def _background_colours(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Border colour [V, 3] and tolerance [V] (largest channel difference) of every view."""
    height, width = pictures.shape[1:3]
    ring = np.ones((height, width), bool)
    border = _ring_width((height, width))
    ring[border : height - border, border : width - border] = False
    colours, tolerances = [], []
    for view, picture in enumerate(pictures):
        pixels = picture[ring]
        colour = np.median(pixels, axis=0)
        distance = np.abs(pixels - colour).max(axis=1)
        noise = 1.4826 * float(np.median(distance))  # standard deviation of normal noise
        tolerance = float(np.clip(BORDER_SIGMAS * noise, FIRST_TOLERANCE, HIGHEST_TOLERANCE))
        share = float((distance <= tolerance).mean())
        if share < UNIFORM_SHARE:
            raise ValueError(
                f"background keying: view {view} has no flat background: only {share:.0%} of its "
                f"border is near the border's median colour {_hex(colour)}, at least "
                f"{UNIFORM_SHARE:.0%} is needed. Give masks, or images with an alpha channel "
                "(a background-removal model makes them)"
            )
        colours.append(colour)
        tolerances.append(tolerance)
    return np.stack(colours), np.array(tolerances)


def _background_region(
    picture: np.ndarray, colour: np.ndarray, tolerance: float, keep_holes: bool
) -> tuple[np.ndarray, int]:
    """Background pixels [H, W] and the number of enclosed holes among them.

    Flooded twice: compression rings around the object, so the noise that the first fill finds
    beside the outline sets the tolerance of the second.
    """

    contrast = np.abs(picture - colour).max(axis=2)
    labels, outside = _flood(contrast, tolerance)
    beside = _distance_to_false(_without_islands(outside[labels]))
    halo = contrast[(beside > HALO_PX[0]) & (beside <= HALO_PX[1])]
    noise = float(np.quantile(halo, HALO_QUANTILE)) if halo.size else 0.0
    second = float(np.clip(HALO_TIMES * noise, LOWEST_TOLERANCE, HIGHEST_TOLERANCE))
    labels, outside = _flood(contrast, second)
    chosen = outside if keep_holes else outside | _holes(contrast, labels, outside, noise)
    background = _without_islands(chosen[labels])
    if noise > COMPRESSION_NOISE:
        background = _without_islands(_with_chroma_halo(picture, colour, background))
    return background, int((chosen & ~outside).sum())


def _with_chroma_halo(
    picture: np.ndarray, colour: np.ndarray, background: np.ndarray
) -> np.ndarray:  # [H, W] bool
    """The background grown by pixels into which only the object's chroma has bled (4:2:0)."""
    from scipy import ndimage

    depth = _distance_to_false(~background)
    rows, columns = np.nonzero((depth > 0) & (depth <= HALO_CHROMA_PX))
    luma = np.abs((picture - colour) @ np.array(LUMA_WEIGHTS, np.float32))
    inside = _nearest_inside(depth, luma, rows, columns, HALO_CHROMA_PX)
    reference = luma[inside[0], inside[1]]
    faint = (luma[rows, columns] < HALO_LUMA_SHARE * reference) & (reference > HIGHEST_TOLERANCE)
    grown = background.copy()
    grown[rows[faint], columns[faint]] = True
    return ndimage.binary_propagation(background, mask=grown)


def _distance_to_false(region: np.ndarray) -> np.ndarray:  # [H, W] bool -> [H, W]
    """Pixels from every true pixel to the nearest false one; 0 on false ones."""
    from scipy import ndimage

    distance = ndimage.distance_transform_edt(region)
    assert isinstance(distance, np.ndarray)
    return distance


def _labels(region: np.ndarray, structure: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """Numbers of the connected parts [H, W], 0 where `region` is false, and how many there are."""
    from scipy import ndimage

    labels = np.zeros(region.shape, np.int32)
    return labels, int(ndimage.label(region, structure, output=labels))  # pyright: ignore


def _without_islands(background: np.ndarray) -> np.ndarray:  # [H, W] bool

    islands, _ = _labels(~background, np.ones((3, 3)))
    small = np.bincount(islands.ravel()) < ISLAND_SHARE * background.size
    return background | (small[islands] & (islands > 0))


def _flood(contrast: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels [H, W] of connected regions near the background colour, which touch the border [L]."""

    labels, count = _labels(contrast <= tolerance)
    outside = np.zeros(count + 1, bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        outside[edge] = True
    outside[0] = False  # label 0 is the object
    return labels, outside


def _holes(
    contrast: np.ndarray, labels: np.ndarray, outside: np.ndarray, noise: float
) -> np.ndarray:  # [L]
    """Which enclosed regions show the very background: large, no noisier than it, of hard rim."""
    from scipy import ndimage

    sizes = np.bincount(labels.ravel())
    energy = np.bincount(labels.ravel(), weights=contrast.ravel() ** 2)
    flat = np.sqrt(energy / np.maximum(sizes, 1)) <= HOLE_NOISE * noise + 0.5 / 255
    candidates = ~outside & flat & (sizes >= HOLE_SHARE * contrast.size)
    candidates[0] = False
    boxes = ndimage.find_objects(labels)
    for label in np.flatnonzero(candidates):
        candidates[label] = _has_hard_rim(labels, int(label), boxes[label - 1], contrast)
    return candidates


def _has_hard_rim(
    labels: np.ndarray, label: int, box: tuple[slice, slice], contrast: np.ndarray
) -> bool:
    """Whether the object around a region differs at once, as at a hole, unlike at a highlight."""

    rows, columns = (
        slice(max(part.start - 2 * HOLE_RIM_PX, 0), part.stop + 2 * HOLE_RIM_PX) for part in box
    )
    region = labels[rows, columns] == label
    distance = _distance_to_false(~region)
    near, far = (
        float(np.median(contrast[rows, columns][(distance > out - 1) & (distance <= out)]))
        for out in (HOLE_RIM_PX, 2 * HOLE_RIM_PX)
    )
    return near >= HOLE_RIM_CONTRAST and near >= HOLE_RIM_SHARE * far


def _unmix_edges(
    picture: np.ndarray, background: np.ndarray, colour: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coverage [H, W] and straight colours [H, W, 3] from a hard background region."""

    depth = _distance_to_false(~background)
    masks = (~background).astype(np.float32)
    straight = np.where(background[..., None], 0, picture)
    rows, columns = np.nonzero((depth > 0) & (depth <= EDGE_PX))
    if not rows.size:
        return masks, straight
    contrast = np.abs(picture - colour).max(axis=2)
    inside = _nearest_inside(depth, contrast, rows, columns, EDGE_PX)
    foreground = picture[inside[0], inside[1]] - colour
    mixed = picture[rows, columns] - colour
    power = (foreground**2).sum(axis=1)
    alpha = np.clip((mixed * foreground).sum(axis=1) / np.maximum(power, 1e-12), 0, 1)
    # too little contrast to un-mix: the pixel stays as it is
    alpha = np.where(np.abs(foreground).max(axis=1) > HIGHEST_TOLERANCE, alpha, 1.0)
    masks[rows, columns] = alpha
    unmixed = colour + mixed / np.maximum(alpha, SMALLEST_UNMIXED)[:, None]
    straight[rows, columns] = np.clip(unmixed, 0, 1)
    return masks, straight


def _nearest_inside(
    depth: np.ndarray,
    contrast: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    edge_px: float,
) -> np.ndarray:  # [2, P]
    """Where to look for the object's own colour, for every pixel of the edge.

    That is the nearest pixel deeper than the edge; in parts too thin to have one, the pixel of
    the 5 x 5 neighbourhood that differs most from the background.
    """
    from scipy import ndimage

    core = depth > edge_px
    inside = np.stack([rows, columns])
    thin = np.ones(rows.size, bool)
    if core.any():
        nearest = ndimage.distance_transform_edt(~core, return_distances=False, return_indices=True)
        assert isinstance(nearest, np.ndarray)
        inside = nearest[:, rows, columns]
        thin = np.hypot(inside[0] - rows, inside[1] - columns) > 2 * edge_px
    height, width = depth.shape
    for index in np.flatnonzero(thin):
        top, left = max(rows[index] - 2, 0), max(columns[index] - 2, 0)
        window = contrast[top : min(top + 5, height), left : min(left + 5, width)]
        peak = np.unravel_index(int(window.argmax()), window.shape)
        inside[:, index] = top + peak[0], left + peak[1]
    return inside


def _check_keyed_share(view: int, share: float, shape: tuple[int, ...]) -> None:
    height, width = shape[:2]
    border = _ring_width(shape)
    ring = 1 - max(height - 2 * border, 0) * max(width - 2 * border, 0) / (height * width)
    if share > LARGEST_KEYED_SHARE:
        raise ValueError(
            f"background keying: {share:.2%} of view {view} has the background colour, nothing "
            "would be left. Is the picture empty, or the object as bright as the background? "
            "Give masks, or images with an alpha channel"
        )
    if share < 1.5 * ring:
        raise ValueError(
            f"background keying: only {share:.1%} of view {view} is background, hardly more than "
            f"the border itself ({ring:.1%}). Crop frames that have a coloured border, or give "
            "masks or images with an alpha channel"
        )


def _hex(colour: np.ndarray) -> str:
    return "#" + "".join(f"{round(float(c) * 255):02x}" for c in np.clip(colour, 0, 1))


def _report(colours: np.ndarray, masks: np.ndarray, hole_count: int) -> str:
    keyed = 1 - masks.mean(axis=(1, 2))
    drift = float(np.abs(colours - np.median(colours, axis=0)).max())
    text = (
        f"No alpha channel and no masks: keyed the flat background {_hex(np.median(colours, 0))} "
        f"by flood fill from the border; it covers {keyed.mean():.1%} of the pixels "
        f"({keyed.min():.1%} to {keyed.max():.1%} per view)"
    )
    if drift > 1 / 255:
        text += f"; its colour drifts by up to {drift * 255:.0f}/255 between views"
    if hole_count:
        plural = "s" if hole_count > 1 else ""
        text += f"; {hole_count} enclosed region{plural} of that colour counted as see-through"
    return text + ". Parts of the object in exactly that colour at its outline are lost: check."
