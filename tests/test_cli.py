"""The command line: every option, and one clear sentence for whatever goes wrong."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
import torch
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation
from tiny import Ran, Run

import napari_arssr
from napari_arssr import arguments, cli, download, weights
from napari_arssr import io as files
from napari_arssr.field import NetworkField
from napari_arssr.files import sha256_of
from napari_arssr.models import ModelConfig, build
from napari_arssr.terminal import ProgressLine

# Sizes as the file counts them: (i, j, k).
SHAPE = (10, 9, 6)
SIZES = (1.1, 0.9, 3.0)

Refuse = Callable[..., str]


def oblique() -> npt.NDArray[np.float64]:
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", [10, -20, 35], degrees=True).as_matrix()
    affine[:3, :3] = turn * SIZES
    affine[:3, 3] = [-31.5, 12.25, 70.0]
    return affine


def voxels(shape: tuple[int, ...] = SHAPE) -> npt.NDArray[np.float64]:
    """Structure and noise around 300."""
    generator = np.random.default_rng(3)
    i, j, k = np.meshgrid(*(np.linspace(0, 5, n) for n in shape[:3]), indexing="ij")
    wave = 300 + 100 * np.sin(i + 1) * np.cos(j) * np.sin(k)
    return wave.reshape(*shape[:3], *[1] * (len(shape) - 3)) + 10 * generator.normal(size=shape)


def save_scan(
    path: Path, data: npt.NDArray[Any] | None = None, affine: npt.NDArray[np.float64] | None = None
) -> Path:
    """Written by nibabel, not by what is tested."""
    data = voxels().astype(np.float32) if data is None else data
    nib.save(nib.Nifti1Image(data, oblique() if affine is None else affine), path)
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A 3D volume in a folder of its own."""
    return save_scan(tmp_path / "scan.nii.gz")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.nii.gz"


@pytest.fixture
def upsampled(run: Run, tiny: Path, scan: Path, out: Path) -> Callable[..., nib.Nifti1Image]:
    """Upsample ``scan`` with the tiny network and options, and load the result."""

    def go(*options: object, source: Path = scan, output: Path = out) -> nib.Nifti1Image:
        ran = run("upsample", source, output, "--weights", tiny, *options)
        assert ran.status == 0, ran.err
        image = nib.load(output, mmap=False)
        image.get_fdata()
        return image

    return go


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def one_sentence(err: str) -> str:
    """The one line on stderr."""
    assert err.startswith("napari-arssr")
    assert err.count("\n") == 1, err
    assert err.endswith((".\n", "?\n"))
    return err


@pytest.fixture
def refuse(run: Run, tmp_path: Path) -> Refuse:
    """Run what fails: one sentence with all ``parts``, the status, and no file has changed."""

    def go(status: int, parts: list[str], *words: object) -> str:
        before = snapshot(tmp_path)
        ran = run(*words)
        message = one_sentence(ran.err)
        for part in parts:
            assert part in message
        assert (ran.status, ran.out) == (status, "")
        assert snapshot(tmp_path) == before
        return message

    return go


def faces(image: nib.Nifti1Image) -> npt.NDArray[np.float64]:
    """The eight outer corners, in millimetres."""
    ends = product(*((-0.5, n - 0.5) for n in image.shape[:3]))
    return np.asarray(apply_affine(image.affine, np.array(list(ends))))


def provenance(image: nib.Nifti1Image) -> dict[str, Any]:
    (extension,) = image.header.extensions
    record: dict[str, Any] = json.loads(extension.get_content())["napari-arssr"]
    return record


# The command itself --------------------------------------------------------------------------


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    ran = capsys.readouterr()
    assert ran.err == ""
    assert ran.out.startswith("usage: napari-arssr")
    for command in ("app", "upsample", "weights", "simulate", "train"):
        assert command in ran.out


def test_the_version(run: Run) -> None:
    ran = run("--version")
    assert ran == Ran(0, f"napari-arssr {napari_arssr.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["upsmaple"], ["'upsmaple'", "upsample", "napari-arssr --help"]),
        (["upsample"], ["IN, OUT", "napari-arssr upsample --help"]),
        (["upsample", "a.nii", "--scale", "2"], ["OUT"]),
        (["upsample", "a.nii", "b.nii"], ["--scale", "--spacing", "--isotropic", "--shape"]),
        (["upsample", "a.nii", "b.nii", "--scale", "2", "--isotropic"], ["not allowed with"]),
        (["upsample", "a.nii", "b.nii", "--scale", "2", "--depth", "3"], ["--depth"]),
        (["weights"], ["ACTION"]),
        (["weights", "info"], ["name"]),
        (["simulate", "a.nii", "b.nii"], ["--scale"]),
        (["train", "folder"], ["--out"]),
    ],
)
def test_wrong_words_give_one_line_and_the_way_to_the_help(
    refuse: Refuse, words: list[str], parts: list[str]
) -> None:
    refuse(2, [*parts, "see 'napari-arssr", "--help'"], *words)


def test_a_script_may_call_it_from_any_thread(run: Run) -> None:
    """Signal handlers can be set in the main one only."""
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(cli.main(["weights", "list"])))
    thread.start()
    thread.join()
    assert statuses == [0]


def test_signal_handlers_are_put_back(run: Run) -> None:
    before = [signal.getsignal(number) for number in cli._ENDING]
    run("weights", "list")
    run("weights", "info", "nothing")
    assert [signal.getsignal(number) for number in cli._ENDING] == before


# How fine ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        (["--scale", "2.5"], (25, 23, 15)),
        (["--scale", "1,1,4"], (10, 9, 24)),
        (["--spacing", "0.55"], (20, 15, 33)),
        (["--spacing", "1.1,0.45,3"], (10, 18, 6)),
        (["--isotropic"], (12, 9, 20)),
        (["--shape", "13,11,7"], (13, 11, 7)),
    ],
)
def test_the_result_overlays_its_input(
    upsampled: Callable[..., nib.Nifti1Image],
    scan: Path,
    out: Path,
    options: list[str],
    shape: tuple[int, int, int],
) -> None:
    """Three numbers are i, j, k; two other programs find the same outer faces."""
    untouched = scan.read_bytes()
    result = upsampled(*options)
    source = nib.load(scan)
    assert result.shape == shape
    assert result.get_data_dtype() == np.float32
    assert np.isfinite(result.get_fdata()).all()
    sizes = [s * n / m for s, n, m in zip(SIZES, SHAPE, shape, strict=True)]
    np.testing.assert_allclose(result.header.get_zooms(), sizes, rtol=1e-6)
    np.testing.assert_allclose(faces(result), faces(source), atol=1e-4)
    np.testing.assert_allclose(result.get_qform(), result.get_sform(), atol=1e-4)

    seen, before = sitk.ReadImage(out), sitk.ReadImage(scan)
    assert seen.GetSize() == shape
    for corner in product((-0.5, 1), repeat=3):
        points = [
            image.TransformContinuousIndexToPhysicalPoint(
                [
                    -0.5 if end < 0 else n - 0.5
                    for end, n in zip(corner, image.GetSize(), strict=True)
                ]
            )
            for image in (seen, before)
        ]
        np.testing.assert_allclose(points[0], points[1], atol=1e-4)
    assert scan.read_bytes() == untouched


def test_the_numbers_are_those_of_the_python_function(
    upsampled: Callable[..., nib.Nifti1Image], scan: Path, tiny: Path
) -> None:
    result = upsampled("--scale", "1,2,1.5").get_fdata()
    expected = napari_arssr.upsample(napari_arssr.read(scan), (1.5, 2, 1), weights=tiny)
    np.testing.assert_array_equal(result.T, expected.data)
    # Bright is still where it was bright.
    rough = result.reshape(10, 1, 9, 2, 9).mean(axis=(1, 3))[:, :, ::3]
    assert np.corrcoef(rough.ravel(), voxels()[:, :, ::2].ravel())[0, 1] > 0.7


def test_scale_1_gives_the_input_itself(
    upsampled: Callable[..., nib.Nifti1Image], scan: Path
) -> None:
    result, source = upsampled("--scale", "1"), nib.load(scan)
    np.testing.assert_array_equal(result.get_fdata(), source.get_fdata())
    np.testing.assert_allclose(result.affine, source.affine, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--scale", "0"], ["--scale", "'0'", "above 0"]),
        (["--scale", "-2"], ["--scale", "'-2'", "above 0"]),
        (["--scale", "-2,1,1"], ["--scale", "'-2,1,1'", "above 0"]),
        (["--scale", "nan"], ["--scale", "'nan'", "finite"]),
        (["--scale", "inf"], ["--scale", "'inf'", "finite"]),
        (["--scale", "-inf"], ["--scale", "'-inf'", "finite"]),
        (["--scale", "0.5"], ["--scale", "'0.5'", "at least 1"]),
        (["--scale", "2,2,0.9"], ["--scale", "'2,2,0.9'", "at least 1"]),
        (["--scale", "2,2"], ["--scale", "'2,2'", "one number nor three"]),
        (["--scale", "two"], ["--scale", "'two'", "i,j,k"]),
        (["--scale", "1e300"], ["1e+300", "too large"]),
        (["--spacing", "0"], ["--spacing", "above 0"]),
        (["--spacing", "1,-1,1"], ["--spacing", "'1,-1,1'", "above 0"]),
        (["--spacing", "1e-310"], ["1e-310 mm", "too small"]),
        (["--spacing", "5"], ["scan.nii.gz", "coarser", "k (6 to 4 voxels)", "1.1 × 0.9 × 3 mm"]),
        (["--shape", "10,9"], ["--shape", "'10,9'", "i,j,k"]),
        (["--shape", "0,9,6"], ["--shape", "'0,9,6'", "at least 1"]),
        (["--shape", "10,9,5"], ["scan.nii.gz", "coarser", "k (6 to 5 voxels)"]),
        (["--shape", "20,9,99999999999999999999"], ["too large"]),
    ],
)
def test_a_size_that_cannot_be_meant_is_wrong_use(
    *, refuse: Refuse, scan: Path, out: Path, tiny: Path, options: list[str], parts: list[str]
) -> None:
    refuse(2, parts, "upsample", scan, out, "--weights", tiny, *options)


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz", "out.tif"])
def test_a_result_that_no_disk_holds_is_refused_before_the_work(
    refuse: Refuse, scan: Path, tmp_path: Path, tiny: Path, name: str
) -> None:
    parts = ["no room on the disk", name, f"{2 * 540 * 5000**3:,} bytes", "fewer voxels"]
    options = ["--scale", "5000", "--dtype", "int16"]
    refuse(1, parts, "upsample", scan, tmp_path / name, "--weights", tiny, *options)


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
def test_a_result_that_could_fit_only_if_it_were_all_background_is_refused(
    refuse: Refuse, scan: Path, tmp_path: Path, tiny: Path, name: str
) -> None:
    free = shutil.disk_usage(tmp_path).free
    side = round((free * 30 / 4) ** (1 / 3))
    shape = f"{side},{side},{side}"
    words = ["upsample", scan, tmp_path / name, "--weights", tiny, "--shape", shape]
    refuse(1, ["no room on the disk", name], *words)


@pytest.mark.parametrize("command", ["upsample", "simulate"])
@pytest.mark.parametrize("output", ["out.nii", "no-suffix"])
def test_a_missing_input_is_told_before_anything_of_the_output(
    refuse: Refuse, tmp_path: Path, command: str, output: str
) -> None:
    missing = tmp_path / "missing.nii"
    words = [command, missing, tmp_path / output, "--scale", "2"]
    assert refuse(1, [f"{missing} does not exist"], *words).count(output) == 0


def test_wrong_use_makes_no_folder(refuse: Refuse, scan: Path, tmp_path: Path) -> None:
    words = ["upsample", scan.parent, tmp_path / "results", "--scale", "2"]
    refuse(2, ["nope"], *words, "--weights", "nope")
    assert not (tmp_path / "results").exists()


# A part --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["2", "2.5", "1,1,4"])
def test_a_box_is_the_same_part_of_the_whole(
    upsampled: Callable[..., nib.Nifti1Image], scan: Path, tmp_path: Path, scale: str
) -> None:
    whole = upsampled("--scale", scale)
    part = upsampled("--scale", scale, "--box", "2:7,0:4,3:6", output=tmp_path / "part.nii.gz")
    start = np.linalg.solve(whole.affine, part.affine[:, 3])[:3]
    np.testing.assert_allclose(start, np.rint(start), atol=1e-4)
    index = tuple(
        slice(a, a + n) for a, n in zip(np.rint(start).astype(int), part.shape, strict=True)
    )
    np.testing.assert_allclose(part.get_fdata(), whole.get_fdata()[index], rtol=1e-5)
    np.testing.assert_allclose(part.affine[:3, :3], whole.affine[:3, :3], atol=1e-6)
    # In voxels of the input its faces are those of the box, to half a voxel of the result.
    inside = apply_affine(np.linalg.inv(nib.load(scan).affine), faces(part)) + 0.5
    half = 0.5 * np.array(SHAPE) / whole.shape + 1e-3
    assert (np.abs(inside.min(axis=0) - [2, 0, 3]) <= half).all()
    assert (np.abs(inside.max(axis=0) - [7, 4, 6]) <= half).all()


def test_a_box_in_millimetres_is_in_the_world(
    upsampled: Callable[..., nib.Nifti1Image], tmp_path: Path
) -> None:
    """RAS millimetres, whatever way the voxels run: here i runs to the left, k to anterior."""
    affine = np.array([[-2, 0, 0, 9], [0, 0, 3, -8], [0, 1, 0, 5], [0, 0, 0, 1.0]])
    source = save_scan(tmp_path / "scan.nii", affine=affine)
    # Voxels i 2 to 4, j 1 to 6, k 3 to 4 span x 9-2·4.5 to 9-2·1.5, z 5+.5 to 5+6.5, y 0.5 to 6.5.
    by_voxels = upsampled("--scale", "2", "--box", "2:5,1:7,3:5", source=source)
    by_world = upsampled(
        "--scale", "2", "--box", "mm:0:6,-0.5:5.5,5.5:11.5",
        source=source, output=tmp_path / "world.nii",
    )  # fmt: skip
    assert by_voxels.shape == by_world.shape == (6, 12, 4)
    np.testing.assert_array_equal(by_world.get_fdata(), by_voxels.get_fdata())
    np.testing.assert_allclose(by_world.affine, by_voxels.affine)
    # A block that reaches beyond the volume is cut to it.
    beyond = upsampled(
        "--scale", "1", "--box", "mm:-1000:1000,-1000:-6,-1000:1000",
        source=source, output=tmp_path / "beyond.nii",
    )  # fmt: skip
    assert beyond.shape == (10, 9, 2)


@pytest.mark.parametrize(
    ("box", "parts"),
    [
        ("8:12,0:4,0:4", ["scan.nii.gz", "--box 8:12,0:4,0:4", "outside", "10 × 9 × 6"]),
        ("-3:5,0:4,0:4", ["scan.nii.gz", "--box -3:5,0:4,0:4", "outside", "10 × 9 × 6"]),
        ("mm:900:950,0:1,0:1", ["scan.nii.gz", "900", "950", "mm", "outside"]),
        ("3:3,0:4,0:4", ["--box", "'3:3,0:4,0:4'", "start must lie before its stop"]),
        ("5:3,0:4,0:4", ["--box", "'5:3,0:4,0:4'", "start must lie before its stop"]),
        ("mm:5:3,0:4,0:4", ["--box", "start must lie before its stop"]),
        ("0:4,0:4", ["--box", "'0:4,0:4'", "i0:i1,j0:j1,k0:k1"]),
        ("a:b,0:4,0:4", ["--box", "i0:i1,j0:j1,k0:k1"]),
        ("0.5:4,0:4,0:4", ["--box", "whole numbers", "mm:"]),
        ("0:inf,0:4,0:4", ["--box", "finite"]),
        ("mm:0:inf,0:4,0:4", ["--box", "finite"]),
        ("nan:4,0:4,0:4", ["--box", "finite"]),
    ],
)
def test_a_box_that_is_none_is_wrong_use(
    *, refuse: Refuse, scan: Path, out: Path, tiny: Path, box: str, parts: list[str]
) -> None:
    refuse(2, parts, "upsample", scan, out, "--weights", tiny, "--scale", "2", "--box", box)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Three frames, 2.5 s apart."""
    image = nib.Nifti1Image(voxels((*SHAPE, 3)).astype(np.float32), oblique())
    image.header["pixdim"][4] = 2500
    image.header.set_xyzt_units("mm", "msec")
    nib.save(image, tmp_path / "series.nii")
    return tmp_path / "series.nii"


def test_4d_in_is_4d_out_with_its_time_step(
    upsampled: Callable[..., nib.Nifti1Image], series: Path, tmp_path: Path
) -> None:
    whole = upsampled("--scale", "2", source=series)
    assert whole.shape == (20, 18, 12, 3)
    assert whole.header.get_zooms()[3] == 2.5
    assert whole.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_allclose(faces(whole), faces(nib.load(series)), atol=1e-4)
    one = upsampled("--scale", "2", "--frame", "2", source=series, output=tmp_path / "one.nii")
    assert one.shape == (20, 18, 12)
    np.testing.assert_array_equal(one.get_fdata(), whole.get_fdata()[..., 2])
    assert provenance(one)["frame"] == 2
    assert len(provenance(whole)["normalization"]) == 3


def test_a_series_starts_when_its_input_does(
    run: Run, upsampled: Callable[..., nib.Nifti1Image], series: Path, tmp_path: Path
) -> None:
    image = nib.load(series, mmap=False)
    image.header["toffset"] = 700  # ms, as its time step
    nib.save(image, tmp_path / "late.nii")
    result = upsampled("--scale", "2", source=tmp_path / "late.nii")
    assert result.header["toffset"] == pytest.approx(0.7)
    low = tmp_path / "low.nii"
    assert run("simulate", tmp_path / "late.nii", low, "--scale", "2").status == 0
    assert nib.load(low).header["toffset"] == pytest.approx(0.7)
    one = upsampled("--scale", "1", "--frame", "1", source=low, output=tmp_path / "one.nii")
    assert one.header["toffset"] == 0  # which is no series


def test_a_frame_without_values_is_named(
    *, refuse: Refuse, series: Path, out: Path, tiny: Path, tmp_path: Path
) -> None:
    data = nib.load(series).get_fdata(dtype=np.float32)
    data[..., 1] = np.nan
    bad = save_scan(tmp_path / "bad.nii", data)
    words = ["upsample", bad, out, "--weights", tiny, "--scale", "2"]
    refuse(1, ["bad.nii, frame 1: it holds no finite value"], *words)


@pytest.mark.parametrize(("frame", "part"), [("3", "no frame 3"), ("-1", "no frame -1")])
def test_a_frame_that_is_not_there_is_wrong_use(
    *, refuse: Refuse, series: Path, out: Path, tiny: Path, frame: str, part: str
) -> None:
    words = ["upsample", series, out, "--weights", tiny, "--scale", "2", "--frame", frame]
    refuse(2, ["series.nii", part, "0 to 2"], *words)


# Settings ------------------------------------------------------------------------------------


def test_the_bundled_weights_are_the_default(run: Run, scan: Path, out: Path) -> None:
    ran = run("upsample", scan, out, "--scale", "2", "--box", "2:6,2:6,1:5", "--quiet")
    assert ran == Ran(0, "", "")
    image = nib.load(out)
    assert image.shape == (8, 8, 8)
    assert np.isfinite(image.get_fdata()).all()
    assert " default x2x2x2 box" in image.header["descrip"].item().decode()


def test_device_and_precision(
    upsampled: Callable[..., nib.Nifti1Image], refuse: Refuse, scan: Path, tmp_path: Path
) -> None:
    exact = upsampled("--scale", "2", "--device", "cpu", "--precision", "float32")
    half = upsampled(
        "--scale", "2", "--device", "cpu", "--precision", "bfloat16", output=tmp_path / "b.nii"
    )
    assert 0 < np.abs(exact.get_fdata() - half.get_fdata()).max() < 10
    assert (provenance(exact)["device"], provenance(exact)["precision"]) == ("cpu", "float32")
    assert provenance(half)["precision"] == "bfloat16"
    words = ["upsample", scan, tmp_path / "c.nii", "--scale", "2"]
    refuse(2, ["'cuda:99'", "auto", "cpu"], *words, "--device", "cuda:99")
    refuse(2, ["'float8'", "bfloat16"], *words, "--precision", "float8")
    refuse(2, ["float16", "GPUs", "bfloat16"], *words, "--device", "cpu", "--precision", "float16")


def test_memory_bounds_the_work_and_changes_nothing(
    *,
    upsampled: Callable[..., nib.Nifti1Image],
    refuse: Refuse,
    scan: Path,
    out: Path,
    tiny: Path,
    tmp_path: Path,
) -> None:
    free = upsampled("--scale", "2")
    bound = upsampled("--scale", "2", "--memory", "3.5 GiB", output=tmp_path / "b.nii")
    np.testing.assert_allclose(bound.get_fdata(), free.get_fdata(), rtol=1e-5)
    words = ["upsample", scan, out, "--weights", tiny, "--scale", "2", "--device", "cpu"]
    message = refuse(
        2, ["scan.nii.gz", "20 MB of memory are too little"], *words, "--memory", "20MB"
    )
    assert "need" in message
    for wrong in ("lots", "-1GB", "2XB", "1e9"):
        refuse(2, ["--memory", f"'{wrong}'", "2GB"], *words, "--memory", wrong)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("800MB", 800_000_000),
        ("2GB", 2_000_000_000),
        ("2gb", 2_000_000_000),
        ("1.5G", 1_500_000_000),
        ("1GiB", 1 << 30),
        ("64 KiB", 1 << 16),
        ("123456", 123456),
        ("7B", 7),
        ("1TB", 10**12),
    ],
)
def test_amounts_of_memory(text: str, expected: int) -> None:
    assert arguments.memory(text) == expected


def test_normalization(
    upsampled: Callable[..., nib.Nifti1Image], refuse: Refuse, scan: Path, tmp_path: Path
) -> None:
    data = nib.load(scan).get_fdata()
    extremes = provenance(upsampled("--scale", "2", "--normalize", "minmax"))
    assert extremes["normalization"] == [{"low": data.min(), "high": data.max()}]
    plain = upsampled("--scale", "2", "--normalize", "none", output=tmp_path / "n.nii")
    assert provenance(plain)["normalization"] == [{"low": 0, "high": 1}]
    own = upsampled("--scale", "2", output=tmp_path / "o.nii")
    low, high = np.percentile(data, [0.1, 99.9])
    assert provenance(own)["normalization"] == [pytest.approx({"low": low, "high": high})]
    refuse(2, ["--normalize", "'mean'", "percentile"],
           "upsample", scan, tmp_path / "x.nii", "--scale", "2", "--normalize", "mean")  # fmt: skip


def test_integers_are_rounded(upsampled: Callable[..., nib.Nifti1Image], tmp_path: Path) -> None:
    real = upsampled("--scale", "2").get_fdata()
    image = upsampled("--scale", "2", "--dtype", "int16", output=tmp_path / "i.nii")
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(image.get_fdata(), np.rint(real))
    double = upsampled("--scale", "2", "--dtype", "float64", output=tmp_path / "d.nii")
    assert double.get_data_dtype() == np.float64
    np.testing.assert_array_equal(double.get_fdata(), real)


def test_integers_are_clipped_never_wrapped(
    upsampled: Callable[..., nib.Nifti1Image], tmp_path: Path
) -> None:
    """A checkerboard of extremes overshoots at its edges."""
    checkered = (np.indices(SHAPE).sum(axis=0) // 2 % 2 * 255).astype(np.uint8)
    source = save_scan(tmp_path / "scan.nii", checkered)
    real = upsampled("--scale", "2", source=source).get_fdata()
    assert real.min() < -1
    assert real.max() > 256
    image = upsampled("--scale", "2", "--dtype", "same", source=source, output=tmp_path / "s.nii")
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.get_fdata(), np.rint(real.clip(0, 255)))


def test_same_keeps_type_and_scale_factors(
    upsampled: Callable[..., nib.Nifti1Image], tmp_path: Path
) -> None:
    source = tmp_path / "scan.nii"
    stored = np.rint((voxels() - 300) * 80).astype(np.int16)
    image = nib.Nifti1Image(stored, oblique())
    image.header.set_slope_inter(0.025, 300)
    nib.save(image, source)
    # nibabel chooses factors of its own while it saves: put ours in place.
    header = bytearray(source.read_bytes())
    header[112:120] = np.array([0.025, 300], "<f4").tobytes()
    header[352:] = stored.tobytes(order="F")
    source.write_bytes(header)
    real = upsampled("--scale", "2", source=source).get_fdata()
    assert real.mean() == pytest.approx(voxels().mean(), rel=0.2)
    output = tmp_path / "same.nii"
    result = upsampled("--scale", "2", "--dtype", "same", source=source, output=output)
    assert result.get_data_dtype() == np.int16
    assert (result.dataobj.slope, result.dataobj.inter) == pytest.approx((0.025, 300))
    np.testing.assert_allclose(result.get_fdata(), real, atol=0.0126)


@pytest.mark.parametrize(
    "dtype", ["int12", "(2,", "1(", "f4,f4", "complex64", "bool", "U5", "float16"]
)
def test_a_number_type_that_no_file_holds_is_wrong_use(
    refuse: Refuse, scan: Path, out: Path, tiny: Path, dtype: str
) -> None:
    words = ["upsample", scan, out, "--weights", tiny, "--scale", "2", "--dtype", dtype]
    message = refuse(2, [str(out), "float32"], *words)
    unknown = dtype in ("int12", "(2,", "1(")
    assert (repr(dtype) if unknown else str(np.dtype(dtype))) in message


def test_the_header_says_what_made_it(
    upsampled: Callable[..., nib.Nifti1Image], scan: Path, tiny: Path
) -> None:
    image = upsampled("--scale", "1,1,2.5", "--box", "2:7,0:4,3:6", "--device", "cpu")
    version = napari_arssr.__version__
    made_by = f"napari-arssr {version} tiny.safetensors x1x1x2.5 box"
    assert image.header["descrip"].item().decode() == made_by
    record = provenance(image)
    (fit,) = record.pop("normalization")
    assert fit["low"] < fit["high"]
    assert record == {
        "version": version,
        "weights": "tiny.safetensors",
        "consistency": None,
        "orientations": 1,
        "target_zyx": {"scale": [2.5, 1, 1]},
        "box_zyx": [[3, 0, 2], [6, 4, 7]],
        "weights_sha256": sha256_of(tiny),
        "source": scan.name,
        "source_shape_zyx": [6, 9, 10],
        "frame": None,
        "channel": None,
        "dtype": "float32",
        "device": "cpu",
        "precision": "float32",
    }


def test_pairs_and_stacks_are_written_by_suffix(
    run: Run, scan: Path, tiny: Path, tmp_path: Path
) -> None:
    words = ["--weights", tiny, "--spacing", "1.1,0.45,1.5", "--quiet"]
    assert run("upsample", scan, tmp_path / "pair.img", *words).status == 0
    assert run("upsample", tmp_path / "pair.hdr", tmp_path / "stack.tif", *words).status == 0
    assert nib.load(tmp_path / "pair.hdr").shape == (10, 18, 12)
    with tifffile.TiffFile(tmp_path / "stack.tif") as stack:
        assert stack.series[0].shape == (12, 18, 10)
        assert stack.imagej_metadata
        assert stack.imagej_metadata["spacing"] == pytest.approx(1.5)
        assert "tiny.safetensors" in stack.imagej_metadata["Info"]
    assert run("upsample", tmp_path / "stack.tif", tmp_path / "b.nii", *words).status == 0
    assert nib.load(tmp_path / "b.nii").shape == (10, 18, 12)


# What is printed -----------------------------------------------------------------------------


def test_progress_goes_to_stderr_and_the_summary_to_stdout(
    run: Run, scan: Path, out: Path, tiny: Path
) -> None:
    ran = run("upsample", scan, out, "--weights", tiny, "--scale", "1,1,4")
    assert ran.status == 0
    *lines, last = ran.err.splitlines()
    assert last.startswith("scan.nii.gz  100%  decode  0:00 left")
    assert len(lines) <= 10
    for line in lines:
        assert line.startswith("scan.nii.gz  ")
        assert line.endswith(" left")
    assert ran.out.startswith(
        f"{out}: 10 × 9 × 6 → 10 × 9 × 24 voxels, 1.1 × 0.9 × 3 → 1.1 × 0.9 × 0.75 mm, "
    )
    assert ran.out.count("\n") == 1


def test_the_summary_tells_parts_and_frames(run: Run, series: Path, out: Path, tiny: Path) -> None:
    words = ["upsample", series, out, "--weights", tiny, "--scale", "2", "--box", "2:7,0:4,3:6"]
    assert ": 5 × 4 × 3 of 10 × 9 × 6 → 10 × 8 × 6 voxels in 3 frames, 1.1 × " in run(*words).out


def test_on_a_terminal_progress_is_one_line_that_goes_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 0.05, 59.7, 59.75, 100.0])
    monkeypatch.setattr(cli.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with ProgressLine("scan.nii", quiet=False) as line:
        line(0.001, "encode")  # too soon after the start
        line(0.5, "encode")
        line(0.6, "encode")  # too soon after the last
        line(0.0, "download")  # who knows how long
    printed = capsys.readouterr().err
    assert "\n" not in printed
    shown = [text.rstrip("\r") for text in printed.split("\x1b[K")]
    assert shown == [
        "scan.nii  …",
        "scan.nii   50%  encode  1:00 left",
        "scan.nii    0%  download",
        "",
    ]


def test_a_terminal_that_was_closed_ends_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from napari_arssr.terminal import show, warn
    from napari_arssr.training.logs import StepLine

    class Gone:
        def isatty(self) -> bool:
            return True

        def write(self, _text: str) -> int:
            raise OSError(5, "Input/output error")

        def flush(self) -> None:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("sys.stderr", Gone())
    with ProgressLine("scan.nii", quiet=False) as line:
        line(0.5, "encode")
    StepLine().clear()
    warn("left out")
    show("step 1\n", Gone())  # type: ignore[arg-type]


def test_quiet_says_nothing_but_errors(
    *, run: Run, refuse: Refuse, scan: Path, out: Path, tiny: Path, tmp_path: Path
) -> None:
    words = ["--weights", tiny, "--scale", "2", "--quiet"]
    assert run("upsample", scan, out, *words) == Ran(0, "", "")
    refuse(1, ["none.nii does not exist"], "upsample", tmp_path / "none.nii", out, *words)


def test_json_is_for_scripts(run: Run, scan: Path, out: Path, tiny: Path, tmp_path: Path) -> None:
    ran = run("upsample", scan, out, "--weights", tiny, "--scale", "1,1,4", "--json")
    assert (ran.status, ran.err) == (0, "")
    told = json.loads(ran.out)
    assert told["failed"] == []
    (job,) = told["done"]
    assert job["input"] == str(scan)
    assert job["output"] == str(out)
    assert job["output_shape"] == [10, 9, 24]
    assert job["output_spacing_mm"] == pytest.approx([1.1, 0.9, 0.75])
    assert job["settings"] == provenance(nib.load(out))

    missing = tmp_path / "none.nii"
    ran = run("upsample", missing, out, "--weights", tiny, "--scale", "2", "--json")
    assert (ran.status, ran.err) == (1, "")
    told = json.loads(ran.out)
    assert told["done"] == []
    assert told["failed"] == [
        {"input": str(missing), "error": f"{missing} does not exist; check its name."}
    ]
    ran = run("upsample", scan, out, "--weights", tiny, "--spacing", "9", "--json")
    assert (ran.status, ran.err) == (2, "")
    assert "coarser" in json.loads(ran.out)["failed"][0]["error"]


# Several files -------------------------------------------------------------------------------


def test_a_bad_file_does_not_stop_the_others(run: Run, tiny: Path, tmp_path: Path) -> None:
    good = [save_scan(tmp_path / "a.nii"), save_scan(tmp_path / "c.nii.gz")]
    bad = tmp_path / "b.nii"
    bad.write_bytes(b"no image at all")
    results = tmp_path / "results" / "here"
    words = ["upsample", good[0], bad, tmp_path / "none.nii", good[1], results]
    ran = run(*words, "--weights", tiny, "--scale", "2", "--quiet")
    assert ran.status == 1
    broken, missing, closing = ran.err.splitlines()
    assert f"{bad} is cut off or no image" in broken
    assert f"{tmp_path / 'none.nii'} does not exist" in missing
    assert closing == f"napari-arssr: 2 of 4 files failed: {bad}, {tmp_path / 'none.nii'}."
    assert sorted(path.name for path in results.iterdir()) == ["a.nii", "c.nii.gz"]
    assert nib.load(results / "c.nii.gz").shape == (20, 18, 12)

    ran = run(*words, "--weights", tiny, "--scale", "2", "--json")
    told = json.loads(ran.out)
    assert (ran.status, ran.err) == (1, "")
    assert [job["input"] for job in told["done"]] == [str(path) for path in good]
    assert [job["input"] for job in told["failed"]] == [str(bad), str(tmp_path / "none.nii")]


def test_a_folder_becomes_a_folder(run: Run, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.nii", "b.nii.gz"):
        save_scan(folder / name)
    (folder / "notes.txt").write_text("not a volume")
    ran = run("upsample", folder, tmp_path / "out", "--weights", tiny, "--isotropic", "--quiet")
    assert ran == Ran(0, "", "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.nii", "b.nii.gz"]
    # A run that was broken off goes on.
    (tmp_path / "out" / "a.nii").unlink()
    before = (tmp_path / "out" / "b.nii.gz").stat()
    words = ["--weights", tiny, "--isotropic", "--skip-existing"]
    ran = run("upsample", folder, tmp_path / "out", *words)
    first, second = ran.out.splitlines()
    assert first.startswith(f"{tmp_path / 'out' / 'a.nii'}: 10 × 9 × 6 → ")
    assert second == f"{tmp_path / 'out' / 'b.nii.gz'}: there already, made in the same way"
    assert (tmp_path / "out" / "b.nii.gz").stat() == before
    # One file into a folder keeps its name.
    other = tmp_path / "other"
    other.mkdir()
    ran = run("upsample", folder / "a.nii", other, "--weights", tiny, "--isotropic")
    assert ran.status == 0
    assert ran.out.startswith(f"{other / 'a.nii'}: ")
    assert nib.load(other / "a.nii").shape == (12, 9, 20)


def test_files_and_folders_that_cannot_become_a_folder(
    refuse: Refuse, scan: Path, tiny: Path, tmp_path: Path
) -> None:
    words = ["--weights", tiny, "--scale", "2"]
    folder = tmp_path / "in"
    folder.mkdir()
    out = tmp_path / "results"
    refuse(2, [str(folder), "no volume in this folder"], "upsample", folder, out, *words)
    save_scan(folder / "scan.nii.gz")
    refuse(2, [str(folder / "scan.nii.gz"), str(scan), "both become"],
           "upsample", scan, folder, out, *words)  # fmt: skip
    refuse(2, ["is the input itself"], "upsample", folder, folder, *words)
    refuse(1, ["typo.nii does not exist"], "upsample", tmp_path / "typo.nii", folder, *words)
    out.write_text("a file")
    refuse(2, [str(out), "need a folder"], "upsample", folder, out, *words)
    refuse(1, [str(out / "x"), "cannot be made"], "upsample", folder, out / "x", *words)


def test_wrong_use_with_every_file_is_wrong_use(run: Run, tiny: Path, tmp_path: Path) -> None:
    fine, coarse = save_scan(tmp_path / "a.nii"), tmp_path / "b.nii"
    save_scan(coarse, affine=np.diag([9.0, 9, 9, 1]))
    words = ["--weights", tiny, "--spacing", "4", "--quiet"]
    save_scan(tmp_path / "c.nii")
    ran = run("upsample", fine, tmp_path / "c.nii", tmp_path / "results", *words)
    assert ran.status == 2
    assert [line.count("coarser") for line in ran.err.splitlines()] == [1, 1, 0]
    # What suits one file is not wrong in itself.
    ran = run("upsample", fine, coarse, tmp_path / "results", *words)
    assert ran.status == 1
    assert nib.load(tmp_path / "results" / "b.nii").shape == (23, 20, 14)


def test_what_is_wrong_for_every_file_is_said_once(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.nii", "b.nii"):
        save_scan(folder / name)
    for options, part in [
        (["--weights", "arsr-rdn"], "did you mean arssr-rdn?"),
        (["--device", "cuda:99"], "'cuda:99'"),
        (["--device", "cpu", "--precision", "float16"], "float16"),
    ]:
        ran = run("upsample", folder, tmp_path / "out", "--scale", "2", *options)
        assert ran.status == 2
        assert part in one_sentence(ran.err)


# Weights -------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a network that is not there."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
    folder = tmp_path / "cache"
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(folder))
    return folder


def fake_published(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny network in the place of the published RDN, its hash in the registry."""
    config = ModelConfig("RDN", "published", 5, 4, 7, features=4, growth=3, blocks=2, layers=2)
    record = weights.REGISTRY["arssr-rdn"]
    cache.mkdir()
    path = cache / record.filename
    torch.manual_seed(0)
    torch.save(build(config).state_dict(), path)
    digest = f"gitblob:{download.git_blob_id(path)}"
    monkeypatch.setitem(weights.REGISTRY, "arssr-rdn", replace(record, digest=digest))
    return path


def test_weights_are_listed_and_described(
    run: Run, refuse: Refuse, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run("weights", "list")
    assert (ran.status, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == list(weights.REGISTRY)
    assert lines[0].split()[1] == "bundled"
    assert all("not downloaded" in line for line in lines[1:4])
    assert str(cache) in lines[-1]
    rows = json.loads(run("weights", "list", "--json").out)
    assert [(row["name"], row["state"]) for row in rows][:2] == [
        ("default", "bundled"),
        ("arssr-rdn", "not downloaded"),
    ]

    ran = run("weights", "info", "default")
    assert (ran.status, ran.err) == (0, "")
    bundled = Path(napari_arssr.__file__).parent / "bundled" / "default.safetensors"
    digest = hashlib.sha256(bundled.read_bytes()).hexdigest()
    assert f"digest: sha256:{digest}" in ran.out
    assert f"size: {bundled.stat().st_size}" in ran.out
    facts = json.loads(run("weights", "info", "arssr-rdn", "--json").out)
    assert facts["state"] == "not downloaded"
    assert facts["licence"] == "none stated by the authors"
    assert facts["scores"]
    ran = run("weights", "info", "arssr-srresnet")
    assert "None" not in ran.out  # what nobody knows is not said
    assert "size: about " in ran.out  # nobody states it, but the number of weights is known
    refuse(2, ["'arsr-rdn'", "did you mean arssr-rdn?"], "weights", "info", "arsr-rdn")


def test_without_a_network_the_way_out_is_said(
    refuse: Refuse, cache: Path, scan: Path, out: Path
) -> None:
    cache.mkdir()
    record = weights.REGISTRY["arssr-rdn"]
    parts = [
        record.source,
        record.filename,
        str(cache / record.filename),
        "name the file of your own copy",
    ]
    refuse(1, parts, "weights", "download", "arssr-rdn")
    refuse(1, parts, "upsample", scan, out, "--scale", "2", "--weights", "arssr-rdn")
    refuse(2, ["'nothing'"], "weights", "download", "nothing")


def test_weights_are_downloaded_verified_and_used(
    run: Run,
    cache: Path,
    scan: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = fake_published(cache, monkeypatch)
    # What is there and right is not fetched again.
    assert run("weights", "download", "arssr-rdn") == Ran(0, f"{path}\n", "")
    assert run("weights", "download", "arssr-rdn", "--quiet") == Ran(0, "", "")
    ran = run("weights", "verify")
    assert (ran.status, ran.err) == (0, "")
    assert [line.split(maxsplit=1) for line in ran.out.splitlines()] == [
        ["default", "bundled"],
        ["arssr-rdn", "downloaded"],
        ["arssr-rescnn", "not downloaded"],
        ["arssr-srresnet", "not downloaded"],
    ]
    words = ["upsample", scan, out, "--scale", "2", "--weights", "arssr-rdn", "--quiet"]
    assert run(*words) == Ran(0, "", "")
    assert " arssr-rdn x2x2x2" in nib.load(out).header["descrip"].item().decode()
    data = nib.load(scan).get_fdata()  # the published networks saw extremes
    fit = {"low": data.min(), "high": data.max()}
    assert provenance(nib.load(out))["normalization"] == [fit]

    path.write_bytes(path.read_bytes()[:-1])
    ran = run("weights", "verify", "arssr-rdn", "--json")
    assert ran.status == 1
    assert json.loads(ran.out) == {"arssr-rdn": "broken"}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("arsr-rdn", ["'arsr-rdn'", "did you mean arssr-rdn?"]),
        ("Default", ["did you mean default?"]),
        ("zzz", ["'zzz'", "no such file", "known are default, arssr-rdn"]),
    ],
)
def test_an_unknown_name_of_weights_is_wrong_use(
    refuse: Refuse, scan: Path, out: Path, name: str, parts: list[str]
) -> None:
    refuse(2, parts, "upsample", scan, out, "--scale", "2", "--weights", name)


class Malicious:
    """Would make a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_malicious_pickle_is_refused_and_nothing_runs(
    refuse: Refuse, scan: Path, out: Path, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "weights.pkl"
    attack = {"encoder.sfe1.weight": Malicious(tmp_path / "owned")}
    if how == "pickle":
        path.write_bytes(pickle.dumps(attack))
    else:
        torch.save(attack, path)
    words = ["upsample", scan, out, "--scale", "2", "--weights", path]
    refuse(1, [str(path), "could run code", "nothing in it was run"], *words)
    assert not (tmp_path / "owned").exists()
    torch.load(path, weights_only=False) if how == "torch" else pickle.loads(path.read_bytes())
    assert (tmp_path / "owned").exists()  # it was a real one


def test_weights_that_are_none_are_refused_by_name(
    refuse: Refuse, scan: Path, out: Path, tiny: Path, tmp_path: Path
) -> None:
    words = ["upsample", scan, out, "--scale", "2", "--weights"]
    other = tmp_path / "other.pt"
    torch.save({"features.0.weight": torch.zeros(3, 3)}, other)
    refuse(1, [str(other), "another architecture"], *words, other)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(tiny.read_bytes()[:-100])
    refuse(1, [str(cut), "not a whole safetensors file"], *words, cut)
    refuse(1, [str(scan)], *words, scan)
    refuse(2, [str(tmp_path)], *words, tmp_path)


# Simulation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gaussian", "slice-profile", "kspace", "cubic"])
def test_every_scanner_keeps_span_and_brightness(
    run: Run, scan: Path, tmp_path: Path, kind: str
) -> None:
    low = tmp_path / "low.nii.gz"
    ran = run("simulate", scan, low, "--scale", "2,1,3", "--kind", kind)
    assert ran.status == 0, ran.err
    assert ran.out == f"{low}: 5 × 9 × 2 voxels\n"
    image = nib.load(low)
    assert image.shape == (5, 9, 2)
    np.testing.assert_allclose(faces(image), faces(nib.load(scan)), atol=1e-4)
    assert image.get_fdata().mean() == pytest.approx(nib.load(scan).get_fdata().mean(), rel=0.05)
    settings = json.loads(image.header.extensions[0].get_content())["napari-arssr simulate"]
    assert settings == {"kind": kind, "width": 1, "noise_percent": 0, "seed": 0}


def test_a_slab_is_the_mean_of_its_slices(run: Run, scan: Path, tmp_path: Path) -> None:
    low = tmp_path / "low.nii"
    words = ["simulate", scan, low, "--scale", "1,1,2", "--kind", "slice-profile"]
    assert run(*words, "--quiet") == Ran(0, "", "")
    means = nib.load(scan).get_fdata().reshape(10, 9, 3, 2).mean(axis=-1)
    np.testing.assert_allclose(nib.load(low).get_fdata(), means, rtol=1e-5)
    # A slab of three slices' width reaches into its neighbours.
    assert run(*words, "--width", "1.5", "--quiet").status == 0
    assert np.abs(nib.load(low).get_fdata() - means).max() > 1


def test_noise_is_as_strong_as_asked_and_repeatable(run: Run, tmp_path: Path) -> None:
    data = np.zeros((30, 30, 30), np.float32)
    data[0, 0, 0] = 200
    source = save_scan(tmp_path / "scan.nii", data)

    def noisy(name: str, *options: object) -> npt.NDArray[np.float64]:
        path = tmp_path / name
        ran = run("simulate", source, path, "--scale", "1", *options, "--json")
        assert json.loads(ran.out)["output_shape"] == [30, 30, 30]
        return np.asarray(nib.load(path).get_fdata())

    clean = noisy("a.nii")
    np.testing.assert_array_equal(clean, data)
    first = noisy("b.nii", "--noise", "3", "--seed", "1")
    assert (first - clean).std() == pytest.approx(6, rel=0.03)
    np.testing.assert_array_equal(noisy("c.nii", "--noise", "3", "--seed", "1"), first)
    assert (noisy("d.nii", "--noise", "3", "--seed", "2") != first).mean() > 0.99


def test_simulated_and_upsampled_is_on_the_grid_it_came_from(
    run: Run, upsampled: Callable[..., nib.Nifti1Image], scan: Path, tmp_path: Path
) -> None:
    low = tmp_path / "low.nii"
    assert run("simulate", scan, low, "--scale", "1,3,2").status == 0
    back = upsampled("--scale", "1,3,2", source=low)
    assert back.shape == SHAPE
    np.testing.assert_allclose(back.affine, nib.load(scan).affine, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--scale", "0.5"], ["--scale", "at least 1"]),
        (["--scale", "nan"], ["--scale", "finite"]),
        (["--scale", "2", "--kind", "box"], ["--kind", "'box'", "slice-profile"]),
        (["--scale", "2", "--width", "0"], ["width", "above 0"]),
        (["--scale", "2", "--width", "-1"], ["width", "above 0", "-1"]),
        (["--scale", "2", "--width", "nan"], ["width", "nan"]),
        (["--scale", "2", "--noise", "-1"], ["Noise", "0 and 100", "-1"]),
        (["--scale", "2", "--noise", "nan"], ["Noise", "nan"]),
        (["--scale", "2", "--noise", "101"], ["Noise", "101"]),
        (["--scale", "2", "--seed", "-1"], ["seed", "at least 0", "-1"]),
    ],
)
def test_a_scanner_that_cannot_be_is_wrong_use(
    refuse: Refuse, scan: Path, out: Path, options: list[str], parts: list[str]
) -> None:
    refuse(2, parts, "simulate", scan, out, *options)


def test_a_scanner_needs_finite_voxels_and_another_file(
    refuse: Refuse, scan: Path, out: Path, tmp_path: Path
) -> None:
    data = voxels().astype(np.float32)
    data[1, 2, 3] = np.nan
    broken = save_scan(tmp_path / "nan.nii", data)
    refuse(2, ["nan.nii", "not finite", "fill them"], "simulate", broken, out, "--scale", "2")
    refuse(2, ["is the input itself"], "simulate", scan, scan, "--scale", "2")
    refuse(1, ["none.nii does not exist"], "simulate", tmp_path / "none.nii", out, "--scale", "2")


# Bad input: files ----------------------------------------------------------------------------


def raw_header(path: Path, **values: Any) -> Path:
    """A volume whose header was changed afterwards, as nibabel would not let it be."""
    image = nib.Nifti1Image(voxels().astype(np.float32), oblique())
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    header = np.frombuffer(content[:348], nib.nifti1.header_dtype).copy()
    for name, value in values.items():
        header[name] = value
    content[:348] = header.tobytes()
    path.write_bytes(content)
    return path


def truncated(path: Path, share: float) -> Path:
    save_scan(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def stack(path: Path, data: npt.NDArray[Any], **options: Any) -> Path:
    tifffile.imwrite(path, data, **options)
    return path


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
NO_FORM = {"sform_code": 0, "qform_code": 0}
FLAT = np.zeros((4, 4))
FLAT[3, 3] = 1

BAD_FILES: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "missing": (lambda folder: folder / "in.nii", ["does not exist", "check its name"]),
    "empty": (lambda folder: written(folder / "in.nii", b""), ["empty", "copy or export"]),
    "truncated": (lambda folder: truncated(folder / "in.nii", 0.7), ["cut off", "copy it again"]),
    "truncated gz": (
        lambda folder: truncated(folder / "in.nii.gz", 0.7),
        ["cut off", "copy it again"],
    ),
    "header only": (lambda folder: truncated(folder / "in.nii", 0.05), ["cut off or no image"]),
    "text": (
        lambda folder: written(folder / "in.nii", b"hello " * 100),
        ["not a NIfTI image", "convert it"],
    ),
    "text in gz": (
        lambda folder: written(folder / "in.nii.gz", gzip.compress(b"hello " * 100)),
        ["not a NIfTI image"],
    ),
    "no tiff": (lambda folder: written(folder / "in.tif", b"hello " * 100), ["TIFF"]),
    "other suffix": (
        lambda folder: written(folder / "in.png", b"\x89PNG"),
        ["no suffix known here", "convert it"],
    ),
    "gz that is none": (
        lambda folder: Path(
            shutil.move(save_scan(folder / "a.nii"), folder / "in.nii.gz")
        ),
        ["not gzip-compressed", "rename it"],
    ),
    "gz without its suffix": (
        lambda folder: Path(
            shutil.move(save_scan(folder / "a.nii.gz"), folder / "in.nii")
        ),
        ["gzip-compressed", "rename it to in.nii.gz"],
    ),
    "RGB": (lambda folder: save_scan(folder / "in.nii", np.zeros(SHAPE, RGB)), ["RGB", "convert"]),
    "RGB tiff": (
        lambda folder: stack(
            folder / "in.tif", np.zeros((4, 5, 6, 3), np.uint8), photometric="rgb"
        ),
        ["colour image", "one channel"],
    ),
    "complex": (
        lambda folder: save_scan(folder / "in.nii", np.zeros(SHAPE, np.complex64)),
        ["complex", "convert"],
    ),
    "boolean": (
        lambda folder: raw_header(folder / "in.nii", datatype=1, bitpix=1),
        ["boolean", "convert"],
    ),
    "boolean tiff": (
        lambda folder: stack(folder / "in.tif", np.zeros((4, 5, 6), bool)),
        ["bool"],
    ),
    "structured": (
        lambda folder: raw_header(folder / "in.nii", datatype=2304, bitpix=32),
        ["RGBA", "convert"],
    ),
    "all NaN": (
        lambda folder: save_scan(folder / "in.nii", np.full(SHAPE, np.nan, np.float32)),
        ["no finite value"],
    ),
    "zero voxel size": (
        lambda folder: raw_header(folder / "in.nii", pixdim=[1, 1, 0, 1, 0, 0, 0, 0], **NO_FORM),
        ["voxel sizes of 1 × 0 × 1", "pixdim"],
    ),
    "negative voxel size": (
        lambda folder: raw_header(folder / "in.nii", pixdim=[1, 1, -2, 1, 0, 0, 0, 0], **NO_FORM),
        ["voxel sizes of 1 × -2 × 1", "pixdim"],
    ),
    "NaN voxel size": (
        lambda folder: raw_header(
            folder / "in.nii", pixdim=[1, 1, 1, np.nan, 0, 0, 0, 0], **NO_FORM
        ),
        ["voxel sizes of 1 × 1 × nan", "pixdim"],
    ),
    "singular affine": (
        lambda folder: raw_header(folder / "in.nii", srow_z=[0, 0, 0, 5], srow_y=[1, 1, 0, 0]),
        ["sform", "singular", "header"],
    ),
    "NaN affine": (
        lambda folder: raw_header(folder / "in.nii", srow_x=[np.nan, 0, 0, 0]),
        ["sform", "finite", "header"],
    ),
    "1D": (
        lambda folder: raw_header(folder / "in.nii", dim=[1, 540, 1, 1, 1, 1, 1, 1]),
        ["1D (540)", "not 3D"],
    ),
    "2D": (
        lambda folder: save_scan(folder / "in.nii", np.zeros((9, 8), np.float32)),
        ["2D (9×8)", "not 3D"],
    ),
    "2D tiff": (lambda folder: stack(folder / "in.tif", np.zeros((9, 8), np.uint8)), ["2D"]),
    "5D": (
        lambda folder: save_scan(folder / "in.nii", np.zeros((4, 4, 4, 2, 3), np.float32)),
        ["5 axes", "split it"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_one_sentence_and_nothing_else(
    refuse: Refuse, tmp_path: Path, out: Path, tiny: Path, kind: str
) -> None:
    make, parts = BAD_FILES[kind]
    path = make(tmp_path)
    refuse(1, [path.name, *parts], "upsample", path, out, "--weights", tiny, "--scale", "2")


def test_voxels_that_are_not_finite_spoil_only_their_own_cells(
    upsampled: Callable[..., nib.Nifti1Image], scan: Path, tmp_path: Path
) -> None:
    data = voxels().astype(np.float32)
    data[4, 3, 2], data[8, 8, 5], data[0, 0, 0] = np.nan, np.inf, -np.inf
    result = upsampled("--scale", "2", source=save_scan(tmp_path / "nan.nii", data))
    np.testing.assert_array_equal(
        np.isfinite(result.get_fdata()),
        np.isfinite(data).repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2),
    )
    (fit,) = provenance(result)["normalization"]
    assert 100 < fit["low"] < fit["high"] < 500
    whole = upsampled("--scale", "2", output=tmp_path / "w.nii").get_fdata()
    far = np.abs(result.get_fdata()[8:14, 10:16, 8:12] - whole[8:14, 10:16, 8:12])
    assert far.max() < 20


@pytest.mark.parametrize("command", ["upsample", "simulate"])
def test_a_value_beyond_float32_is_refused_by_name(
    *, refuse: Refuse, out: Path, tmp_path: Path, command: str
) -> None:
    data = voxels()
    data[3, 2, 1] = -1e39
    source = save_scan(tmp_path / "large.nii", data)
    parts = ["large.nii holds the value -1e+39", "float32", "scale its values down"]
    refuse(1, parts, command, source, out, "--scale", "2")
    stored = np.full(SHAPE, 1000, np.int16)
    source = raw_header(tmp_path / "scaled.nii", datatype=4, bitpix=16, scl_slope=1e37)
    source.write_bytes(source.read_bytes()[:352] + stored.tobytes())
    parts = [str(source), "scale factors 1e+37 and 0", "float32 cannot hold", "header"]
    refuse(1, parts, command, source, out, "--scale", "2")


@pytest.mark.parametrize("value", [0, 7, -1000])
def test_a_constant_volume_stays_constant(
    upsampled: Callable[..., nib.Nifti1Image], tmp_path: Path, value: int
) -> None:
    source = save_scan(tmp_path / "flat.nii", np.full(SHAPE, value, np.int16))
    result = upsampled("--scale", "2", source=source)
    np.testing.assert_array_equal(result.get_fdata(), value)


# Bad input: where the result goes ------------------------------------------------------------


def test_a_place_that_cannot_be_written_is_said_before_the_work(
    refuse: Refuse, scan: Path, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--weights", tiny, "--scale", "2"]
    nowhere = tmp_path / "nowhere"
    refuse(1, [str(nowhere), "does not exist", "make it"],
           "upsample", scan, nowhere / "out.nii", *words)  # fmt: skip
    refuse(1, [str(scan), "does not exist"], "upsample", scan, scan / "out.nii", *words)
    refuse(2, ["out.txt", ".nii.gz"], "upsample", scan, tmp_path / "out.txt", *words)

    def forbidden(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", forbidden)
    refuse(1, [str(tmp_path), "cannot be written to (permission denied)", "choose another"],
           "upsample", scan, tmp_path / "out.nii", *words)  # fmt: skip


def test_the_input_is_never_the_output(
    refuse: Refuse, scan: Path, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link.nii.gz").symlink_to(scan)
    (tmp_path / "hard.nii.gz").hardlink_to(scan)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    for output in (
        scan,
        tmp_path / "link.nii.gz",
        tmp_path / "hard.nii.gz",
        "../scan.nii.gz",
        tmp_path,  # stands for a file of the same name in it
    ):
        words = ["upsample", scan, output, "--weights", tiny, "--scale", "2"]
        refuse(2, ["is the input itself", "another name"], *words)
    words = ["upsample", tmp_path / "link.nii.gz", scan, "--weights", tiny, "--scale", "2"]
    refuse(2, ["is the input itself"], *words)


@pytest.mark.parametrize("command", ["upsample", "simulate", "fit"])
def test_a_forgotten_output_costs_no_scan(
    *, refuse: Refuse, scan: Path, tiny: Path, tmp_path: Path, command: str
) -> None:
    """Of two scans the last would be the output; several make a folder of what is a scan."""
    second = save_scan(tmp_path / "second.nii")
    output = ["-o", second] if command == "fit" else [second]
    size = [] if command == "fit" else ["--scale", "2"]
    parts = [f"{second} is there already", "no result of this program", "another name"]
    refuse(2, parts, command, scan, *output, *size)


def test_a_batch_replaces_its_own_results_and_nothing_else(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    scans, results = tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        save_scan(scans / name)
    words = ["upsample", scans, results, "--weights", tiny, "--quiet", "--scale"]
    assert run(*words, "2").status == 0
    foreign = save_scan(results / "b.nii.gz").read_bytes()
    ran = run(*words, "1")
    assert ran.status == 1
    assert f"{results / 'b.nii.gz'} is there already" in ran.err
    assert nib.load(results / "a.nii.gz").shape == SHAPE
    assert (results / "b.nii.gz").read_bytes() == foreign


@pytest.mark.parametrize("command", ["upsample", "simulate"])
@pytest.mark.parametrize("name", ["out.nii", "out.tif", "out.ome.zarr"])
def test_an_orientation_that_is_lost_is_told(
    *, run: Run, scan: Path, tiny: Path, tmp_path: Path, name: str, command: str
) -> None:
    stack = files.write(tmp_path / "stack.tif", files.read(scan))
    words = ["--scale", "2", *(["--weights", tiny] if command == "upsample" else [])]
    for source in (scan, stack):
        output = tmp_path / command / f"of_{source.name}" / name
        output.parent.mkdir(parents=True)
        ran = run(command, source, output, *words)
        assert ran.status == 0, ran.err
        is_lost = source == scan and name != "out.nii"
        assert ("does not tell left from right" in ran.out) == is_lost
        ran = run(command, source, output, *words, "--json")
        told = json.loads(ran.out)
        told = told if command == "simulate" else told["done"][0]
        assert told["keeps_orientation"] == (not is_lost)


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz", "out.img", "out.tif", "out.ome.zarr"])
def test_a_disk_that_fills_leaves_nothing_and_spares_what_was_there(
    *,
    refuse: Refuse,
    scan: Path,
    tmp_path: Path,
    tiny: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / name
    files.write(output, files.read(scan), dtype="f4", provenance='{"napari-arssr": {}}')
    calls: list[None] = []
    write = files.SlabWriter.write

    def full(self: files.SlabWriter, slab: npt.NDArray[Any]) -> None:
        write(self, slab)
        calls.append(None)

        def fail(_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        self._sink = type("Full", (), {"write": staticmethod(fail)})()

    monkeypatch.setattr("napari_arssr.field._SLAB_BYTES", 4 * 20 * 18)
    monkeypatch.setattr(files.SlabWriter, "write", full)
    words = ["upsample", scan, output, "--weights", tiny, "--scale", "2", "--quiet"]
    refuse(1, ["no room on the disk", name, "17,280 bytes", "make room"], *words)
    assert len(calls) == 1


def test_memory_that_runs_out_is_a_sentence(
    refuse: Refuse, scan: Path, out: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("napari_arssr.upsampling._encode", full)
    words = ["upsample", scan, out, "--weights", tiny, "--scale", "2"]
    refuse(1, [str(scan), "not enough memory"], *words)
    monkeypatch.setattr("napari_arssr.simulation.simulate_file", full)
    refuse(1, ["not enough memory"], "simulate", scan, out, "--scale", "2")


# Interruption --------------------------------------------------------------------------------

# Says where it stands, so that a signal can be sent in the midst of it.
CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
moment = sys.argv.pop(1)

def say():
    print(moment, file=sys.stderr, flush=True)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            say()

def announced(owner, name):
    function = getattr(owner, name)
    def announce(*arguments, **options):
        say()
        return function(*arguments, **options)
    setattr(owner, name, announce)

if moment == "import":
    sys.meta_path.insert(0, Finder())
elif moment in ("encode", "decode_lattice"):
    from napari_arssr.models import ArSSR
    announced(ArSSR, moment)
elif moment == "write":
    from napari_arssr.io import SlabWriter
    announced(SlabWriter, moment)
from napari_arssr.cli import main
sys.exit(main())
"""


@pytest.fixture
def child(tmp_path: Path, tiny: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    source = save_scan(tmp_path / "scan.nii", voxels((40, 40, 40)).astype(np.float32))
    started: list[subprocess.Popen[str]] = []

    def go(moment: str) -> subprocess.Popen[str]:
        words = ["upsample", source, tmp_path / "out.nii.gz", "--weights", tiny, "--scale", "4"]
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, moment, *map(str, words), "--quiet"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        started.append(process)
        return process

    yield go
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("moment", "signals"),
    [
        ("import", [signal.SIGINT]),
        ("encode", [signal.SIGINT]),
        ("decode_lattice", [signal.SIGINT]),
        ("write", [signal.SIGINT, signal.SIGINT]),  # an impatient person
        ("encode", [signal.SIGTERM, signal.SIGTERM]),  # as timeout sends it
        ("encode", [signal.SIGHUP]),  # its terminal was closed
    ],
)
def test_an_interrupted_command_leaves_nothing_and_says_one_line(
    child: Callable[[str], subprocess.Popen[str]],
    tmp_path: Path,
    moment: str,
    signals: list[signal.Signals],
) -> None:
    before = snapshot(tmp_path)
    process = child(moment)
    assert process.stderr
    assert process.stderr.readline() == f"{moment}\n"
    for number in signals:
        process.send_signal(number)
    out, err = process.communicate(timeout=120)
    lines = [line for line in err.splitlines() if line != moment]
    assert lines == ["napari-arssr: Interrupted; nothing unfinished was left behind."]
    assert (process.returncode, out) == (130, "")
    assert snapshot(tmp_path) == before


def test_an_interruption_while_the_command_line_loads_is_one_line() -> None:
    script = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "napari_arssr.cli":
            print("loading", flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Finder())
from napari_arssr.__main__ import main
sys.exit(main())
"""
    words = [sys.executable, "-c", script, "--version"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert err == "napari-arssr: Interrupted; nothing was begun.\n"
    assert process.returncode == 130


@pytest.fixture
def interruption() -> Iterator[Callable[[], None]]:
    """Ctrl-C, lost: as where an extension module makes something else of the exception."""
    before = {number: signal.getsignal(number) for number in cli._ENDING}
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def lose() -> None:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)

    yield lose
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_interruption_that_became_another_error_is_one_still(
    refuse: Refuse, interruption: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        interruption()
        raise ImportError("a broken installation?")

    monkeypatch.setattr(weights, "describe", fail)
    refuse(130, ["Interrupted"], "weights", "info", "default")


def test_a_second_signal_does_not_disturb_the_cleaning_up(
    refuse: Refuse, interruption: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned: list[str] = []

    def interrupted(_: str) -> None:
        interruption()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        cleaned.append("well")
        # Some time later one more means what it says.
        monkeypatch.setattr(cli, "_DEAF_SECONDS", 0.0)
        os.kill(os.getpid(), signal.SIGINT)
        cleaned.append("too well")

    monkeypatch.setattr(weights, "describe", interrupted)
    refuse(130, ["Interrupted"], "weights", "info", "default")
    assert cleaned == ["well"]


@pytest.mark.parametrize("several", [False, True])
def test_an_interruption_that_was_swallowed_is_noticed_later(
    *,
    refuse: Refuse,
    interruption: Callable[[], None],
    tiny: Path,
    tmp_path: Path,
    several: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, results = tmp_path / "in", tmp_path / "results"
    folder.mkdir()
    results.mkdir()
    for name in ("a.nii", "b.nii") if several else ("a.nii",):
        save_scan(folder / name)
    create = files.create

    def interrupted(*arguments: Any, **options: Any) -> Any:
        interruption()
        return create(*arguments, **options)

    monkeypatch.setattr(files, "create", interrupted)
    words = ["upsample", folder, results, "--weights", tiny, "--scale", "2"]
    refuse(130, ["Interrupted; nothing unfinished"], *words)


@pytest.mark.parametrize("words", [["--help"], ["weights", "list"]])
def test_a_reader_that_has_gone_is_no_error_of_ours(words: list[str]) -> None:
    """As in ``napari-arssr weights list | head -0``."""
    script = "import sys; sys.stdin.read(); from napari_arssr.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )
    assert process.stdout
    process.stdout.close()  # before anything is printed
    process.stdout = None
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (1, "")


# Labels, links, encodings


def test_a_label_map_gets_no_label_that_it_did_not_have(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    labels = np.zeros(SHAPE, dtype=np.int16)
    labels[2:6, 3:, 1:4] = 17
    labels[6:9, :4] = 53
    source = save_scan(tmp_path / "sub-01_dseg.nii.gz", labels)
    image = tmp_path / "o.nii.gz"
    for options in (["--orientations", "3"], ["--dtype", "same"], ["--box", "0:5,0:5,0:5"]):
        ran = run("upsample", source, image, "--weights", tiny, "--scale", "2", *options)
        assert ran.status == 0, ran.err
        assert "the nearest label" in ran.out
        found = nib.load(image, mmap=False)
        assert found.get_data_dtype() == np.int16
        assert set(np.unique(found.dataobj)) <= {0, 17, 53}
        record = provenance(found)
        assert (record["weights"], record["orientations"]) == ("nearest label", 1)
    assert run("upsample", source, image, "--weights", tiny, "--scale", "2").status == 0
    found = nib.load(image, mmap=False)
    assert (np.asarray(found.dataobj) == labels.repeat(2, 0).repeat(2, 1).repeat(2, 2)).all()


def test_a_simulated_label_map_is_one(run: Run, refuse: Refuse, out: Path, tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, dtype=np.int16)
    labels[2:6, 3:, 1:4] = 17
    image = nib.Nifti1Image(labels, oblique())
    image.header.set_intent("label")
    nib.save(image, tmp_path / "parts.nii")
    ran = run("simulate", tmp_path / "parts.nii", out, "--scale", "2,1,3")
    assert (ran.status, ran.out) == (0, f"{out}: 5 × 9 × 2 voxels, each the nearest label\n")
    found = nib.load(out, mmap=False)
    assert found.get_data_dtype() == np.int16
    assert found.header.get_intent()[0] == "label"
    assert (np.asarray(found.dataobj) == labels[1::2, :, 1::3]).all()
    record = json.loads(found.header.extensions[0].get_content())
    assert record == {"napari-arssr simulate": {"kind": "nearest label"}}
    words = ["simulate", tmp_path / "parts.nii", out, "--scale", "2", "--noise", "3"]
    refuse(2, ["parts.nii", "labels take no noise", "leave it out"], *words)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_terminal_without_all_letters_ends_no_batch(
    tiny: Path, tmp_path: Path, encoding: str
) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        save_scan(tmp_path / name)
    words = ["upsample", tmp_path, tmp_path / "results", "--weights", tiny, "--scale", "2"]
    ran = subprocess.run(
        [sys.executable, "-m", "napari_arssr", *map(str, words)],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert ran.returncode == 0
    assert b"Error" not in ran.stderr
    assert len(ran.stdout.splitlines()) == len(list((tmp_path / "results").iterdir())) == 2


def test_a_graphics_card_without_memory_fails_one_file_of_a_batch(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        save_scan(tmp_path / name)
    make, failing = NetworkField.__init__, [torch.cuda.OutOfMemoryError("CUDA out of memory.")]

    def full_once(*given: Any, **options: Any) -> None:
        if failing:
            raise failing.pop()
        make(*given, **options)

    monkeypatch.setattr(NetworkField, "__init__", full_once)
    ran = run("upsample", tmp_path, tmp_path / "results", "--weights", tiny, "--scale", "2")
    assert ran.status == 1
    assert "a.nii.gz: there is not enough memory" in ran.err
    assert (tmp_path / "results" / "b.nii.gz").is_file()


def test_a_link_in_a_folder_to_a_file_that_is_not_fetched_is_said(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    save_scan(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to("annex/objects/b")
    ran = run("upsample", tmp_path, tmp_path / "results", "--weights", tiny, "--scale", "2")
    assert ran.status == 1
    assert "b.nii.gz is a link to annex/objects/b, which is not there" in ran.err
    assert (tmp_path / "results" / "a.nii.gz").is_file()
