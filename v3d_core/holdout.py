"""Views set aside from a fit, so that it can be scored on pictures it has never seen."""

from __future__ import annotations

from .structures import Views

FEWEST_FITTED = 2  # views a fit needs to have depth


def hold_out_every(views: Views, every: int) -> tuple[Views, Views | None]:
    """Split views into those to fit and those to score: every Nth one, from the Nth on.

    View 0, which is the input picture of a sampled orbit, is always fitted.

    Args:
        views: All views, in the order of the orbit.
        every: N; 0 holds nothing out.

    Returns:
        The views to fit, and the held-out ones or None.

    Raises:
        ValueError: N leaves fewer than two views to fit, or is larger than their number.
    """
    if every == 0:
        return views, None
    if every < 0:
        raise ValueError(f"hold out: every Nth view, N must be 0 or more, got {every}")
    count = len(views)
    held = list(range(every - 1, count, every))
    fitted = [index for index in range(count) if index not in set(held)]
    if len(fitted) < FEWEST_FITTED:
        raise ValueError(
            f"holding out every {every}. of {count} views leaves {len(fitted)} to fit, at least "
            f"{FEWEST_FITTED} are needed; hold out fewer (a larger N), or give more views"
        )
    if not held:
        raise ValueError(
            f"there is no {every}. view to hold out among {count}; choose 2 to {count}, or 0 to "
            "hold out nothing"
        )
    return views[fitted], views[held]
