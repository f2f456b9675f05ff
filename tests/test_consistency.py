"""Consistency: a result that, measured again, gives the input; slab by slab and for boxes."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_arssr import cli, upsample
from napari_arssr.choices import SCANNER_KINDS, ScannerKind
from napari_arssr.consistency import Consistency
from napari_arssr.degradation import ScannerModel
from napari_arssr.evaluation.back_projection import back_project
from napari_arssr.field import CubicField
from napari_arssr.interpolation import spline_matrix
from napari_arssr.phantom import Phantom
from napari_arssr.volume import Box, Grid, Volume

FloatArray = npt.NDArray[np.float32]
KINDS: tuple[ScannerKind, ...] = ("gaussian", "slice-profile", "kspace", "cubic")


def random_volume(shape: tuple[int, int, int], seed: int = 0) -> Volume:
    generator = np.random.default_rng(seed)
    grid = Grid.from_spacing(shape, (1.5, 1.0, 0.8))
    return Volume(generator.normal(100, 30, shape).astype(np.float32), grid.affine, name="low")


def cut(data: FloatArray, ends: list[int]) -> Iterator[FloatArray]:
    """Slabs of an array along z, cut before the planes ``ends``."""
    yield from np.split(data, sorted(set(ends)))


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    scale=st.tuples(*[st.floats(1.0, 4.0)] * 3),
    ends=st.lists(st.integers(1, 20), max_size=6),
    seed=st.integers(0, 99),
)
def test_slab_by_slab_it_is_one_step_of_back_projection(
    kind: ScannerKind, scale: tuple[float, float, float], ends: list[int], seed: int
) -> None:
    low = random_volume((7, 6, 9), seed)
    grid = low.grid.scaled(scale)
    scanner = ScannerModel(kind)
    estimate = np.random.default_rng(seed).normal(100, 30, grid.shape).astype(np.float32)
    step = Consistency(low, grid, grid.box, scanner)
    assert step.source == grid.box
    corrected = np.concatenate(list(step.correct(cut(estimate, ends))))
    expected = back_project(low, grid, scanner, steps=1, start=estimate).data
    np.testing.assert_allclose(corrected, expected, atol=2e-3)  # of values around 100


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    scale=st.tuples(*[st.floats(1.0, 3.0)] * 3),
    corner=st.tuples(*[st.floats(0, 0.9)] * 3),
    end=st.integers(1, 20),
)
def test_a_box_is_corrected_as_in_the_whole(
    kind: ScannerKind, scale: tuple[float, float, float], corner: tuple[float, ...], end: int
) -> None:
    low = random_volume((30, 8, 9))
    grid = low.grid.scaled(scale)
    scanner = ScannerModel(kind)
    estimate = np.random.default_rng(1).normal(100, 30, grid.shape).astype(np.float32)
    start = [int(share * n) for share, n in zip(corner, grid.shape, strict=True)]
    stop = [min(a + 5, n) for a, n in zip(start, grid.shape, strict=True)]
    box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    step = Consistency(low, grid, box, scanner)
    parts = list(step.correct(cut(estimate[step.source.slices], [end])))
    whole = np.concatenate(list(Consistency(low, grid, grid.box, scanner).correct([estimate])))
    np.testing.assert_allclose(np.concatenate(parts), whole[box.slices], atol=2e-3)


def test_a_small_box_asks_for_a_margin_only_and_says_what_it_holds() -> None:
    low = random_volume((60, 60, 60))
    grid = low.grid.scaled(2)
    box = Box((60, 60, 60), (62, 70, 70))
    step = Consistency(low, grid, box, ScannerModel())
    assert step.source.shape[0] < 60
    assert step.source_grid == grid.crop(step.source)
    assert 2 * 100 * 4 < step.held_bytes < 4 * step.source.size


class Counted(np.ndarray):
    """An array that counts its voxels that are worked on, by operation."""

    seen: ClassVar[Counter[str]] = Counter()

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        self.seen[ufunc.__name__] += max(np.size(value) for value in inputs)
        options["out"] = tuple(np.asarray(value) for value in options.get("out", ())) or None
        return getattr(ufunc, method)(*map(np.asarray, inputs), **options)


def test_each_plane_of_the_input_is_differenced_once_however_thin_the_slabs() -> None:
    low = random_volume((30, 6, 7))
    grid = low.grid.scaled(2)
    estimate = np.random.default_rng(1).normal(100, 30, grid.shape).astype(np.float32)
    step = Consistency(low, grid, grid.box, ScannerModel())
    whole = np.concatenate(list(step.correct([estimate])))
    Counted.seen.clear()
    step._input = step._input.view(Counted)
    thin = np.concatenate(list(step.correct(cut(estimate, list(range(1, 60))))))
    assert Counted.seen == {"isfinite": low.grid.size, "subtract": low.grid.size}
    np.testing.assert_allclose(thin, whole, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("margin", [0, 20])
def test_no_more_is_held_than_is_said(margin: int) -> None:
    low = random_volume((48, 64, 64))
    grid = low.grid.scaled(1.5)
    wanted = [(margin, n - margin) for n in grid.shape]
    box = Box(*zip(*wanted, strict=True))
    thickness = 3
    step = Consistency(low, grid, box, ScannerModel())
    z, y, x = step.source.shape
    slab = 4 * thickness * y * x
    held = []

    def slabs() -> Iterator[FloatArray]:
        for start in range(0, z, thickness):
            held.append(tracemalloc.get_traced_memory()[0])
            yield np.zeros((min(thickness, z - start), y, x), dtype=np.float32)

    tracemalloc.start()
    try:
        for _ in step.correct(slabs()):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    said = step.held_bytes - step._input.nbytes  # which was there before
    assert 0.8 * said < max(held) < 1.05 * said + slab
    assert peak < said + 8 * slab  # and what is done with one


def test_the_result_measured_again_is_nearer_to_the_input() -> None:
    scanner = ScannerModel()
    truth = Phantom(1).sample(Phantom.grid(4.0))
    low = scanner.measure(truth, truth.grid.scaled(0.5))
    estimate = CubicField(low).sample(truth.grid).data
    step = Consistency(low, truth.grid, truth.grid.box, scanner)
    corrected = Volume(np.concatenate(list(step.correct([estimate]))), truth.grid.affine)

    def missing(volume: Volume) -> float:
        return float(np.abs(scanner.measure(volume, low.grid).data - low.data).mean())

    assert missing(corrected) < 0.5 * missing(Volume(estimate, truth.grid.affine))
    error = np.square(corrected.data - truth.data).mean()
    assert error < 0.95 * np.square(estimate - truth.data).mean()


def test_unknown_voxels_stay_unknown_and_spoil_nothing_else() -> None:
    low = random_volume((20, 9, 9))
    data = low.data.copy()
    data[10, 4, 4] = np.nan
    grid = low.grid.scaled(2)
    estimate = np.random.default_rng(1).normal(100, 30, grid.shape).astype(np.float32)
    holed = estimate.copy()
    holed[20:22, 8:10, 8:10] = np.nan
    broken = Consistency(replace(low, data=data), grid, grid.box, ScannerModel())
    corrected = np.concatenate(list(broken.correct(cut(holed, [21]))))
    np.testing.assert_array_equal(np.isnan(corrected), np.isnan(holed))
    whole = np.concatenate(
        list(Consistency(low, grid, grid.box, ScannerModel()).correct([estimate]))
    )
    np.testing.assert_allclose(corrected[:4], whole[:4], atol=0.2)  # far from the hole


@pytest.mark.parametrize("kind", SCANNER_KINDS)
def test_nothing_is_corrected_by_what_unknown_voxels_would_have_shown(kind: ScannerKind) -> None:
    # Lobes below zero and above cancel out beside a slab, but what lies in it still counts.
    low = random_volume((20, 4, 4))
    grid = low.grid.scaled(2)
    scanner = ScannerModel(kind)
    estimate = np.random.default_rng(1).normal(100, 30, grid.shape).astype(np.float32)
    holed = estimate.copy()
    holed[20:22] = np.nan
    step = Consistency(low, grid, grid.box, scanner)
    corrected = np.concatenate(list(step.correct([holed])))
    reached = np.abs(scanner.matrix(40, 20)[:, 20:22]).sum(axis=1) > 1e-6
    untouched = np.abs(spline_matrix(np.arange(40) / 2 - 0.25, 20)[:, ~reached]).sum(axis=1) < 1e-6
    rows = untouched & ~np.isnan(holed[:, 0, 0])
    np.testing.assert_array_equal(corrected[rows], holed[rows])


@pytest.mark.parametrize("box", [None, Box((1, 2, 0), (5, 7, 8))])
def test_upsampling_with_consistency_is_upsampling_and_one_step(box: Box | None) -> None:
    low = random_volume((8, 9, 10))
    scanner = ScannerModel("slice-profile", 1.2)
    options = {"scale": (2.5, 1.0, 1.5), "precision": "float32"}
    plain = upsample(low, **options)
    expected = back_project(low, plain.grid, scanner, steps=1, start=plain.data)
    part = plain.grid.box if box is None else low.grid.box_in(plain.grid, box)
    result = upsample(low, **options, box=box, consistency=scanner)
    np.testing.assert_allclose(result.data, expected.data[part.slices], atol=5e-3)
    assert result.grid == plain.grid.crop(part)
    recorded = result.metadata["upsampling"]["consistency"]
    assert recorded == {"kind": "slice-profile", "width": 1.2}


def test_the_command_line_offers_it_and_the_header_says_so(tmp_path: Path) -> None:
    low = random_volume((6, 7, 8))
    source, output = tmp_path / "low.nii", tmp_path / "high.nii"
    nib.save(nib.Nifti1Image(low.data.T, low.affine), source)
    arguments = ["upsample", str(source), str(output), "--scale", "1.5", "--precision", "float32"]
    assert cli.main([*arguments, "--consistency", "kspace:1.3", "--quiet"]) == 0
    image = nib.load(output)
    expected = upsample(low, 1.5, precision="float32", consistency=ScannerModel("kspace", 1.3))
    np.testing.assert_allclose(np.asarray(image.dataobj).T, expected.data, atol=1e-3)
    notes = [e.get_content() for e in image.header.extensions]
    record = json.loads(notes[0])["napari-arssr"]
    assert record["consistency"] == {"kind": "kspace", "width": 1.3}


@pytest.mark.parametrize(
    ("text", "named"),
    [("blur", "blur"), ("gaussian:wide", "wide"), ("gaussian:0", "above 0"), ("kspace:nan", "nan")],
)
def test_a_scanner_that_cannot_be_meant_is_refused(
    text: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["upsample", "in.nii", str(tmp_path / "out.nii"), "--scale", "2"]
    with pytest.raises(SystemExit, match="2"):
        cli.main([*arguments, "--consistency", text])
    assert named in capsys.readouterr().err
