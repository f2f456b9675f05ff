"""What a fit is asked to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from napari_arssr.choices import FitMethod, Motion, Penalty, PresetName, Similarity
from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import UsageError
from napari_arssr.volume import as_triple

__all__ = ["Settings"]


_SEEDS = 2**43  # each epoch has one of its own, of 63 bits


@dataclass(frozen=True)
class Settings:
    """How stacks become one volume.

    Parameters
    ----------
    method : {"default", "srr", "irem", "bspline", "linear"}
        ``default``: SRR with poses and slice weights refined, and a prior about the difference
        from what a trained network expects, if that predicts the data better. ``srr``: of the
        registered stacks alone. ``irem``: an implicit network, see ``preset``. ``bspline`` and
        ``linear``: the mean of the interpolated stacks.
    preset : {"default", "paper"}
        Of ``irem``. ``paper``: the network of Wu et al. 2021 on registered voxel centres.
        ``default``: a multi-resolution hash grid that adds to the result of ``default``.
    spacing : float or three floats, optional
        Voxel size (z, y, x) of the volume, millimetres, along the reference's axes; by default
        cubes of the smallest side of any stack.
    reference : int
        Which stack the others are brought to; the volume spans what it spans.
    register : bool
        Whether stacks are registered; else their files say where they lie.
    metric : {"correlation", "mutual-information"}
        What registration makes the most of; as usual where there is none.
    motion : {"none", "stacks", "slices"}
        What moves during the fit of ``default`` and ``irem``: nothing, each stack as a whole, or
        each slice.
    scanner : ScannerModel
        The slice profile.
    penalty : {"tv", "tikhonov"}
        Prior of SRR.
    weight : float, optional
        Its weight; by default chosen from the data.
    network_prior : bool
        Whether ``default`` asks a trained network.
    weights : str
        Of that network: a registered name or a file.
    epochs : int, optional
        Passes of ``irem`` over all voxels; by default as published or as is enough.
    minutes : float
        The longest that ``irem`` is fitted; 0 is as long as its epochs take.
    device : str
    seed : int
    """

    method: FitMethod = "default"
    preset: PresetName = "default"
    spacing: float | Sequence[float] | None = None
    reference: int = 0
    register: bool = True
    metric: Similarity = "correlation"
    motion: Motion = "slices"
    scanner: ScannerModel = field(default_factory=lambda: ScannerModel("slice-profile"))
    penalty: Penalty = "tv"
    weight: float | None = None
    network_prior: bool = True
    weights: str = "default"
    epochs: int | None = None
    minutes: float = 0.0
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind, value in (
            ("method", FitMethod, self.method),
            ("preset", PresetName, self.preset),
            ("motion", Motion, self.motion),
            ("metric", Similarity, self.metric),
            ("penalty", Penalty, self.penalty),
        ):
            if value not in get_args(kind):
                raise UsageError(
                    f"There is no {name} {value!r}: choose {', '.join(get_args(kind))}."
                )
        if self.preset == "paper" and self.method != "irem":
            raise UsageError(
                f"The preset 'paper' is of the method irem, not of {self.method}; leave one out."
            )
        if not self.register:
            # So that fits that are alike have settings that are.
            object.__setattr__(self, "metric", "correlation")
        if self.spacing is not None:
            sides = as_triple(self.spacing, "spacing")
            if min(sides) <= 0:
                raise UsageError(f"spacing must be above 0 mm, not {self.spacing!r}.")
            object.__setattr__(self, "spacing", sides)
        if self.weight is not None and not 0 <= self.weight < math.inf:
            raise UsageError(f"The weight of a prior is 0 or more, not {self.weight!r}.")
        if self.epochs is not None and self.epochs < 1:
            raise UsageError(f"A fit takes at least one epoch, not {self.epochs!r}.")
        if not 0 <= self.minutes < math.inf:
            raise UsageError(f"A time limit is above 0 minutes, not {self.minutes!r}.")
        if not 0 <= self.seed < _SEEDS:
            raise UsageError(f"A seed is a whole number from 0 to {_SEEDS - 1}, not {self.seed!r}.")

    @property
    def refines(self) -> bool:
        """Whether slices are moved and weighed while the volume is reconstructed."""
        return self.method == "default" or (self.method == "irem" and self.preset == "default")

    @property
    def asks_network(self) -> bool:
        """Whether a trained network may have its say."""
        return self.refines and self.network_prior

    @property
    def without_use(self) -> frozenset[str]:
        """Names of the settings that the others leave nothing to say."""
        names: set[str] = set()
        if not self.register:
            names.add("metric")
        if not self.refines:
            names |= {"motion", "network_prior"}
        if not self.asks_network:
            names.add("weights")
        if self.method in ("bspline", "linear") or self.preset == "paper":
            names |= {"scanner", "penalty", "weight"}
        if self.method != "irem":
            names |= {"epochs", "minutes"}
        return frozenset(names)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a header."""
        from dataclasses import asdict

        values = asdict(self)
        if self.spacing is not None:
            values["spacing"] = list(values["spacing"])
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """The inverse of :meth:`to_dict`; raises TypeError, KeyError or UsageError."""
        return cls(**values | {"scanner": ScannerModel(**values["scanner"])})
