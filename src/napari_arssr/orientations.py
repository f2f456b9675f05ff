"""A volume with its axes in other orders and directions, for the mean of what a network sees.

Every voxel keeps its place in the world, so that fields of all orientations are sampled on the
same grid, and none of what they give has to be turned back.
"""

from __future__ import annotations

from napari_arssr.choices import ORIENTATIONS
from napari_arssr.errors import UsageError
from napari_arssr.volume import Volume

__all__ = ["check_count", "oriented"]

# Each axis in each of the three places is what helps most; then all axes in the other direction,
# and then the other three orders.
_CYCLES = ((0, 1, 2), (1, 2, 0), (2, 0, 1))
_OTHERS = ((2, 1, 0), (1, 0, 2), (0, 2, 1))
_ORIENTATIONS = [
    (order, reverse)
    for orders in (_CYCLES, _OTHERS)
    for reverse in ((), (0, 1, 2))
    for order in orders
]


def oriented(volume: Volume, count: int) -> list[Volume]:
    """The same volume in several orientations, itself first; arrays are views.

    Parameters
    ----------
    volume : Volume
        3D.
    count : int
        One of :data:`napari_arssr.choices.ORIENTATIONS`. 3: each axis in each place. 6: those
        in both directions. 12: all orders of axes, in both directions.

    Raises
    ------
    UsageError
        For another count.
    """
    check_count(count)
    ways = _ORIENTATIONS[:count]
    return [volume.transposed(order).reversed_along(reverse) for order, reverse in ways]


def check_count(count: int) -> None:
    """Refuse, as :func:`oriented` does, a number of orientations that there is none of."""
    if count not in ORIENTATIONS:
        known = ", ".join(map(str, ORIENTATIONS))
        raise UsageError(f"A result is the mean of {known} orientations, not of {count!r}.")
