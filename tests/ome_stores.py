"""OME-Zarr stores as microscopes' programs write them, of any version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
UNITS = {"t": "second", "z": "micrometer", "y": "micrometer", "x": "micrometer"}


def axes_of(letters: str, units: dict[str, str] | None = None) -> list[dict[str, str]]:
    """What a store of version 0.4 or 0.5 says of its axes."""
    units = UNITS if units is None else units
    return [
        {"name": name, "type": TYPES[name]} | ({"unit": units[name]} if name in units else {})
        for name in letters
    ]


def write_store(
    path: Path,
    data: npt.NDArray[Any],
    letters: str = "zyx",
    *,
    version: str = "0.4",
    scale: Sequence[float] | None = None,
    translation: Sequence[float] | None = None,
    names: Sequence[str] = (),
    chunk: int = 4,
    levels: Sequence[str] = ("0",),
    image: dict[str, Any] | None = None,
    said: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """One image; of its levels each has every second voxel of the one before.

    ``image`` takes the place of what is said of the image, and ``said`` is added to what is said
    of the group.
    """
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    datasets = []
    for number, name in enumerate(levels):
        thinned = data[tuple(slice(None, None, 2**number if n in "zyx" else 1) for n in letters)]
        array = group.create_array(
            name,
            shape=thinned.shape,
            dtype=thinned.dtype,
            chunks=[1 if n in "tc" else chunk for n in letters],
            **options,
        )
        array[...] = thinned
        steps = [
            step * (2**number if n in "zyx" else 1)
            for n, step in zip(letters, scale or [1.0] * len(letters), strict=True)
        ]
        transformations: list[dict[str, Any]] = [{"type": "scale", "scale": steps}]
        if translation is not None:
            transformations.append({"type": "translation", "translation": [*translation]})
        datasets.append({"path": name, "coordinateTransformations": transformations})
    told = {"axes": axes_of(letters), "datasets": datasets} | (image or {})
    attributes: dict[str, Any] = {"multiscales": [told], **(said or {})}
    if names:
        attributes["omero"] = {"channels": [{"label": name} for name in names]}
    if version == "0.5":
        group.attrs["ome"] = {"version": version, **attributes}
    else:
        told["version"] = version
        group.attrs.update(attributes)
    return path


def cells(*counts: int) -> npt.NDArray[np.uint16]:
    """Voxels of a stack."""
    return np.random.default_rng(5).integers(0, 900, counts).astype(np.uint16)
