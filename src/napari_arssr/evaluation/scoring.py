"""All metrics of one result, and what they need of its reference, worked out once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_arssr.choices import METRICS
from napari_arssr.errors import ArssrError, UsageError
from napari_arssr.evaluation import segmentation
from napari_arssr.evaluation.lpc_si import lpc_si
from napari_arssr.evaluation.methods import Case
from napari_arssr.evaluation.metrics import data_consistency, psnr, ssim_in
from napari_arssr.evaluation.protocol import Prepared
from napari_arssr.evaluation.psi import psi
from napari_arssr.evaluation.rows import MEASURED_WITH, Row, columns_of, counted
from napari_arssr.evaluation.slices import Intensities, SliceScores, slicewise
from napari_arssr.volume import Volume

if TYPE_CHECKING:
    from napari_arssr.evaluation.lpips import LPIPS
    from napari_arssr.evaluation.segmentation import Priors

__all__ = ["Problem", "Reference", "Tools", "score", "sharpness"]

FloatArray = npt.NDArray[np.float32]

SHARPNESS = ("psi", "lpc-si")
"""Metrics that know no reference."""


@dataclass(frozen=True)
class Tools:
    """What some metrics need; without them they are not available.

    Parameters
    ----------
    lpips : LPIPS or None
    priors : Priors or None
    """

    lpips: LPIPS | None = None
    priors: Priors | None = None

    @cached_property
    def digests(self) -> dict[str, str]:
        """Columns of a row that say what LPIPS and Dice are measured with."""
        return {
            "lpips_sha256": self.lpips.sha256 if self.lpips is not None else "",
            "priors_sha256": self.priors.sha256 if self.priors is not None else "",
        }

    def measured(self, row: Row) -> set[str]:
        """Metrics that a row has, those apart that were measured with something else."""
        stale = {
            metric
            for metric, column in MEASURED_WITH.items()
            if getattr(row, column) != self.digests[column]
        }
        return row.attempted - stale


@dataclass(frozen=True)
class Problem:
    """A metric that could not be had.

    Parameters
    ----------
    metric, reason : str
    final : bool
        Whether it does not exist for this result; else it may be had another time.
    """

    metric: str
    reason: str
    final: bool


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference, and scores of its own that results are compared by."""

    prepared: Prepared
    _cache: dict[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def intensities(self) -> Intensities:
        """The range by which every result is brought to [0, 1]."""
        return Intensities.of(self.prepared.volume.data)

    @cached_property
    def unit(self) -> FloatArray:
        """The reference in [0, 1]."""
        return self.intensities.unit(self.prepared.volume.data)

    @cached_property
    def psi(self) -> SliceScores:
        """PSI of the reference's own slices."""
        return _psi(self.unit)

    @cached_property
    def lpc_si(self) -> SliceScores:
        """LPC-SI of the reference's own slices."""
        return _lpc_si(self.unit)

    def labels(self, priors: Priors | None) -> npt.NDArray[np.uint8]:
        """Segmentation of the reference."""
        if "labels" not in self._cache:
            self._cache["labels"] = self.segment(self.prepared.volume, priors)
        labels: npt.NDArray[np.uint8] = self._cache["labels"]
        return labels

    def segment(self, volume: Volume, priors: Priors | None) -> npt.NDArray[np.uint8]:
        """Segmentation of the reference or of a result, with priors registered to the reference."""
        if priors is not None:
            priors = priors.cut(self.prepared.whole, self.prepared.box)
        # By its name Priors knows what it has registered already.
        name = f"{self.prepared.dataset}/{self.prepared.name}"
        return segmentation.segment(replace(volume, name=name), self.prepared.mask, priors)


def sharpness(
    reference: Reference, names: Iterable[str] = SHARPNESS
) -> tuple[dict[str, Any], list[Problem]]:
    """PSI and LPC-SI of a reference itself: columns of a row, and what could not be had."""

    def own(name: str) -> dict[str, Any]:
        scores = reference.psi if name == "psi" else reference.lpc_si
        return _slice_columns(name.replace("-", "_"), scores.where(scores))

    return _collect({name: partial(own, name) for name in names})


def score(
    names: Iterable[str],
    reference: Reference,
    result: Volume,
    case: Case,
    tools: Tools,
    *,
    made_of_whole: bool = False,
) -> tuple[dict[str, Any], list[Problem]]:
    """Metrics of a result.

    Parameters
    ----------
    names : iterable of str
        Some of :data:`~napari_arssr.choices.METRICS`.
    reference : Reference
    result : Volume
    case : Case
    tools : Tools
    made_of_whole : bool
        Whether it was made of the uncut volume's LR, which is not at hand: it cannot be asked
        how far it is from that.

    Returns
    -------
    dict
        Columns of a row; ``metrics`` and ``impossible`` as
        :func:`~napari_arssr.evaluation.rows.merged` takes them.
    list of Problem
        What could not be worked out, and why.

    Raises
    ------
    UsageError
        If the result is not one to be scored at all: of another shape, or not finite.
    """
    truth = reference.prepared.volume
    if result.data.shape != truth.data.shape:
        raise UsageError(
            f"the result has {result.data.shape} voxels (z, y, x) and the reference "
            f"{truth.data.shape}."
        )
    wrong = int(np.count_nonzero(~np.isfinite(result.data)))
    if wrong:
        raise UsageError(f"the result is not finite in {counted(wrong, 'voxel')}.")
    columns, problems = _collect(
        {
            name: _uncut
            if name == "consistency" and made_of_whole
            else partial(_SCORES[name], reference, result, case, tools)
            for name in METRICS
            if name in set(names)
        }
    )
    by = {
        column: tools.digests[column]
        for name, column in MEASURED_WITH.items()
        if name in set(names)
    }
    return columns | by, problems


def _collect(
    scores: dict[str, Callable[[], dict[str, Any]]],
) -> tuple[dict[str, Any], list[Problem]]:
    """Columns of all metrics that can be had; what a row said of them before is forgotten."""
    columns: dict[str, Any] = {}
    problems = []
    for name, work in scores.items():
        columns |= _blank(name)
        try:
            columns |= work()
        except ArssrError as error:
            # A value that cannot be meant never can; files and memory may be there next time.
            problems.append(Problem(name, str(error), isinstance(error, UsageError)))
    passing = {problem.metric for problem in problems if not problem.final}
    return columns | {
        "metrics": [name for name in scores if name not in passing],
        "impossible": {p.metric: p.reason for p in problems if p.final},
    }, problems


def _blank(metric: str) -> dict[str, Any]:
    """The columns of a metric without values."""
    return {name: getattr(Row(), name) for name in columns_of(metric)}


def _score_psnr(
    reference: Reference, result: Volume, _case: Case, _tools: Tools
) -> dict[str, float]:
    truth, mask = reference.prepared.volume.data, reference.prepared.mask
    return {
        "psnr": psnr(truth, result.data),
        "psnr_mask": psnr(truth, result.data, mask=mask),
    }


def _score_ssim(
    reference: Reference, result: Volume, _case: Case, _tools: Tools
) -> dict[str, float]:
    truth, mask = reference.prepared.volume.data, reference.prepared.mask
    whole, inside = ssim_in(truth, result.data, [None, mask])
    return {"ssim": whole, "ssim_mask": inside}


def _score_lpips(
    reference: Reference, result: Volume, _case: Case, tools: Tools
) -> dict[str, float]:
    from napari_arssr.evaluation.lpips import lpips_slices

    assert tools.lpips is not None
    unit = reference.intensities.unit(result.data)
    return _slice_columns("lpips", lpips_slices(tools.lpips, reference.unit, unit))


def _score_psi(
    reference: Reference, result: Volume, _case: Case, _tools: Tools
) -> dict[str, float]:
    scores = _psi(reference.intensities.unit(result.data))
    return _slice_columns("psi", _on_slices_of(scores, reference.psi))


def _score_lpc_si(
    reference: Reference, result: Volume, _case: Case, _tools: Tools
) -> dict[str, float]:
    scores = _lpc_si(reference.intensities.unit(result.data))
    return _slice_columns("lpc_si", _on_slices_of(scores, reference.lpc_si))


def _score_consistency(
    _reference: Reference, result: Volume, case: Case, _tools: Tools
) -> dict[str, float]:
    return {"consistency": data_consistency(result, case.low, case.measurement.scanner)}


def _uncut() -> dict[str, Any]:
    raise UsageError("results made elsewhere were made of the whole volume and not of its part.")


def _score_dice(
    reference: Reference, result: Volume, _case: Case, tools: Tools
) -> dict[str, float]:
    regions = segmentation.TISSUES if tools.priors is None else segmentation.REGIONS
    truth = reference.labels(tools.priors)
    found = reference.segment(result, tools.priors)
    values = segmentation.dice(found, truth, len(regions))
    present = [value for value in values if not np.isnan(value)]
    if not present:
        raise UsageError("neither the result nor its reference has any of the tissues.")
    columns = {f"dice_{region}": value for region, value in zip(regions, values, strict=True)}
    return columns | {"dice": float(np.mean(present))}


_SCORES = {
    "psnr": _score_psnr,
    "ssim": _score_ssim,
    "lpips": _score_lpips,
    "psi": _score_psi,
    "lpc-si": _score_lpc_si,
    "consistency": _score_consistency,
    "dice": _score_dice,
}


def _psi(unit: FloatArray) -> SliceScores:
    return slicewise(psi, unit)


def _lpc_si(unit: FloatArray) -> SliceScores:
    return slicewise(lpc_si, unit * np.float32(255))


def _on_slices_of(scores: SliceScores, reference: SliceScores) -> SliceScores:
    """Slices in which the reference can be scored; what is flat there in a result scores 0."""
    z, y, x = (
        np.where(np.isnan(mine) & ~np.isnan(other), 0.0, mine)
        for mine, other in zip(scores.directions, reference.directions, strict=True)
    )
    return SliceScores(z, y, x).where(reference)


def _slice_columns(name: str, scores: SliceScores) -> dict[str, Any]:
    if np.isnan(scores.mean):
        raise UsageError(
            "no slice can be scored: slices are too small, or the same everywhere, or without "
            "edges."
        )
    return {name: scores.mean, f"{name}_left_out": scores.left_out}
