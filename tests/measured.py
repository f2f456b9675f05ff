"""The LR volume of a reference, as the command would make it."""

from napari_arssr.degradation import ScannerModel
from napari_arssr.evaluation.methods import Case, Measurement
from napari_arssr.evaluation.protocol import Prepared, factors_of, make_case


def measured(
    prepared: Prepared,
    scale,
    scanner: ScannerModel,
    *,
    noise: float = 0.0,
    seed: int = 0,
    keep_thick: bool = False,
) -> Case:
    factors = factors_of(prepared, scale, keep_thick=keep_thick)
    return make_case(prepared, Measurement(factors, scanner, noise, seed))
