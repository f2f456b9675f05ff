"""A brain given by a formula: sample data and test material, known exactly everywhere.

The phantom is a function of a point in RAS+ millimetres, so it can be measured on any grid, at
any resolution and orientation, without ever interpolating. It has what super-resolution is
about (a folded cortex, sulci down to 0.6 mm wide, cerebellar folia, small lesions) and copies
nobody's anatomy: every shape is written down below as a signed distance, every irregularity is
drawn from the seed.

How it is built
---------------
Each structure is a signed distance in millimetres, positive inside. An implicit shape f = 0
gets the first-order distance f/|∇f| (Taubin 1994). Structures are painted one over the other,
each with an edge that rises as a smoothstep over :data:`EDGE_MM`.

Sulci are sheets: the zero set of a random field of nearly one wavelength, read at the point
where the ray from the middle of the hemisphere meets an ellipsoid. The sheets therefore stand
upright on the surface, wind like gyri, and end at a depth that varies from place to place.
Cortex is whatever lies within about 2.5 mm of the surface, sulci included.

Inside this module points are (3, n), so that x, y and z are contiguous; x is to the right, y to
the front, z up. Most shapes are written for the right half and mirrored: "lateral" is |x|.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import UsageError
from napari_arssr.volume import Grid, Triple, Volume

__all__ = ["EDGE_MM", "MARKER_MM", "MARKER_RADIUS_MM", "Contrast", "Lesion", "Phantom"]

Array = npt.NDArray[np.float64]
Contrast = Literal["t1", "t2", "flair"]

EDGE_MM = 0.3
"""Width over which one tissue turns into the next (0 to 100 %), millimetres.

Exact for lesions. Bent and folded surfaces know their distance to first order only; there it
is a nominal width.
"""

MARKER_MM: Triple = (-26.0, 10.0, 30.0)
"""Centre (R, A, S), millimetres, of a lesion that every seed has, on the subject's left only.

R+ points to the subject's right, so x = -26 is left. Its mirror image at x = +26 is white
matter: a result in which left and right are swapped shows at once.
"""

MARKER_RADIUS_MM = 3.0
"""Radius of the lesion at :data:`MARKER_MM`, millimetres."""

# Points evaluated at once: temporaries of a few MB, whatever the volume.
_CHUNK = 1 << 14
_SIDE = 32  # points along each side of the blocks a grid is sampled in


@dataclass(frozen=True)
class _Intensities:
    """What each tissue measures in one contrast."""

    fluid: float
    cortex: float
    white: float
    brainstem: float
    thalamus: float
    caudate: float
    putamen: float
    pallidum: float
    hippocampus: float
    lesion: float


_TABLES = {
    "t1": _Intensities(
        fluid=170,
        cortex=560,
        white=860,
        brainstem=800,
        thalamus=690,
        caudate=590,
        putamen=630,
        pallidum=760,
        hippocampus=550,
        lesion=420,
    ),
    "t2": _Intensities(
        fluid=940,
        cortex=560,
        white=380,
        brainstem=410,
        thalamus=470,
        caudate=520,
        putamen=490,
        pallidum=320,
        hippocampus=580,
        lesion=800,
    ),
    "flair": _Intensities(
        fluid=110,
        cortex=580,
        white=450,
        brainstem=480,
        thalamus=530,
        caudate=570,
        putamen=540,
        pallidum=400,
        hippocampus=610,
        lesion=880,
    ),
}


@dataclass(frozen=True)
class Lesion:
    """A ball of other tissue: centre (R, A, S) and radius, both in millimetres."""

    centre: Triple
    radius: float


@dataclass(frozen=True)
class Phantom:
    """A head after skull-stripping, as a function of the point in space.

    Parameters
    ----------
    seed : int
        Another seed, another subject: other folds, proportions and lesions.
    contrast : {"t1", "t2", "flair"}
        Another table of tissue intensities; the anatomy does not depend on it.

    Raises
    ------
    UsageError
        If the seed is negative or the contrast is unknown.
    """

    seed: int = 0
    contrast: Contrast = "t1"

    def __post_init__(self) -> None:
        if self.contrast not in get_args(Contrast):
            raise UsageError(
                f"The phantom has no contrast {self.contrast!r}: "
                f"choose {', '.join(get_args(Contrast))}."
            )
        if self.seed < 0:
            raise UsageError(f"The seed of a phantom must be 0 or above, not {self.seed!r}.")

    @property
    def lesions(self) -> tuple[Lesion, ...]:
        """All lesions, radii 0.5 to 3 mm; the first is the marker on the left."""
        return _anatomy(self.seed).lesions

    @staticmethod
    def grid(spacing: float | Sequence[float] = 1.0) -> Grid:
        """A grid along the world axes that holds the whole brain; ``spacing`` (z, y, x), mm."""
        return Grid.from_spacing((156, 192, 156), 1.0).with_spacing(spacing)

    def intensity(self, points: npt.ArrayLike) -> Array:
        """The phantom at any points.

        Parameters
        ----------
        points : (..., 3) array
            RAS+ millimetres.

        Returns
        -------
        (...) float64 array
            Between 0 and about 1000; exactly 0 outside the brain.

        Raises
        ------
        UsageError
            If the last axis has not length 3 or a coordinate is not finite.
        """
        points = np.asarray(points, dtype=np.float64)
        if points.ndim == 0 or points.shape[-1] != 3:
            raise UsageError(
                f"Points need three coordinates on their last axis, not shape {points.shape}."
            )
        if not np.isfinite(points).all():
            raise UsageError("The phantom was asked for a point that is not finite.")
        flat = points.reshape(-1, 3)
        anatomy, table = _anatomy(self.seed), _TABLES[self.contrast]
        result = np.empty(len(flat))
        for start in range(0, len(flat), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            result[chunk] = anatomy.render(np.ascontiguousarray(flat[chunk].T), table)
        return result.reshape(points.shape[:-1])

    def sample(
        self, grid: Grid, *, oversampling: int = 1, noise: float = 0.0, seed: int = 0
    ) -> Volume:
        """Measure the phantom on a grid, block by block.

        Parameters
        ----------
        grid : Grid
            Any shape, spacing and orientation.
        oversampling : int
            1 takes the value at each voxel's centre. n takes the mean over n×n×n points
            spread evenly in the voxel: a box point-spread function.
        noise : float
            Standard deviation of the noise in each of the two channels of the scanner, in
            units of intensity (20 is 2 % of full scale). The magnitude is Rician. There is
            none outside the brain: skull-stripping comes after the scan.
        seed : int
            Seed of the noise.

        Returns
        -------
        Volume
            float32, on ``grid``.

        Raises
        ------
        UsageError
            If ``oversampling`` is below 1 or ``noise`` is negative or not finite.
        """
        if oversampling < 1 or oversampling % 1 != 0:
            raise UsageError(f"oversampling must be a whole number from 1, not {oversampling!r}.")
        if not 0 <= noise < math.inf:
            raise UsageError(f"noise must be 0 or more, not {noise!r}.")
        oversampling = int(oversampling)
        fine = grid.with_shape([n * oversampling for n in grid.shape])
        data = np.empty(grid.shape, dtype=np.float32)
        side = max(1, _SIDE // oversampling)
        for box in grid.box.blocks((side, side, side)):
            part = grid.box_in(fine, box)
            values = self.intensity(
                fine.world(np.moveaxis(np.indices(part.shape), 0, -1) + part.start)
            )
            cells = [size for n in box.shape for size in (n, oversampling)]
            data[box.slices] = values.reshape(cells).mean(axis=(1, 3, 5))
        if noise:
            random = np.random.default_rng(seed)
            for plane in data:
                real, imaginary = random.normal(scale=noise, size=(2, *plane.shape))
                plane[...] = np.where(plane > 0, np.hypot(plane + real, imaginary), 0)
        return Volume(data, grid.affine, name=f"phantom-{self.contrast}-{self.seed}")


# --- Random fields ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Waves:
    """A sum of plane waves: a smooth random field of unit variance.

    The wave is made of parabolas, 8u(1 - 2|u|) for u turns in [-½, ½]: within 6 % of a sine
    and several times faster, with its slope for next to nothing.

    ``frequency`` is (waves, d) in turns per unit of the d coordinates, ``phase`` (waves, 1).
    """

    frequency: Array
    phase: Array

    @classmethod
    def draw(
        cls, random: np.random.Generator, count: int, wavelength: tuple[float, float]
    ) -> _Waves:
        """Waves in every direction, with wavelengths between the two, in millimetres."""
        # Spread evenly and turned at random rather than drawn: a few drawn ones bunch together,
        # and the folds become stripes. A wave and its opposite are one: half a sphere will do.
        turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
        directions = _directions(2 * count)[:, :count].T @ turn
        frequency = 1 / random.uniform(*wavelength, size=(count, 1))
        return cls(directions * frequency, random.uniform(size=(count, 1)))

    def __call__(self, points: Array) -> Array:
        """Value at (d, n) points, shape (n,)."""
        return np.asarray(self._shape(self._turns(points)).sum(axis=0) * self._unit)

    def with_gradient(self, points: Array) -> tuple[Array, Array]:
        """Value (n,) and gradient (d, n) per unit of the coordinates."""
        turns = self._turns(points)
        return (
            np.asarray(self._shape(turns).sum(axis=0) * self._unit),
            np.asarray(self.frequency.T @ self._slope(turns) * self._unit),
        )

    def each_with_slope(self, points: Array) -> tuple[Array, Array]:
        """The waves one by one, between -1 and 1, and their slope per turn: both (waves, n)."""
        turns = self._turns(points)
        return self._shape(turns), self._slope(turns)

    @property
    def mean_frequency(self) -> float:
        """Turns per millimetre."""
        return float(np.linalg.norm(self.frequency[:, :3], axis=1).mean())

    @property
    def _unit(self) -> float:
        return math.sqrt(15 / 8 / len(self.phase))  # the mean square of one wave is 8/15

    def _turns(self, points: Array) -> Array:
        turns = self.frequency @ points + self.phase
        turns -= np.rint(turns)
        return turns

    @staticmethod
    def _shape(turns: Array) -> Array:
        return 8 * turns * (1 - 2 * np.abs(turns))

    @staticmethod
    def _slope(turns: Array) -> Array:
        return 8 - 32 * np.abs(turns)


# --- Signed distances, millimetres, positive inside -----------------------------------------


def _ellipsoid(points: Array, centre: Triple, radii: Triple | Array, power: float = 2.0) -> Array:
    """First-order distance to an ellipsoid; ``radii`` may differ from point to point.

    With a power above 2 a superellipsoid, Σ|x/r|ᵖ = 1: fuller at the corners.
    """
    scaled = np.maximum(np.abs(points - _column(centre)) / _column(radii), 1e-6)
    terms = scaled**power
    total = terms.sum(axis=0)
    radius = total ** (1 / power)
    slope = _length(terms / (scaled * _column(radii))) * radius / total
    return np.asarray((1 - radius) / slope)


def _tube(points: Array, path: Sequence[tuple[float, float, float, float]]) -> Array:
    """A tube along a polyline of (x, y, z, radius), its joints rounded."""
    result: Array | None = None
    for start, end in pairwise(path):
        a, b = _column(start[:3]), _column(end[:3])
        axis = b - a
        offset = points - a
        along = np.clip((axis.T @ offset)[0] / (axis**2).sum(), 0, 1)
        piece = start[3] + (end[3] - start[3]) * along - _length(offset - axis * along)
        result = piece if result is None else _union(result, piece, 2.0)
    assert result is not None
    return result


def _union(a: Array, b: Array, rounding: float) -> Array:
    """Union of two shapes, the crease between them filled over ``rounding`` millimetres."""
    blend = np.maximum(rounding - np.abs(a - b), 0) / rounding
    return np.asarray(np.maximum(a, b) + blend**2 * (rounding / 4))


def _length(vectors: Array) -> Array:
    """Length of (3, n) vectors."""
    return np.asarray(np.sqrt(np.einsum("ij,ij->j", vectors, vectors)))


def _directions(count: int) -> Array:
    """Directions spread evenly over the sphere (a Fibonacci lattice), from z = 1 down: (3, n)."""
    height = 1 - (2 * np.arange(count) + 1) / count
    angle = np.arange(count) * math.pi * (3 - math.sqrt(5))
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height])


def _column(values: Triple | Sequence[float] | Array) -> Array:
    array = np.asarray(values, dtype=np.float64)
    return array if array.ndim == 2 else array[:, None]


def _step(distance: Array) -> Array:
    """How much of a structure there is at a signed distance: 0 to 1 over the edge's width."""
    t = np.clip(distance / EDGE_MM + 0.5, 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


# --- The brain ------------------------------------------------------------------------------

_LESIONS = 25
_DEEP = 30.0  # below this depth there is neither sulcus nor cortex

# Rays to the cortex start on a line along y and meet the surface of a rounded tube around it.
_LINE = _column((30.0, 0.0, 12.0))
_HALF_LINE = 42.0  # half its length
_ROUNDING = 20.0  # over which the tube goes over into its rounded ends
_RADII = _column((36.0, 44.0, 54.0))

# All deep structures lie inside this block.
_BLOCK_CENTRE = _column((0.0, -11.0, -5.0))
_BLOCK_SIZE = _column((96.0, 110.0, 82.0))

_TEMPORAL_LOBE = [(40.0, 34.0, -24.0, 17.0), (46.0, -40.0, -14.0, 18.0)]
_BRAINSTEM = [
    (0.0, -14.0, -4.0, 13.0),
    (0.0, -18.0, -30.0, 13.0),
    (0.0, -26.0, -48.0, 8.0),
    (0.0, -30.0, -90.0, 6.5),
]
_CALLOSUM = [
    (0.0, 26.0, -1.0, 2.5),
    (0.0, 36.0, 9.0, 4.0),
    (0.0, 26.0, 21.0, 3.5),
    (0.0, -2.0, 28.0, 3.0),
    (0.0, -28.0, 24.0, 3.0),
    (0.0, -42.0, 13.0, 4.5),
]
_VENTRICLE = [
    (8.0, 34.0, 4.0, 4.0),
    (8.5, 16.0, 15.0, 7.0),
    (11.0, -12.0, 19.0, 6.0),
    (21.0, -36.0, 10.0, 7.0),
    (25.0, -62.0, 5.0, 1.0),
]
_TEMPORAL_HORN = [(23.0, -38.0, 7.0, 5.0), (35.0, -22.0, -17.0, 2.5), (34.0, -6.0, -25.0, 1.5)]
_AQUEDUCT = [(0.0, -20.0, -2.0, 1.0), (0.0, -33.0, -28.0, 1.0)]
_CAUDATE = [
    (15.0, 26.0, 6.0, 5.0),
    (17.0, 10.0, 17.0, 4.0),
    (20.0, -12.0, 22.0, 2.5),
    (29.0, -34.0, 14.0, 1.5),
]
_HIPPOCAMPUS = [(27.0, -6.0, -27.0, 5.0), (27.0, -20.0, -23.0, 4.0), (24.0, -36.0, -8.0, 3.0)]

_Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class _Anatomy:
    """One subject. Waves named "lateral" are functions of (|x|, y, z, side)."""

    size: Array  # (3, 1): proportions against the average
    bend: _Waves
    bend_direction: Array  # (3, waves), millimetres
    curl: _Waves  # of (|x|, y, z): bends the sulci where they go deep
    curl_direction: Array  # (3, waves), millimetres
    folds: _Waves  # lateral
    small_folds: _Waves  # lateral
    depth: _Waves  # lateral
    width: _Waves  # lateral
    texture: _Waves
    fine_texture: _Waves
    lesions: tuple[Lesion, ...] = ()

    def render(self, points: Array, table: _Intensities) -> Array:
        """Intensity at (3, n) points."""
        result = np.zeros(points.shape[1])
        layers = self.layers(points)
        _, inside, hull = next(layers)
        image = np.full(points.shape[1], float(table.fluid))
        for tissue, where, distance in layers:
            image[where] += _step(distance) * (getattr(table, tissue) - image[where])
        texture = 1 + 0.02 * self.texture(points[:, inside])
        texture += 0.008 * self.fine_texture(points[:, inside])
        result[inside] = image[inside] * texture * _step(hull)
        return result

    def layers(self, points: Array) -> Iterator[tuple[str, _Indices, Array]]:
        """What is painted over what: tissue, which of the points, signed distance there.

        The first is "brain": everything inside the skull-stripped outline. Points that are
        left out of a layer lie outside it.
        """
        inside = np.flatnonzero((np.abs(points) < [[80.0], [98.0], [80.0]]).all(axis=0))
        bent = points[:, inside] / self.size
        bent += self.bend_direction @ self.bend.each_with_slope(bent)[0]
        cerebrum = _cerebrum(_mirrored(bent))
        cerebellum = _ellipsoid(bent, (0.0, -54.0, -38.0), (52.0, 32.0, 25.0))
        brainstem = _tube(bent, _BRAINSTEM)
        hull = _union(_union(cerebrum, cerebellum, 10.0), brainstem, 10.0) + 1.2
        hull = np.minimum(hull, bent[2] + 68.0)

        at = np.flatnonzero(hull > -EDGE_MM)
        yield "brain", inside[at], hull[at]

        # A little fluid keeps cerebrum and cerebellum apart.
        apart = np.minimum(cerebellum, -cerebrum - 1.5)
        at = np.flatnonzero(apart > -EDGE_MM)
        surface = self._folia(bent[:, at], apart[at])
        yield "cortex", inside[at], surface
        yield "white", inside[at], surface - 1.4

        at = np.flatnonzero(brainstem > -EDGE_MM)
        yield "brainstem", inside[at], brainstem[at]

        at = np.flatnonzero(cerebrum > -EDGE_MM)
        surface, thickness = self._cortex(bent[:, at], cerebrum[at])
        yield "cortex", inside[at], surface
        yield "white", inside[at], surface - thickness

        at = np.flatnonzero((np.abs(bent - _BLOCK_CENTRE) < _BLOCK_SIZE / 2).all(axis=0))
        for tissue, distance in _deep_structures(bent[:, at]):
            yield tissue, inside[at], distance

        # The marker and its mirror image lie in white matter, whatever folds the seed makes.
        offset = _mirrored(points) - _mirrored(_column(MARKER_MM))
        at = np.flatnonzero((np.abs(offset) < MARKER_RADIUS_MM + 2).all(axis=0))
        yield "white", at, MARKER_RADIUS_MM + 1.5 - _length(offset[:, at])

        low, high = points.min(axis=1), points.max(axis=1)
        for lesion in self.lesions:
            reach = lesion.radius + EDGE_MM
            if (low - reach < lesion.centre).all() and (high + reach > lesion.centre).all():
                offset = points - _column(lesion.centre)
                at = np.flatnonzero((np.abs(offset) < reach).all(axis=0))
                yield "lesion", at, lesion.radius - _length(offset[:, at])

    def room(self, points: Array) -> Array:
        """Distance from points in white matter to the next tissue; negative elsewhere."""
        room = np.full(points.shape[1], -math.inf)
        for tissue, where, distance in self.layers(points):
            if tissue == "white":
                room[where] = np.maximum(room[where], distance)
            else:
                room[where] = np.minimum(room[where], -distance)
        return room

    def _cortex(self, points: Array, cerebrum: Array) -> tuple[Array, Array]:
        """Distance to the folded surface of the cerebrum, and how thick the cortex is."""
        mirrored = _mirrored(points)
        # The fissure between the hemispheres, its upper edges rounded.
        depth = -_union(-cerebrum, 0.6 - mirrored[0], 5.0)
        surface = depth.copy()
        thickness = np.full_like(depth, 2.5)

        at = np.flatnonzero(depth < _DEEP)
        depth, mirrored = depth[at], mirrored[:, at]
        offset, slopes = self.curl.each_with_slope(mirrored)
        curled = mirrored + self.curl_direction @ offset
        y = np.abs(curled[1])
        beyond = np.clip((y - _HALF_LINE) / _ROUNDING + 0.5, 0, 1)
        excess = _ROUNDING / 2 * beyond**2 + np.maximum(y - _HALF_LINE - _ROUNDING / 2, 0)
        start = np.zeros_like(curled) + _LINE
        start[1] = np.copysign(y - excess, curled[1])
        scaled = (curled - start) / _RADII
        radius = np.maximum(_length(scaled), 0.2)
        unit = scaled / radius
        place = np.vstack([start + _RADII * unit, np.sign(points[:1, at])])

        def sheet(waves: _Waves) -> Array:
            """Distance to the nearest zero of a field of the place."""
            value, gradient = waves.with_gradient(place)
            # Chain rule: from the place back to the curled point, of which it is the projection
            # (beside the line its y is the point's own), and from there to the point itself.
            slope = gradient[:3] * _RADII
            slope -= unit * (unit * slope).sum(axis=0)
            slope /= _RADII * radius
            slope[1] = beyond * slope[1] + (1 - beyond) * gradient[1]
            slope += self.curl.frequency.T @ (slopes * (self.curl_direction.T @ slope))
            # Where the slope vanishes sheets meet; the floor keeps them from swelling there.
            floor = 1.5 * waves.mean_frequency
            return np.asarray(np.abs(value) / np.hypot(_length(slope), floor))

        slow = self.width(place)
        half = 0.3 + 0.25 * slow**2
        reach = 15.0 + 5.0 * np.clip(self.depth(place), -2.0, 1.0)
        flare = 0.8 * np.exp(-np.maximum(depth, 0) / 1.5)
        large = np.hypot(sheet(self.folds), np.maximum(depth - reach, 0)) - half - flare
        reach = np.minimum(6.0 + 5.0 * slow, 18.0)
        small = np.hypot(sheet(self.small_folds), np.maximum(depth - reach, 0)) - 0.3 - flare
        lateral, y, z = mirrored
        sylvian = (z + 3 + 0.3 * y + 2 * np.sin((y + lateral) / 8)) / 1.05
        end = np.maximum(37 - lateral, 0) + np.maximum(np.abs(y + 6) - 36, 0)
        sylvian = np.hypot(sylvian, end) - 1.0 - flare
        surface[at] = np.minimum(np.minimum(depth, large), np.minimum(small, sylvian))
        thickness[at] = 2.5 + 0.3 * np.clip(slow, -1.5, 1.5)
        return surface, thickness

    def _folia(self, points: Array, depth: Array) -> Array:
        """Distance to the folded surface of the cerebellum: sheets that fan out from its middle."""
        lateral, y, z = np.abs(points[0]), -20.0 - points[1], points[2] + 36.0
        radius = np.maximum(np.hypot(y, z), 5.0)
        angle = np.arctan2(z, y) + 0.3 * (lateral / 50) ** 2 + 0.05 * self.texture(points)

        def sheets(step: float, reach: float) -> Array:
            away = radius * step * np.abs(angle / step - np.rint(angle / step))
            return np.asarray(np.hypot(away, np.maximum(depth - reach, 0)) - 0.3)

        return np.asarray(np.minimum(depth, np.minimum(sheets(0.11, 11.0), sheets(0.55, 20.0))))


def _mirrored(points: Array) -> Array:
    """(|x|, y, z)."""
    return np.stack([np.abs(points[0]), points[1], points[2]])


def _cerebrum(points: Array) -> Array:
    """Both hemispheres in one, unfolded: an egg, flat below, with the temporal lobes."""
    lateral, y, z = points
    egg = np.stack([lateral / (1 - 0.0013 * y), y, z])
    height = np.where(z > 12, 56.0, 32.0)
    radii = np.stack([np.full_like(height, 65.0), np.full_like(height, 84.0), height])
    upper = _ellipsoid(egg, (0.0, 0.0, 12.0), radii, power=2.4)
    return _union(upper, _tube(points, _TEMPORAL_LOBE), 6.0)


def _deep_structures(points: Array) -> Iterator[tuple[str, Array]]:
    mirrored = _mirrored(points)
    lateral = mirrored[0]

    core = _ellipsoid(points, (0.0, -8.0, 4.0), (26.0, 34.0, 18.0))
    middle = points * [[0.0], [1.0], [1.0]]
    callosum = _tube(middle, _CALLOSUM) - 0.008 * lateral**2
    yield "white", _union(core, callosum, 3.0)

    putamen = _ellipsoid(mirrored, (27.0, 4.0, 3.0), (5.5, 18.0, 12.0))
    yield "cortex", np.minimum(0.5 - np.abs(putamen + 2.5), lateral - 29.0)  # the claustrum
    yield "putamen", putamen
    yield "pallidum", _ellipsoid(mirrored, (20.0, 0.0, 1.0), (4.0, 11.0, 7.0))
    # Caudate and thalamus come after the ventricle: they bulge into it.
    ventricle = np.maximum(_tube(mirrored, _VENTRICLE), _tube(mirrored, _TEMPORAL_HORN))
    yield "fluid", ventricle
    yield "thalamus", _ellipsoid(mirrored, (11.0, -17.0, 8.0), (8.5, 15.0, 9.0))
    yield "caudate", _tube(mirrored, _CAUDATE)
    hippocampus = _tube(mirrored, _HIPPOCAMPUS)
    amygdala = _ellipsoid(mirrored, (24.0, 2.0, -26.0), (7.0, 7.0, 7.0))
    yield "hippocampus", np.maximum(hippocampus, amygdala)

    third = _ellipsoid(points, (0.0, -8.0, 2.0), (1.6, 15.0, 11.0))
    fourth = _ellipsoid(points, (0.0, -35.0, -34.0), (7.0, 4.0, 9.0))
    yield "fluid", np.maximum(np.maximum(third, fourth), _tube(points, _AQUEDUCT))


@lru_cache(maxsize=8)
def _anatomy(seed: int) -> _Anatomy:
    random = np.random.default_rng(seed)

    def lateral(waves: _Waves, sides: float) -> _Waves:
        """The same waves on both sides, but for a phase that differs: alike, not equal."""
        shift = random.normal(scale=sides, size=(len(waves.phase), 1))
        return replace(waves, frequency=np.hstack([waves.frequency, shift]))

    bend = _Waves.draw(random, 5, (50, 70))
    subject = _Anatomy(
        size=random.uniform(0.96, 1.04, size=(3, 1)),
        bend=bend,
        bend_direction=random.normal(scale=0.8, size=(3, 5)),
        curl=_Waves.draw(random, 5, (28, 40)),
        curl_direction=random.normal(scale=1.5, size=(3, 5)),
        folds=lateral(_Waves.draw(random, 14, (27, 32)), 0.06),
        small_folds=lateral(_Waves.draw(random, 12, (17, 21)), 0.1),
        depth=lateral(_Waves.draw(random, 6, (40, 60)), 0.1),
        width=lateral(_Waves.draw(random, 6, (30, 50)), 0.1),
        texture=_Waves.draw(random, 6, (40, 70)),
        fine_texture=_Waves.draw(random, 6, (4, 7)),
    )
    directions = _directions(64)
    lesions = [Lesion(MARKER_MM, MARKER_RADIUS_MM)]
    # The mirror image of the marker stays white matter.
    taken = [*lesions, Lesion((-MARKER_MM[0], MARKER_MM[1], MARKER_MM[2]), MARKER_RADIUS_MM)]
    while len(lesions) < _LESIONS:
        # Radii even in their logarithm: many small lesions, a few large ones.
        centres = random.uniform([-60, -75, -25], [60, 75, 60], size=(64, 3))
        radii = np.exp(random.uniform(math.log(0.5), math.log(3), size=64))
        for (x, y, z), radius in zip(centres.tolist(), radii.tolist(), strict=True):
            lesion = Lesion((x, y, z), radius)
            apart = all(math.dist(lesion.centre, t.centre) > radius + t.radius + 1 for t in taken)
            # All around, not only at the centre, whose distances are good to first order.
            around = _column(lesion.centre) + (radius + EDGE_MM) * directions
            if apart and subject.room(around).min() > EDGE_MM:
                lesions.append(lesion)
                taken.append(lesion)
    return replace(subject, lesions=tuple(lesions[:_LESIONS]))
