import csv
import json
import math
import re
import shlex
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from measured import measured
from scipy import ndimage
from tiny import save_tiny

from napari_arssr import io
from napari_arssr.cli import _parser, main
from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import Cancelled, FileError, OutOfMemory, UsageError
from napari_arssr.evaluation import pictures, psnr, scoring, ssim
from napari_arssr.evaluation.methods import Machine, Measurement, parse
from napari_arssr.evaluation.protocol import (
    factors_of,
    foreground,
    parse_dataset,
    parse_datasets,
    parse_scanner,
    prepare,
)
from napari_arssr.evaluation.rows import REFERENCE, Row, add_row, read_rows
from napari_arssr.evaluation.running import Settings, evaluate
from napari_arssr.evaluation.scoring import Tools
from napari_arssr.evaluation.tables import compare, groups, tables
from napari_arssr.field import CubicField
from napari_arssr.models import (
    ArSSR,
    BaselineCard,
    BaselineConfig,
    Card,
    ModelConfig,
    build,
    save,
)
from napari_arssr.volume import Grid, Volume

AFFINE = np.array([[-1.0, 0, 0, 20], [0, 1.2, 0, -10], [0, 0, 1.5, 3], [0, 0, 0, 1]])
TINY = ModelConfig(feature_dim=4, features=4, growth=4, blocks=1, layers=1, decoder_width=8)
QUICK = ("psnr", "ssim", "consistency")


def brain(seed=0, shape=(24, 26, 28)):
    """A ball of smooth texture in nothing."""
    random = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    z, y, x = (np.arange(n) - (n - 1) / 2 for n in shape)
    ball = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 < (min(shape) / 2 - 2) ** 2
    texture = 200 + 800 * (random - random.min()) / np.ptp(random)
    return Volume(np.where(ball, texture, 0).astype(np.float32), AFFINE)


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "set"
    data.mkdir()
    for number in (1, 2):
        io.write(data / f"sub-{number}.nii.gz", brain(number))
    return data


def settings_for(folder, out, **changes):
    values = {
        "data": [parse_dataset(str(folder))],
        "methods": [parse("cubic"), parse("back-projection:3")],
        "rows": out / "rows.csv",
        "scales": [2.0, (1.0, 1.0, 2.5)],
        "metrics": QUICK,
    }
    return Settings(**values | changes)


def run(settings, **options):
    return evaluate(settings, Tools(), **options)


def command(folder, out, *words, scales=("2",), metrics="psnr,ssim"):
    words = ["--out", out, "--scales", *scales, "--metrics", metrics, *words]
    return main(["evaluate", str(folder), *map(str, words)])


# ------------------------------------------------------------------------------- numbers


def test_a_row_holds_what_the_metrics_say(folder, tmp_path):
    settings = settings_for(folder, tmp_path / "out")
    outcome = run(settings)
    rows = read_rows(settings.rows)
    assert (outcome.made, outcome.kept, outcome.skipped) == (8, 0, [])
    assert len(rows) == 8
    high = io.read(folder / "sub-2.nii.gz")
    low = ScannerModel("gaussian").measure(high, high.grid.scaled((1, 1, 1 / 2.5)))
    result = CubicField(low).sample(high.grid)
    (row,) = [
        r for r in rows if (r.volume, r.scale, r.method) == ("sub-2.nii.gz", "2.5x1x1", "cubic")
    ]
    mask = high.data > 0
    assert row.psnr == pytest.approx(psnr(high.data, result.data), abs=1e-6)
    assert row.psnr_mask == pytest.approx(psnr(high.data, result.data, mask=mask), abs=1e-6)
    assert row.ssim == pytest.approx(ssim(high.data, result.data), abs=1e-6)
    assert row.ssim_mask == pytest.approx(ssim(high.data, result.data, mask=mask), abs=1e-6)
    # i, j, k: 28 voxels became round(28 / 2.5) = 11.
    assert row.true_scale == "2.5455x1x1"
    assert row.volume_sha256 == io.content_sha256(folder / "sub-2.nii.gz")
    assert (row.dataset, row.scanner, row.device) == ("set", "gaussian:1", "cpu")
    assert "torch=" in row.versions
    assert row.seconds > 0
    assert row.memory_mb > 50


def test_sharpness_is_of_the_slices_in_which_the_reference_has_some(folder, tmp_path):
    settings = settings_for(folder, tmp_path, metrics=("lpc-si",), scales=[2.0])
    run(settings)
    rows = read_rows(settings.rows)
    own = {row.volume: row for row in rows if row.method == REFERENCE}
    results = [row for row in rows if row.method != REFERENCE]
    assert len(own) == 2
    assert len(results) == 4
    for row in results:
        assert 0 < row.lpc_si <= 1
        assert row.lpc_si_left_out == own[row.volume].lpc_si_left_out > 0
    by = {(row.volume, row.method): row.lpc_si for row in results}
    assert by["sub-1.nii.gz", "cubic"] < by["sub-1.nii.gz", "back-projection:3"]


def test_lpips_is_in_the_rows_where_its_weights_are(folder, tmp_path):
    from test_metrics_slices import random_state

    features, heads = random_state()
    torch.save(features | heads, tmp_path / "lpips.pth")
    big = tmp_path / "big"
    big.mkdir()
    io.write(big / "a.nii.gz", brain(0, (34, 36, 38)))
    words = ("--methods", "cubic", "--lpips-weights", tmp_path / "lpips.pth")
    assert command(big, tmp_path / "out", *words, metrics="psnr,lpips") == 0
    (row,) = read_rows(tmp_path / "out" / "rows.csv")
    assert row.lpips > 0
    assert row.lpips_left_out > 0
    assert row.attempted == {"psnr", "lpips"}


def test_without_its_weights_lpips_is_not_available_and_all_else_is_done(
    folder, tmp_path, monkeypatch, capsys
):
    from napari_arssr.evaluation import lpips

    nowhere = tuple(replace(f, address="https://127.0.0.1:9/x") for f in lpips.FILES)
    monkeypatch.setattr(lpips.fetch, "__defaults__", (None, nowhere, None))
    monkeypatch.setenv("NAPARI_ARSSR_CACHE", str(tmp_path / "cache"))
    # It was asked for by name, so that it is missing: counted, named, and in the exit status.
    assert command(folder, tmp_path / "out", "--methods", "cubic", metrics="psnr,lpips") == 1
    said = capsys.readouterr()
    assert "LPIPS is not available" in said.err
    assert "1 case skipped" in said.out
    assert "lpips: it is not available here" in (tmp_path / "out" / "skipped.csv").read_text()
    rows = read_rows(tmp_path / "out" / "rows.csv")
    assert all(math.isnan(row.lpips) and row.psnr > 0 for row in rows)
    assert rows[0].attempted == {"psnr"}


def test_what_a_row_holds_is_what_the_metrics_give(tmp_path):
    """Ranges, scanner and slices as defined: each a call of its own beside the row's columns."""
    from test_metrics_slices import random_state

    from napari_arssr.evaluation import lpips
    from napari_arssr.evaluation.lpc_si import lpc_si
    from napari_arssr.evaluation.metrics import data_consistency
    from napari_arssr.evaluation.psi import psi
    from napari_arssr.evaluation.slices import Intensities, slicewise

    data = tmp_path / "set"
    data.mkdir()
    # Large and with edges along one direction at least: else no slice has a PSI.
    blocks = np.random.default_rng(0).uniform(100, 900, (5, 12, 12)).repeat(8, 0).repeat(8, 1)
    truth = Volume(blocks.repeat(8, 2).astype(np.float32), AFFINE)
    io.write(data / "a.nii.gz", truth)
    # Brighter than its reference, and flat in slices in which that is not.
    other = replace(truth, data=(truth.data * 1.5 + 40).astype(np.float32))
    other.data[20:22] = 300
    (tmp_path / "theirs" / "x2-kspace-1.3").mkdir(parents=True)
    io.write(tmp_path / "theirs" / "x2-kspace-1.3" / "a.nii.gz", other)
    features, heads = random_state()
    torch.save(features | heads, tmp_path / "lpips.pth")
    model = lpips.load([tmp_path / "lpips.pth"])
    settings = settings_for(
        data,
        tmp_path,
        methods=[parse(f"theirs={tmp_path / 'theirs'}")],
        scales=[2.0],
        scanner=parse_scanner("kspace:1.3"),
        metrics=("lpips", "psi", "lpc-si", "consistency"),
    )
    evaluate(settings, Tools(lpips=model))
    (row,) = [row for row in read_rows(settings.rows) if row.method == "theirs"]
    intensities = Intensities.of(truth.data)
    unit, own = intensities.unit(other.data), intensities.unit(truth.data)
    assert row.lpips == pytest.approx(lpips.lpips_slices(model, own, unit).mean, rel=1e-5)
    for name, score, gain in (("psi", psi, 1), ("lpc_si", lpc_si, 255)):
        mine, reference = (slicewise(score, part * np.float32(gain)) for part in (unit, own))
        assert np.isnan(mine.z[20])
        assert not np.isnan(reference.z[20])
        means = [
            np.mean(np.nan_to_num(one)[~np.isnan(two)])
            for one, two in zip(mine.directions, reference.directions, strict=True)
            if not np.isnan(two).all()
        ]
        assert getattr(row, name) == pytest.approx(np.mean(means), rel=1e-5)
    low = ScannerModel("kspace", 1.3).measure(truth, truth.grid.scaled(0.5))
    expected = data_consistency(other, low, ScannerModel("kspace", 1.3))
    assert row.consistency == pytest.approx(expected, abs=1e-4)


# ------------------------------------------------------------------------------ protocol


def test_values_below_zero_are_no_background_by_their_sign(tmp_path):
    ball = brain()
    inside = ball.data > 0
    scores = np.where(inside, (ball.data - 600) / 200, 0).astype(np.float32)
    assert scores.min() < 0
    np.testing.assert_array_equal(foreground(scores), inside & (scores != 0))
    # Splines ring around a brain, and above 0 as far as below.
    ringing = ndimage.zoom(ball.data, 1.3, order=3)
    assert ringing.min() < 0
    solid = ndimage.zoom(inside.astype(float), 1.3, order=1) > 0.5
    found = foreground(ringing)
    assert np.count_nonzero(found & solid) > 0.97 * np.count_nonzero(solid)
    assert np.count_nonzero(found & ~solid) < 0.15 * np.count_nonzero(solid)
    bright = np.where(inside, (ball.data - 600) / 200, 0).astype(np.float32)
    bright[12, 13, 14] = 20
    assert 0 > bright.min() > -0.2 * bright.max()
    np.testing.assert_array_equal(foreground(bright), inside & (bright != 0))
    tomogram = np.where(inside, ball.data - 1000, -1024).astype(np.float32)
    assert tomogram.max() < 0
    np.testing.assert_array_equal(foreground(tomogram), inside)


def test_results_made_elsewhere_count_for_the_input_they_were_made_of(folder, tmp_path, capsys):
    theirs = tmp_path / "theirs"
    for name, noise in (("x2", 0.0), ("x2-noise5", 5.0)):
        (theirs / name).mkdir(parents=True)
        for number in (1, 2):
            volume = brain(number)
            data = volume.data + np.float32(noise)
            io.write(theirs / name / f"sub-{number}.nii.gz", replace(volume, data=data))
    settings = settings_for(
        folder, tmp_path, methods=[parse(str(theirs))], scales=[2.0], noise=(0.0, 5.0, 10.0)
    )
    outcome = run(settings)
    rows = read_rows(settings.rows)
    assert {row.noise_percent for row in rows} == {0.0, 5.0}
    assert len({row.psnr for row in rows if row.volume == "sub-1.nii.gz"}) == 2
    assert {one.reason.endswith("x2-noise10/sub-1.nii.gz.") for one in outcome.skipped} == {
        True,
        False,
    }
    # Nor do they count for another scanner model, or other noise.
    outcome = run(replace(settings, noise=(0.0, 5.0), seed=1, scanner=ScannerModel("kspace")))
    assert outcome.made == 0
    assert {Path(one.reason.rstrip(".")).parent.name for one in outcome.skipped} == {
        "x2-kspace-1",
        "x2-kspace-1-noise5-seed1",
    }
    # Cut, they were made of another volume than the LR one that is at hand.
    outcome = run(replace(settings, noise=(0.0,), crop=1, rows=tmp_path / "cut.csv"))
    assert all(math.isnan(row.consistency) for row in read_rows(tmp_path / "cut.csv"))
    assert "made of the whole volume" in outcome.skipped[0].reason


def test_metrics_are_never_added_to_what_another_version_measured(folder, tmp_path, monkeypatch):
    settings = settings_for(folder, tmp_path, methods=[parse("cubic")], scales=[2.0])
    run(replace(settings, metrics=("psnr",)))
    for row in read_rows(settings.rows):
        add_row(settings.rows, replace(row, versions="napari-arssr=0.0.1", psnr=1.0))
    run(settings)
    for row in read_rows(settings.rows):
        assert "torch=" in row.versions
        assert row.psnr > 10  # measured again, with all that is beside it
        assert row.ssim > 0
    # Nothing of what was known is lost for that.
    for row in read_rows(settings.rows):
        add_row(settings.rows, replace(row, versions="napari-arssr=0.0.1"))
    run(replace(settings, metrics=("psi",)))
    for row in read_rows(settings.rows):
        assert {*QUICK, "psi"} <= row.attempted or row.method == REFERENCE
        assert row.versions != "napari-arssr=0.0.1"
    for row in read_rows(settings.rows)[-1:]:
        attempted = "psnr ssim consistency psi lpips"
        measured_with = {"metrics": attempted, "lpips": 0.1, "lpips_sha256": "a digest"}
        old = replace(row, versions="napari-arssr=0.0.1", **measured_with)
        add_row(settings.rows, old)
    cubic = type(parse("cubic"))
    ran, once = [], cubic.run
    with monkeypatch.context() as patch:
        patch.setattr(cubic, "run", lambda *given: ran.append(0) or once(*given))
        outcome = run(replace(settings, metrics=("psnr", "lpc-si")))
    assert len(ran) == 1  # for the other volume: that it cannot be done is known beforehand
    assert any(
        "lpips too, which is not available here as it was" in one.reason for one in outcome.skipped
    )
    assert read_rows(settings.rows)[-1].lpips == 0.1
    group = groups(read_rows(settings.rows))[0]
    assert "Of more than one set of versions: cubic." in tables(group)[0].notes


def test_what_cannot_be_measured_anew_this_time_stays_in_its_row(folder, tmp_path, monkeypatch):
    settings = settings_for(folder, tmp_path, methods=[parse("cubic")], scales=[2.0])
    run(replace(settings, metrics=("psnr", "ssim")))
    for row in read_rows(settings.rows):
        add_row(settings.rows, replace(row, versions="napari-arssr=0.0.1"))
    before = read_rows(settings.rows)

    def fail(*_given):
        raise OutOfMemory("There is not enough memory.")

    with monkeypatch.context() as patch:
        patch.setitem(scoring._SCORES, "ssim", fail)
        outcome = run(replace(settings, metrics=("psnr", "consistency")))
    assert read_rows(settings.rows) == before
    assert any("without losing ssim; it is left as it is" in s.reason for s in outcome.skipped)
    assert any("not enough memory" in s.reason for s in outcome.skipped)
    run(replace(settings, metrics=("psnr", "consistency")))
    assert all("torch=" in row.versions for row in read_rows(settings.rows))


def test_the_references_own_row_is_not_mixed_of_versions(folder, tmp_path):
    settings = settings_for(folder, tmp_path, methods=[parse("cubic")], scales=[2.0])
    run(replace(settings, metrics=("lpc-si",)))
    own = [row for row in read_rows(settings.rows) if row.method == REFERENCE]
    for row in own:
        add_row(settings.rows, replace(row, versions="napari-arssr=0.0.1", lpc_si=9.0))
    run(replace(settings, metrics=("psi",)))
    for row in read_rows(settings.rows):
        if row.method == REFERENCE:
            assert "torch=" in row.versions
            assert row.lpc_si < 1
            assert {"psi", "lpc-si"} <= row.attempted


def test_what_two_runs_measure_at_once_comes_into_one_row(tmp_path):
    rows = tmp_path / "rows.csv"
    alike = {"dataset": "a", "volume": "v", "scale": "2", "method": "cubic", "versions": "x=1"}
    begun = Row(**alike, metrics="psnr", psnr=30.0, seconds=2.0)
    add_row(rows, begun)
    told = {"lpips": 0.2, "lpips_sha256": "b", "lpips_left_out": 3}
    add_row(rows, replace(begun, metrics="psnr lpips psi", impossible="psi: too small", **told))
    # The other began before that was there.
    stands = add_row(rows, replace(begun, metrics="psnr ssim", psnr=31.0, ssim=0.9))
    assert read_rows(rows)[0].attempted == {"psnr", "ssim", "lpips", "psi"}
    assert stands.key == read_rows(rows)[0].key
    assert (stands.psnr, stands.ssim, stands.lpips, stands.lpips_left_out) == (31.0, 0.9, 0.2, 3)
    assert (stands.lpips_sha256, stands.reasons) == ("b", {"psi": "too small"})
    # What other versions measured is not mixed with it.
    newer = add_row(rows, replace(begun, versions="x=2"))
    assert newer.attempted == {"psnr"}
    assert len(read_rows(rows)) == 1


def test_asking_only_for_what_cannot_be_had_ends_before_any_work(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ants", None)
    settings = settings_for(folder, tmp_path, methods=[parse("cubic")], metrics=("lpips", "dice"))
    with pytest.raises(UsageError, match="Nothing to score: lpips and dice cannot be had here"):
        run(settings)
    assert not settings.rows.exists()


def test_data_swallowed_by_an_option_are_not_taken_for_none(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(folder, out, "--methods", "cubic", metrics="psnr") == 0
    capsys.readouterr()
    words = ["evaluate", "--out", str(out), "--methods", "cubic", str(folder)]
    assert main(words) == 2
    assert "--methods is of no use without data to score" in capsys.readouterr().err
    assert main(["evaluate", "--out", str(out), "--quiet"]) == 0


def test_a_pair_of_files_has_the_digest_of_both(tmp_path):
    io.write(tmp_path / "a.img", brain())
    before = io.content_sha256(tmp_path / "a.img")
    header = bytearray((tmp_path / "a.hdr").read_bytes())
    header[148] ^= 1  # descrip
    (tmp_path / "a.hdr").write_bytes(header)
    assert io.content_sha256(tmp_path / "a.img") != before
    assert io.content_sha256(tmp_path / "a.hdr") == io.content_sha256(tmp_path / "a.img")


def test_pictures_are_of_the_first_volume_that_could_be_scored(folder, tmp_path):
    io.write(folder / "a.nii.gz", Volume(np.full((24, 26, 28), 7.0, np.float32), AFFINE))
    out = tmp_path / "out"
    assert command(folder, out, "--methods", "cubic", metrics="psnr") == 1
    assert list((out / "figures").glob("*.png"))


def test_a_mask_among_the_volumes_is_no_volume(folder, tmp_path):
    mask = (brain(1).data > 500).astype(np.uint8)
    io.write(folder / "sub-1_mask.nii.gz", Volume(mask, AFFINE))
    outcome = run(settings_for(folder, tmp_path, methods=[parse("cubic")], scales=[2.0]))
    assert [one.volume for one in outcome.skipped] == ["sub-1_mask.nii.gz"]
    assert "labels, not intensities" in outcome.skipped[0].reason


def test_what_was_skipped_stands_beside_its_own_report(folder, tmp_path):
    io.write(folder / "a.nii.gz", Volume(np.full((24, 26, 28), 7.0, np.float32), AFFINE))
    rows = tmp_path / "rows.csv"
    words = ("--methods", "cubic", "--rows", rows, "--pictured", "0")
    assert command(folder, tmp_path / "a", *words, metrics="psnr") == 1
    (folder / "a.nii.gz").unlink()
    assert command(folder, tmp_path / "b", *words, metrics="psnr") == 0
    assert "every voxel is 7" in (tmp_path / "a" / "skipped.csv").read_text()
    assert "every voxel is 7" not in (tmp_path / "b" / "skipped.csv").read_text()


@pytest.mark.parametrize("kind", ["older", "newer"])
def test_rows_of_other_versions_are_said_to_be_of_those(folder, tmp_path, kind):
    settings = settings_for(folder, tmp_path, metrics=("psnr",), scales=[2.0])
    run(settings)
    lines = [line.split(",") for line in settings.rows.read_text().splitlines()]
    place = lines[0].index("precision_asked")
    for number, line in enumerate(lines):
        if kind == "older":
            del line[place]
        else:
            line.append("sharpness" if number == 0 else "1")
    settings.rows.write_text("\n".join(",".join(line) for line in lines))
    with pytest.raises(FileError, match=f"written by an? {kind} version of napari-arssr"):
        read_rows(settings.rows)


def test_a_path_with_an_equals_sign_is_a_path(folder, tmp_path):
    session = tmp_path / "ses=1"
    session.mkdir()
    (folder / "sub-1.nii.gz").rename(session / "sub-1.nii.gz")
    assert parse_dataset(str(session)).name == "ses=1"
    assert parse_dataset(f"one={session}").name == "one"
    assert parse(str(session)).name == "ses=1"


def test_cubic_corner_is_the_published_zoom(folder):
    prepared = prepare("set", folder / "sub-1.nii.gz")
    case = measured(prepared, 2.0, parse_scanner("cubic-corner"))
    expected = ndimage.zoom(prepared.volume.data, 0.5, order=3)
    assert np.abs(case.low.data - expected).max() < 0.02
    # and is taken for what it is not: the span of the outer faces
    assert case.low.grid == prepared.volume.grid.scaled(0.5)
    aligned = measured(prepared, 2.0, parse_scanner("cubic"))
    assert np.abs(aligned.low.data - expected).max() > 20


def test_the_misaligned_protocol_costs_cubic_interpolation(folder, tmp_path):
    scores = {}
    for scanner in ("cubic", "cubic-corner"):
        settings = settings_for(
            folder, tmp_path, scanner=parse_scanner(scanner), scales=[2.0], metrics=("psnr",)
        )
        run(settings)
        scores[scanner] = [
            row.psnr
            for row in read_rows(settings.rows)
            if row.scanner == scanner and row.method == "cubic"
        ]
    assert len(scores["cubic"]) == len(scores["cubic-corner"]) == 2
    assert min(np.subtract(scores["cubic"], scores["cubic-corner"])) > 0.5


@pytest.mark.parametrize("text", ["gaussian:1", "slice-profile:1.2", "kspace:1", "cubic"])
def test_scanner_models_are_stated_as_they_are_asked_for(text):
    assert parse_scanner(text).text == text
    assert parse_scanner("gaussian") == ScannerModel("gaussian")


@pytest.mark.parametrize(
    ("text", "message"), [("laser", "no scanner model"), ("gaussian:x", "'x' is not the width")]
)
def test_an_unknown_scanner_model_is_said(text, message):
    with pytest.raises(UsageError, match=message):
        parse_scanner(text)


def test_sizes_that_do_not_divide_keep_the_span(folder):
    prepared = prepare("set", folder / "sub-1.nii.gz")
    case = measured(prepared, 2.5, ScannerModel("gaussian"))
    assert case.low.grid.shape == (10, 10, 11)  # 24, 26, 28 over 2.5, half up
    assert case.low.grid.extent == pytest.approx(prepared.volume.grid.extent)


def test_noise_is_the_same_for_every_method_and_of_the_stated_size(folder):
    prepared = prepare("set", folder / "sub-1.nii.gz")
    clean = measured(prepared, 2.0, ScannerModel("gaussian")).low.data
    noisy = measured(prepared, 2.0, ScannerModel("gaussian"), noise=5, seed=3).low.data
    again = measured(prepared, 2.0, ScannerModel("gaussian"), noise=5, seed=3).low.data
    assert (noisy == again).all()
    sigma = 0.05 * np.ptp(prepared.volume.data)
    assert (noisy - clean).std() == pytest.approx(sigma, rel=0.05)


def test_thick_slices_are_not_measured_again_where_that_is_asked(tmp_path):
    thick = Volume(brain().data, np.diag([1.0, 1.0, 4.0, 1.0]))
    io.write(tmp_path / "a.nii", thick)
    prepared = prepare("set", tmp_path / "a.nii")
    case = measured(prepared, 2.0, ScannerModel("gaussian"), keep_thick=True)
    assert case.measurement.factors == (1.0, 2.0, 2.0)
    assert case.low.grid.shape == (24, 13, 14)


def test_scales_of_thick_slices_are_rows_of_their_own(tmp_path):
    io.write(tmp_path / "a.nii", Volume(brain().data, np.diag([1.0, 1.0, 4.0, 1.0])))
    settings = settings_for(
        tmp_path / "a.nii", tmp_path, scales=[2.0], metrics=("psnr",), methods=[parse("cubic")]
    )
    assert run(settings).made == 1
    assert run(replace(settings, keep_thick=True)).made == 1
    assert [row.scale for row in read_rows(settings.rows)] == ["2", "2x2x1"]  # i, j, k


def test_data_sets_of_one_name_are_brought_together_or_told_apart(folder, tmp_path):
    one, two = (str(folder / f"sub-{n}.nii.gz") for n in (1, 2))
    (together,) = parse_datasets([one, two])
    assert (together.name, len(together.files)) == ("set", 2)
    other = tmp_path / "other" / "set"
    other.mkdir(parents=True)
    io.write(other / "sub-1.nii.gz", brain(5))
    with pytest.raises(UsageError, match=r"both be the data set 'set'.*NAME="):
        parse_datasets([str(folder), str(other)])
    assert [d.name for d in parse_datasets([str(folder), f"b={other}"])] == ["set", "b"]
    with pytest.raises(UsageError, match=r"both sub-1\.nii\.gz of the data set 'a'"):
        parse_datasets([f"a={folder}", f"a={other}"])


def test_the_crop_keeps_the_mask_and_so_many_voxels_around_it(folder):
    whole = prepare("set", folder / "sub-1.nii.gz")
    cut = prepare("set", folder / "sub-1.nii.gz", crop=1)
    assert cut.mask.sum() == whole.mask.sum()
    assert all(
        cut.mask.any(axis=tuple(a for a in range(3) if a != axis)).argmax() == 1
        for axis in range(3)
    )
    assert (whole.volume.data[cut.box.slices] == cut.volume.data).all()
    assert cut.volume.grid == whole.volume.grid.crop(cut.box)


def test_a_head_is_told_from_its_noisy_background(tmp_path):
    data = brain().data + np.random.default_rng(0).uniform(1, 20, (24, 26, 28))
    io.write(tmp_path / "a.nii", Volume(data.astype(np.float32), AFFINE))
    mask = prepare("set", tmp_path / "a.nii").mask
    assert mask.sum() == pytest.approx((brain().data > 0).sum(), rel=0.02)


def test_masks_are_those_of_a_folder(folder, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    inside = np.zeros((24, 26, 28), dtype=np.uint8)
    inside[8:16, 8:16, 8:16] = 1
    io.write(masks / "sub-1.nii", Volume(inside, AFFINE))  # another suffix will do
    prepared = prepare("set", folder / "sub-1.nii.gz", masks=masks, crop=0)
    assert prepared.volume.data.shape == (8, 8, 8)
    assert prepared.mask.all()
    assert prepared.mask_source.startswith("sha256:")


def test_the_benchmarks_protocol_can_be_asked_for(tmp_path, monkeypatch):
    """``benchmarks/scores.py`` gives the same numbers as --crop 8 here."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import scores

    data = tmp_path / "lesion"
    data.mkdir()
    shape = (44, 45, 46)
    inner = np.zeros(shape, dtype=np.float32)
    inner[10:34, 9:35, 9:37] = brain().data
    io.write(data / "a.nii.gz", Volume(inner, AFFINE))
    prepared = prepare("lesion", data / "a.nii.gz", crop=scores.MARGIN)
    wanted = [
        scores.Row("lesion", "a.nii.gz", "2", 2.0, method, "", 0, 0, 0)
        for method in ("cubic", "back-projection")
    ]
    expected = [row.psnr for row in scores.score(wanted, prepared, None, "float32")]
    settings = settings_for(
        data,
        tmp_path,
        methods=[parse("cubic"), parse("back-projection")],
        scales=[2.0],
        noise=(2.0,),
        crop=scores.MARGIN,
        keep_thick=True,
        metrics=("psnr",),
    )
    run(settings)
    found = [row.psnr_mask for row in read_rows(settings.rows)]
    assert found == pytest.approx(expected, abs=1e-3)


def test_the_comparison_is_made_by_commands_that_there_are(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import comparison

    words = ["DATA", "--out", str(tmp_path / "o"), "--minutes", "50", "--per", "method"]
    words += ["--scales", "2", "1,1,4", "--weights", "large=big.safetensors", "--commands"]
    words += ["--", "--batch", "2"]
    monkeypatch.setattr(sys, "argv", ["comparison.py", *words])
    assert comparison.main() == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["napari-arssr"] * len(lines)
    asked = [_parser().parse_args(line[1:]) for line in lines]
    trained = [line for line in lines if line[1] == "train"]
    # Three baselines at two scales, ours, and the paper's with three encoders.
    assert len(trained) == 3 * 2 + 1 + 3
    minutes = {"--baseline" in line: line[line.index("--minutes") + 1] for line in trained}
    assert minutes == {True: "25", False: "50"}
    assert {("--baseline" in line, "--batch" in line) for line in trained} == {
        (True, True),
        (False, False),
    }
    exported = {str(one.output) for one in asked if hasattr(one, "output")}
    methods = dict(text.partition("=")[::2] for text in asked[-1].methods)
    assert {str(Path(path).parent) for path in exported if "/x" in path} == {
        methods[name] for name in ("SRCNN3D", "DCSRN", "ResCNN")
    }
    assert {methods[name] for name in ("ours", "ArSSR-RDN", "ArSSR-SRResNet")} <= exported
    assert asked[-1].data == ["brains_t1w=DATA/brains_t1w/val", "lesion=DATA/lesion"]
    assert not (tmp_path / "o").exists()


def test_ours_is_trained_by_one_budget_and_by_as_much_as_a_rivals_networks_have_together(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import comparison

    words = ["DATA", "--out", str(tmp_path / "o"), "--minutes", "8", "--commands"]
    monkeypatch.setattr(sys, "argv", ["comparison.py", *words])
    assert comparison.main() == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    trained = [line for line in lines if line[1] == "train"]
    minutes = {line[line.index("--name") + 1]: [] for line in trained}
    for line in trained:
        minutes[line[line.index("--name") + 1]].append(line[line.index("--minutes") + 1])
    assert minutes["ours"] == ["8"]
    assert minutes["ours-5x"] == ["40"]
    assert minutes["ResCNN"] == ["8"] * 5
    methods = [text.partition("=")[0] for text in lines[-1]]
    assert methods.index("ours-5x") == methods.index("ours") + 1


def test_a_comparison_is_not_gone_on_with_at_another_budget(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import comparison

    for place in ("brains_t1w/train", "brains_t1w/val", "lesion"):
        (tmp_path / "DATA" / place).mkdir(parents=True)
    calls = []

    def call(words, _options):
        calls.append(words)
        if words[0] == "export":
            Path(words[2]).write_bytes(b"weights")
        return int(broken and words[0] == "train" and "3" in words)

    monkeypatch.setattr(comparison, "call", call)
    words = [str(tmp_path / "DATA"), "--out", str(tmp_path / "o"), "--scales", "2", "3"]
    words += ["--baselines", "DCSRN", "--encoders"]

    def compare_at(*budget):
        calls.clear()
        monkeypatch.setattr(sys, "argv", ["comparison.py", *words, *budget])
        return comparison.main()

    broken = True
    assert compare_at("--minutes", "4") == 1  # one network is trained, the second broken off
    (tmp_path / "o" / "runs" / "DCSRN-x3").mkdir(parents=True)
    for budget in (["--minutes", "5"], ["--steps", "4"], ["--minutes", "4", "--", "--batch", "1"]):
        assert compare_at(*budget) == 1
        assert calls == []
        said = capsys.readouterr().err
        assert "x2.safetensors: trained with --baseline DCSRN --scale 2 --minutes 4, and" in said
        assert "DCSRN-x3: trained with --baseline DCSRN --scale 3 --minutes 4, and" in said
    broken = False
    assert compare_at("--minutes", "4") == 0
    assert [line[0] for line in calls] == ["train", "export"] * 3 + ["evaluate"]
    (tmp_path / "o" / "weights" / "DCSRN" / "x2.txt").unlink()
    assert compare_at("--minutes", "4") == 1
    assert "x2.safetensors: trained with unknown" in capsys.readouterr().err


# ------------------------------------------------------------------------------- methods


def write_baseline(path, name, scale, seed=0):
    torch.manual_seed(seed)
    model = build(BaselineConfig(name, scale, "minmax"))
    save(path, model, BaselineCard(model.config, name=name), torch.float32)
    return model.eval()


def test_a_baseline_refines_cubic_interpolation_at_its_own_scales(folder, tmp_path):
    weights = tmp_path / "srcnn"
    weights.mkdir()
    model = write_baseline(weights / "a.safetensors", "SRCNN3D", (2, 2, 2))
    write_baseline(weights / "b.safetensors", "SRCNN3D", (3, 3, 3), seed=1)
    method = parse(str(weights))
    assert (method.name, method.network) == ("SRCNN3D", "baseline SRCNN3D")
    prepared = prepare("set", folder / "sub-1.nii.gz")
    case = measured(prepared, 2.0, ScannerModel("gaussian"))
    result, device, precision = method.run(case, Machine(), lambda: False)
    assert (device, precision) == ("cpu", "float32")
    low, high = case.low.data.min(), case.low.data.max()
    cubic = (CubicField(case.low).sample(case.grid).data - low) / (high - low)
    with torch.no_grad():
        expected = low + (high - low) * model(torch.from_numpy(cubic)[None])[0].numpy()
    assert np.abs(result.data - expected).max() < 1e-3 * (high - low)
    assert result.grid == prepared.volume.grid
    assert method.digest("", Measurement((2, 2, 2))) == io.content_sha256(weights / "a.safetensors")
    assert method.digest("", Measurement((3, 3, 3))) == io.content_sha256(weights / "b.safetensors")
    with pytest.raises(UsageError, match=r"no weights for scale 2\.5, only for 2, 3"):
        method.digest("", Measurement((2.5, 2.5, 2.5)))


def test_weights_are_read_before_the_clock_runs(folder, tmp_path):
    write_baseline(tmp_path / "a.safetensors", "DCSRN", (2, 2, 2))
    save(tmp_path / "b.safetensors", ArSSR(TINY), Card(TINY), torch.float32)
    case = measured(prepare("s", folder / "sub-1.nii.gz"), 2.0, ScannerModel("gaussian"))
    for name in ("a.safetensors", "b.safetensors", "b.safetensors+consistency"):
        method = parse(f"{tmp_path}/{name}")
        method.ready(case.measurement.factors)
        for path in tmp_path.glob("*.safetensors"):
            path.rename(path.with_suffix(".away"))
        result, _, _ = method.run(case, Machine(), lambda: False)
        assert result.grid == case.grid
        for path in tmp_path.glob("*.away"):
            path.rename(path.with_suffix(".safetensors"))


def test_a_baseline_without_a_scale_is_skipped_there_and_named(folder, tmp_path):
    path = tmp_path / "x.safetensors"
    write_baseline(path, "DCSRN", (1, 1, 2.5))
    settings = settings_for(folder, tmp_path, methods=[parse("cubic"), parse(f"mine={path}")])
    outcome = run(settings)
    assert {(s.volume, s.scale, s.method) for s in outcome.skipped} == {
        ("sub-1.nii.gz", "2", "mine"),
        ("sub-2.nii.gz", "2", "mine"),
    }
    assert {row.scale for row in read_rows(settings.rows) if row.method == "mine"} == {"2.5x1x1"}


def test_an_arssr_network_runs_under_any_name_and_with_consistency(folder, tmp_path):
    from napari_arssr import upsample

    path = tmp_path / "tiny.safetensors"
    torch.manual_seed(0)
    save(path, ArSSR(TINY), Card(TINY, name="tiny"), torch.float32)
    methods = [parse(str(path)), parse(f"other={path}"), parse(f"{path}+consistency")]
    assert [m.name for m in methods] == ["tiny", "other", "tiny+consistency"]
    assert methods[0].network == "ArSSR RDN with published decoder"
    prepared = prepare("set", folder / "sub-1.nii.gz")
    case = measured(prepared, 2.0, ScannerModel("gaussian"))
    plain, _, _ = methods[0].run(case, Machine(), lambda: False)
    assert (plain.data == upsample(case.low, shape=case.grid.shape, weights=path).data).all()
    step, _, _ = methods[2].run(case, Machine(), lambda: False)
    expected = upsample(
        case.low, shape=case.grid.shape, weights=path, consistency=ScannerModel("gaussian")
    )
    assert np.abs(step.data - expected.data).max() < 0.05
    assert np.abs(step.data - plain.data).max() > 1
    with pytest.raises(Cancelled):
        methods[0].run(case, Machine(), lambda: True)


def test_an_arssr_network_is_scored_as_the_mean_of_its_orientations(folder, tmp_path):
    from napari_arssr import upsample

    path = save_tiny(tmp_path / "tiny.safetensors")
    words = ["", "+orientations:3", "+orientations:3+consistency"]
    plain, mean, both = (parse(f"{path}{word}") for word in words)
    assert [m.name for m in (plain, mean, both)] == [f"tiny{word}" for word in words]
    assert parse(f"three={path}+orientations:3").name == "three"
    assert parse(f"{path}+consistency+orientations:3").recipe == both.recipe
    assert len({m.recipe for m in (plain, mean, both)}) == 3
    case = measured(prepare("s", folder / "sub-1.nii.gz"), 2.0, ScannerModel("gaussian"))
    for method, options in (
        (mean, {}),
        (both, {"consistency": ScannerModel("gaussian")}),
    ):
        result, _, _ = method.run(case, Machine(), lambda: False)
        expected = upsample(
            case.low, shape=case.grid.shape, weights=path, orientations=3, **options
        )
        np.testing.assert_allclose(result.data, expected.data, atol=0.05)
        single = upsample(case.low, shape=case.grid.shape, weights=path, **options)
        assert np.abs(result.data - single.data).max() > 1


def test_weights_run_with_the_normalisation_of_their_training(folder, tmp_path):
    path = tmp_path / "x.safetensors"
    torch.manual_seed(0)
    card = Card(TINY, training={"normalization": "minmax", "steps": 1})
    save(path, ArSSR(TINY), card, torch.float32)
    from napari_arssr import upsample

    case = measured(prepare("s", folder / "sub-1.nii.gz"), 2.0, ScannerModel("gaussian"))
    result, _, _ = parse(str(path)).run(case, Machine(), lambda: False)
    same = upsample(case.low, shape=case.grid.shape, weights=path, normalize="minmax")
    other = upsample(case.low, shape=case.grid.shape, weights=path, normalize="percentile")
    assert (result.data == same.data).all()
    assert (result.data != other.data).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "no weights 'nothing'"),
        ("=cubic", "needs a name"),
        ("cubic+consistency", r"only networks take \+consistency"),
        ("cubic+orientations:3", r"only ArSSR networks take \+orientations"),
        ("default+consistency:gaussian", r"\+consistency goes by --scanner"),
        ("default+orientations", r"say of how many, such as \+orientations:3"),
        ("default+orientations:4", "mean of 1, 3, 6, 12 orientations, not of 4"),
        ("back-projection:x", "no weights"),
    ],
)
def test_a_method_that_is_none_is_said(text, message):
    with pytest.raises(UsageError, match=message):
        parse(text)


def test_files_of_two_baselines_or_of_one_scale_twice_are_no_method(tmp_path):
    for name, network, scale in (("a", "DCSRN", 2), ("b", "DCSRN", 2), ("c", "SRCNN3D", 3)):
        write_baseline(tmp_path / f"{name}.safetensors", network, (scale,) * 3)
    a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
    with pytest.raises(UsageError, match="both for scale 2"):
        parse(f"{a},{b}")
    with pytest.raises(UsageError, match="DCSRN and SRCNN3D"):
        parse(f"{a},{c}")


def test_a_folder_with_weights_for_every_scale_is_named_by_its_file(tmp_path):
    save(tmp_path / "best.safetensors", ArSSR(TINY), Card(TINY), torch.float32)
    with pytest.raises(UsageError, match=r"name the file itself: .*best\.safetensors"):
        parse(str(tmp_path))


def test_two_methods_of_one_name_are_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="Two methods are called cubic"):
        run(settings_for(folder, tmp_path, methods=[parse("cubic"), parse("cubic")]))
    with pytest.raises(UsageError, match="cannot be called 'reference'"):
        run(settings_for(folder, tmp_path, methods=[parse("reference=cubic")]))


def test_results_made_elsewhere_are_scored_where_they_lie(folder, tmp_path):
    results = tmp_path / "theirs"
    (results / "x2").mkdir(parents=True)
    truth = io.read(folder / "sub-1.nii.gz")
    offset = replace(truth, data=truth.data + np.float32(5))
    io.write(results / "x2" / "sub-1.nii", offset)
    moved = truth.affine.copy()
    moved[0, 3] += 0.5
    io.write(results / "x2" / "sub-2.nii.gz", Volume(truth.data, moved))
    (results / "x3").mkdir()
    io.write(results / "x3" / "sub-1.nii.gz", Volume(truth.data[1:], truth.affine))
    settings = settings_for(
        folder, tmp_path, methods=[parse(f"theirs={results}")], scales=[2.0, 3.0], crop=0
    )
    outcome = run(settings)
    (row,) = read_rows(settings.rows)
    assert row.volume == "sub-1.nii.gz"
    assert row.psnr_mask == pytest.approx(20 * math.log10(np.ptp(truth.data) / 5), abs=1e-3)
    assert row.weights_sha256 == io.content_sha256(results / "x2" / "sub-1.nii")
    reasons = {(s.volume, s.scale): s.reason for s in outcome.skipped}
    assert "does not lie on its reference" in reasons["sub-2.nii.gz", "2"]
    assert "has 28 × 26 × 23 voxels and its reference 28 × 26 × 24" in reasons["sub-1.nii.gz", "3"]
    assert "there is no" in reasons["sub-2.nii.gz", "3"]


# ------------------------------------------------------------------------------- resuming


def shown(settings):
    """Mean PSNR of each method in the tables."""
    (group,) = groups(read_rows(settings.rows))
    block = compare(group, "psnr", group.methods)
    return {method: cell.mean for (method, _), cell in block.cells.items()}


def test_another_method_under_one_name_has_rows_of_its_own(folder, tmp_path):
    settings = settings_for(folder, tmp_path, scales=[2.0], metrics=("psnr",))
    one = replace(settings, methods=[parse("mine=cubic")])
    other = replace(settings, methods=[parse("mine=back-projection:3")])
    assert run(one).made == 2
    cubic = shown(one)["mine"]
    assert run(other).made == 2
    assert shown(other)["mine"] > cubic + 0.5
    assert run(one).made == 0
    assert shown(one)["mine"] == cubic


def test_consistency_and_steps_are_part_of_what_a_row_is_of(tmp_path):
    save(tmp_path / "x.safetensors", ArSSR(TINY), Card(TINY), torch.float32)
    write_baseline(tmp_path / "b.safetensors", "DCSRN", (2, 2, 2))
    (tmp_path / "results").mkdir()
    words = ["cubic", "back-projection", "back-projection:3", f"{tmp_path}/x.safetensors"]
    words += [f"{tmp_path}/x.safetensors+consistency", f"{tmp_path}/b.safetensors"]
    words += [f"{tmp_path}/b.safetensors+consistency", f"{tmp_path}/results"]
    recipes = [parse(f"mine={word}").recipe for word in words]
    assert len(set(recipes)) == len(words)
    assert recipes[1] == parse("back-projection:10").recipe


def test_tables_and_pictures_are_by_the_weights_of_the_last_run(folder, tmp_path):
    for number, name in enumerate("ab"):
        write_baseline(tmp_path / f"{name}.safetensors", "DCSRN", (2, 2, 2), seed=number)
    settings = settings_for(
        folder, tmp_path, scales=[2.0], metrics=("psnr",), pictures=tmp_path / "pictures"
    )
    means, made, pixels = [], [], []
    for name in "aba":
        method = parse(f"net={tmp_path / name}.safetensors")
        made.append(run(replace(settings, methods=[parse("cubic"), method])).made)
        means.append(shown(settings)["net"])
        (group,) = groups(read_rows(settings.rows))
        (row,) = (r for r in group.rows if r.method == "net" and r.volume == "sub-1.nii.gz")
        pixels.append(pictures.load_result(settings.pictures, row)["axial"])
    assert made == [4, 2, 0]
    assert means[0] == means[2] != means[1]
    assert (pixels[0] == pixels[2]).all()
    assert (pixels[0] != pixels[1]).any()


def test_an_earlier_mask_is_shown_again_when_it_is_given_again(folder, tmp_path):
    for name, margin in (("wide", 4), ("narrow", 9)):
        inside = np.zeros((24, 26, 28), dtype=np.uint8)
        inside[margin:-margin, margin:-margin, margin:-margin] = 1
        (tmp_path / name).mkdir()
        for number in (1, 2):
            io.write(tmp_path / name / f"sub-{number}.nii.gz", Volume(inside, AFFINE))
    found = []
    for name in ("wide", "narrow", "wide"):
        settings = settings_for(
            folder,
            tmp_path,
            masks=tmp_path / name,
            scales=[2.0],
            metrics=("psnr",),
            methods=[parse("cubic")],
        )
        run(settings)
        (group,) = groups(read_rows(settings.rows))
        found.append({(row.volume, row.mask, row.psnr_mask) for row in group.rows})
    assert found[0] == found[2] != found[1]


def test_files_of_rows_from_before_recipes_are_read_and_measured_again(folder, tmp_path):
    settings = settings_for(folder, tmp_path, scales=[2.0], metrics=("psnr",))
    run(settings)
    with settings.rows.open(newline="") as opened:
        lines = list(csv.DictReader(opened))
    later = {"recipe", "lpips_sha256", "priors_sha256", "impossible"}
    with settings.rows.open("w", newline="") as opened:
        names = [name for name in lines[0] if name not in later]
        writer = csv.DictWriter(opened, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    before = read_rows(settings.rows)
    assert [row.recipe for row in before] == [""] * 4
    assert all(row.psnr > 0 for row in before)
    assert run(settings).made == 4
    (group,) = groups(read_rows(settings.rows))
    assert group.superseded == 4


def test_the_committed_rows_of_the_comparison_can_be_read():
    (brains, lesion) = groups(read_rows(Path(__file__).parents[1] / "docs" / "comparison.csv"))
    assert len(tables(brains)) == len(tables(lesion)) == 5


def test_a_metric_that_does_not_exist_is_said_again_by_every_run(tmp_path, capsys):
    data = tmp_path / "set"
    data.mkdir()
    io.write(data / "a.nii.gz", brain(0, (10, 26, 28)))  # too thin for SSIM and PSI
    said = []
    for _ in range(2):
        words = ("--methods", "cubic", "--pictured", "0")
        assert command(data, tmp_path / "out", *words, metrics="psnr,ssim,psi") == 1
        with (tmp_path / "out" / "skipped.csv").open(newline="") as opened:
            said.append({(line["method"], line["reason"]) for line in csv.DictReader(opened)})
    assert "0 rows made, 1 there before, 3 cases skipped" in capsys.readouterr().out
    assert said[0] == said[1]
    names = [(method, reason.split(":")[0]) for method, reason in said[0]]
    assert sorted(names) == [("cubic", "psi"), ("cubic", "ssim"), (REFERENCE, "psi")]


def test_a_metric_that_failed_for_another_reason_is_tried_again(folder, tmp_path, monkeypatch):
    settings = settings_for(folder, tmp_path, scales=[2.0], metrics=("psnr", "ssim"))

    def fail(*_):
        raise OutOfMemory("no room")

    with monkeypatch.context() as patched:
        patched.setitem(scoring._SCORES, "ssim", fail)
        assert len(run(settings).skipped) == 4
    assert all(row.attempted == {"psnr"} for row in read_rows(settings.rows))
    outcome = run(settings)
    assert (outcome.made, outcome.skipped) == (4, [])
    assert all(row.ssim > 0 for row in read_rows(settings.rows))


def test_other_priors_measure_dice_again(folder, tmp_path, monkeypatch):
    from napari_arssr.evaluation import segmentation

    def segment(volume, mask, priors):
        levels = np.linspace(300, 700, 2 if priors is None else 5)
        return np.where(mask, 1 + np.digitize(volume.data, levels), 0).astype(np.uint8)

    monkeypatch.setattr(segmentation, "why_not", lambda: "")
    monkeypatch.setattr(segmentation, "segment", segment)
    maps = [Volume(np.full((2, 2, 2), n, dtype=np.float32), np.eye(4)) for n in range(7)]
    sets = [None, segmentation.Priors(tuple(maps[:6])), segmentation.Priors(tuple(maps[1:])), None]
    settings = settings_for(
        folder, tmp_path, scales=[2.0], methods=[parse("cubic")], metrics=("psnr", "dice")
    )
    found = []
    for priors in sets:
        assert evaluate(settings, Tools(priors=priors)).made == 2
        assert evaluate(settings, Tools(priors=priors)).made == 0
        found.append(read_rows(settings.rows)[0])
    assert [math.isnan(row.dice_cerebellum) for row in found] == [True, False, False, True]
    assert len({row.priors_sha256 for row in found}) == 3
    assert found[0] == found[3]
    # What is measured without them is not told that they are others.
    evaluate(replace(settings, metrics=("psnr", "ssim")), Tools(priors=sets[1]))
    assert read_rows(settings.rows)[0].priors_sha256 == ""


def test_other_weights_measure_lpips_again(tmp_path):
    from test_metrics_slices import random_state

    from napari_arssr.evaluation import lpips

    big = tmp_path / "big"
    big.mkdir()
    io.write(big / "a.nii.gz", brain(0, (34, 36, 38)))
    settings = settings_for(
        big, tmp_path, methods=[parse("cubic")], scales=[2.0], metrics=("lpips",)
    )
    values = []
    for factor in (1, 3, 1):
        features, heads = random_state()
        heads = {name: factor * head for name, head in heads.items()}
        torch.save(features | heads, tmp_path / "lpips.pth")
        tools = Tools(lpips.load([tmp_path / "lpips.pth"]))
        assert [evaluate(settings, tools).made for _ in range(2)] == [1, 0]
        values.append(read_rows(settings.rows)[0].lpips)
    assert values[1] == pytest.approx(3 * values[0], rel=1e-3)
    assert values[2] == pytest.approx(values[0])


def test_a_second_run_makes_nothing_and_changes_nothing(folder, tmp_path):
    settings = settings_for(folder, tmp_path)
    run(settings)
    before = settings.rows.read_bytes()
    outcome = run(settings)
    assert (outcome.made, outcome.kept) == (0, 8)
    assert settings.rows.read_bytes() == before


def test_a_run_that_was_broken_off_goes_on_where_it_was(folder, tmp_path):
    settings = settings_for(folder, tmp_path)
    done = []
    with pytest.raises(Cancelled):
        run(settings, report=done.append, stop=lambda: len(done) == 3)
    assert [row.key for row in read_rows(settings.rows)] == [row.key for row in done]
    assert len(done) == 3
    outcome = run(settings)
    assert (outcome.made, outcome.kept) == (5, 3)
    keys = [row.key for row in read_rows(settings.rows)]
    assert len(keys) == len(set(keys)) == 8


def test_further_metrics_go_into_the_rows_there_are(folder, tmp_path):
    settings = settings_for(folder, tmp_path, metrics=("psnr",))
    run(settings)
    first = {row.key: row for row in read_rows(settings.rows)}
    run(replace(settings, metrics=("psnr", "ssim")))
    second = {row.key: row for row in read_rows(settings.rows)}
    assert first.keys() == second.keys()
    for key, row in second.items():
        assert not math.isnan(row.ssim)
        assert (row.psnr, row.seconds) == (first[key].psnr, first[key].seconds)


def test_changed_volumes_weights_and_settings_make_new_rows(folder, tmp_path):
    path = tmp_path / "x.safetensors"
    write_baseline(path, "DCSRN", (2, 2, 2))
    settings = settings_for(
        folder, tmp_path, methods=[parse(f"net={path}")], scales=[2.0], metrics=("psnr",)
    )
    assert run(settings).made == 2
    write_baseline(path, "DCSRN", (2, 2, 2), seed=1)
    assert run(replace(settings, methods=[parse(f"net={path}")])).made == 2
    assert run(replace(settings, methods=[parse(f"net={path}")], crop=2)).made == 2
    assert run(replace(settings, methods=[parse(f"net={path}")], noise=(1.0,))).made == 2
    io.write(folder / "sub-1.nii.gz", brain(7))
    assert run(replace(settings, methods=[parse(f"net={path}")])).made == 1


def test_two_runs_share_a_file_without_losing_rows(tmp_path):
    path = tmp_path / "rows.csv"
    rows = [[Row(volume=f"{part}-{n}", psnr=n) for n in range(15)] for part in range(4)]

    def work(part):
        for row in [*rows[part], *rows[0]]:
            add_row(path, row)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_rows(path)
    assert sorted(row.volume for row in found) == sorted(r.volume for part in rows for r in part)


def test_rows_come_back_as_they_were(tmp_path):
    row = Row(dataset="a,b", volume='q"x.nii', psnr=math.inf, ssim=0.1234567891, parameters=3)
    add_row(tmp_path / "rows.csv", row)
    (found,) = read_rows(tmp_path / "rows.csv")
    assert (found.dataset, found.volume, found.psnr) == ("a,b", 'q"x.nii', math.inf)
    assert found.ssim == pytest.approx(row.ssim, abs=1e-10)
    assert math.isnan(found.lpips)
    assert found.key == row.key


def test_a_file_that_holds_no_rows_is_not_overwritten(folder, tmp_path):
    settings = settings_for(folder, tmp_path)
    settings.rows.write_text("a,b\n1,2\n")
    with pytest.raises(FileError, match="not a file of rows"):
        run(settings)
    assert settings.rows.read_text() == "a,b\n1,2\n"


def test_rows_in_parquet_are_those_in_csv(folder, tmp_path):
    pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")
    from pyarrow import parquet

    settings = settings_for(folder, tmp_path, scales=[2.0], metrics=("psnr", "psi"))
    run(settings)
    other = replace(settings, rows=tmp_path / "rows.parquet")
    for row in reversed(read_rows(settings.rows)):
        add_row(other.rows, row)
    outcome = run(other)
    assert (outcome.made, outcome.kept) == (0, 4)
    assert len(outcome.skipped) == 6  # PSI of slices this small, again
    assert read_rows(other.rows) == read_rows(settings.rows)
    table = parquet.read_table(other.rows)
    assert table.column("ssim").to_pylist() == [None] * 6
    kinds = {name: str(table.schema.field(name).type) for name in ("psnr", "seed", "recipe")}
    assert kinds == {"psnr": "double", "seed": "int64", "recipe": "string"}


def test_without_pyarrow_parquet_says_what_to_install(tmp_path, monkeypatch):
    row = Row(volume="a", psnr=1.5, parameters=2)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'napari-arssr\[parquet\]'.*\.csv"):
        add_row(tmp_path / "other.parquet", row)
    # Before any work: asked for the rows that are there, and there are none yet.
    with pytest.raises(UsageError, match=r"other\.parquet: Parquet files need pyarrow"):
        read_rows(tmp_path / "other.parquet")


# ------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (np.full((24, 26, 28), np.nan), "not finite in 17472 voxels"),
        (np.full((24, 26, 28), 7.0), "every voxel is 7"),
        (np.random.default_rng(0).random((2, 24, 26, 28)), "has 2 frames"),
    ],
)
def test_a_volume_that_cannot_be_scored_is_named_and_the_others_are_scored(
    folder, tmp_path, capsys, data, reason
):
    io.write(folder / "sub-0.nii.gz", Volume(data.astype(np.float32), AFFINE))
    out = tmp_path / "out"
    assert command(folder, out, "--methods", "cubic") == 1
    said = capsys.readouterr()
    assert reason in said.err
    assert "1 case skipped" in said.out
    assert {row.volume for row in read_rows(out / "rows.csv")} == {"sub-1.nii.gz", "sub-2.nii.gz"}
    with (out / "skipped.csv").open(newline="") as opened:
        (skipped,) = csv.DictReader(opened)
    assert skipped["volume"] == "sub-0.nii.gz"
    assert reason in skipped["reason"]
    assert "Skipped in the last run: 1" in (out / "report.html").read_text()
    (folder / "sub-0.nii.gz").unlink()
    assert command(folder, out, "--methods", "cubic") == 0
    assert (out / "skipped.csv").read_text().count("\n") == 1


def test_an_empty_folder_is_named_and_counted_and_the_others_are_scored(folder, tmp_path, capsys):
    empty = tmp_path / "nothing"
    empty.mkdir()
    out = tmp_path / "out"
    words = ["evaluate", empty, folder, "--out", out, "--scales", "2", "--metrics", "psnr"]
    assert main([*map(str, words), "--methods", "cubic"]) == 1
    said = capsys.readouterr()
    assert f"skipped nothing: {empty}: it holds no volume" in said.err
    assert "2 rows made, 0 there before, 1 case skipped" in said.out
    with (out / "skipped.csv").open(newline="") as opened:
        assert [line["dataset"] for line in csv.DictReader(opened)] == ["nothing"]


def test_a_damaged_file_is_named(folder, tmp_path, capsys):
    whole = (folder / "sub-1.nii.gz").read_bytes()
    (folder / "sub-0.nii.gz").write_bytes(whole[: len(whole) // 2])
    assert command(folder, tmp_path / "out", "--methods", "cubic") == 1
    assert "sub-0.nii.gz" in capsys.readouterr().err


def test_missing_and_misplaced_masks_are_named(folder, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    moved = AFFINE.copy()
    moved[1, 3] += 3
    io.write(masks / "sub-2.nii.gz", Volume((brain().data > 0).astype(np.uint8), moved))
    io.write(folder / "sub-3.nii.gz", brain(3))
    io.write(masks / "sub-3.nii.gz", Volume(np.ones((3, 3, 3), dtype=np.uint8), AFFINE))
    io.write(folder / "sub-4.nii.gz", brain(4))
    io.write(masks / "sub-4.nii.gz", Volume(np.zeros((24, 26, 28), dtype=np.uint8), AFFINE))
    io.write(folder / "sub-5.nii.gz", brain(5))
    hollow = np.where(brain(5).data > 0, 1, np.nan).astype(np.float32)
    io.write(masks / "sub-5.nii.gz", Volume(hollow, AFFINE))
    outcome = run(settings_for(folder, tmp_path, masks=masks))
    reasons = [skipped.reason for skipped in outcome.skipped]
    assert outcome.made == 0
    assert len(reasons) == 5
    wrong = np.count_nonzero(np.isnan(hollow))
    not_finite = f"{masks / 'sub-5.nii.gz'}: not finite in {wrong} voxels"
    for text, reason in zip(
        ("mask is missing", "does not lie on", "3 × 3 × 3 voxels", "mask is empty", not_finite),
        reasons,
        strict=True,
    ):
        assert text in reason


def test_a_result_that_is_not_finite_is_no_row(folder, tmp_path):
    results = tmp_path / "theirs" / "x2"
    results.mkdir(parents=True)
    for number in (1, 2):
        truth = io.read(folder / f"sub-{number}.nii.gz")
        data = truth.data.copy()
        data[3, 3, 3] = np.nan if number == 1 else 0
        io.write(results / f"sub-{number}.nii.gz", replace(truth, data=data))
    settings = settings_for(folder, tmp_path, methods=[parse(str(results.parent))], scales=[2.0])
    outcome = run(settings)
    assert [row.volume for row in read_rows(settings.rows)] == ["sub-2.nii.gz"]
    (skipped,) = outcome.skipped
    assert "not finite in 1 voxel." in skipped.reason


def test_a_metric_that_does_not_exist_for_a_volume_is_named_and_the_others_are_there(tmp_path):
    data = tmp_path / "set"
    data.mkdir()
    io.write(data / "a.nii.gz", brain(0, (10, 26, 28)))
    settings = settings_for(data, tmp_path, scales=[2.0], metrics=("psnr", "ssim", "psi"))
    outcome = run(settings)
    rows = [row for row in read_rows(settings.rows) if row.method != REFERENCE]
    assert all(row.psnr > 0 and math.isnan(row.ssim) and math.isnan(row.psi) for row in rows)
    assert {s.reason.split(":")[0] for s in outcome.skipped} == {"ssim", "psi"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["empty"], "there is no volume in this folder"),
        (["nowhere"], "nowhere does not exist"),
        (["set", "--scales", "0.5"], "at least 1"),
        (["set", "--scales", "2,2"], "neither one number nor three"),
        (["set", "--scales", "x"], "not a number"),
        (["set", "--scanner", "laser"], "no scanner model"),
        (["set", "--metrics", "psnr,vmaf"], "no metric 'vmaf'"),
        (["set", "--noise", "-1"], "between 0 and 100"),
        (["set", "--crop", "-1"], "not -1"),
        (["set", "--noise", "1", "--seed", "-1"], "at least 0, not -1"),
        (["set", "--metrics", ""], "No metric is named"),
        (["set", "--device", "cuda:7", "--methods", "cubic"], "no device"),
        (["set", "--methods", "cubic", "cubic"], "Two methods are called cubic"),
        (["set", "--masks", "nowhere"], "no such folder of masks"),
        (["set", "--memory", "lots"], "not an amount of memory"),
        (["set", "--rows", "rows.xls"], r"ends in .csv or .parquet"),
        (["set", "--device", "cuda:7", "--methods", "default"], "no device"),
        ([], "no rows to make tables of"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_wrong_use_is_one_sentence(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    metrics = ["--metrics", "psnr"] if words and "--metrics" not in words else []
    try:
        status = main(["evaluate", *words, "--out", "out", *metrics])
    except SystemExit as ended:  # what argparse refuses
        status = ended.code
    said = capsys.readouterr().err
    assert status in (1, 2)
    assert message in said
    assert "Traceback" not in said
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "words", [["--metrics", "lpips,vmaf"], ["--methods", "nothing"], ["--device", "cuda:7"]]
)
def test_what_is_wrong_is_refused_before_anything_is_fetched(folder, tmp_path, monkeypatch, words):
    from napari_arssr.evaluation import lpips

    fetched = []
    monkeypatch.setattr(lpips, "fetch", lambda **_: fetched.append("lpips"))
    out = str(tmp_path / "out")
    assert main(["evaluate", str(folder), "--out", out, "--metrics", "lpips", *words]) == 2
    assert not fetched
    assert not (tmp_path / "out").exists()


def test_a_series_of_which_nothing_can_be_scored_is_named_and_counted(tmp_path, capsys):
    data = tmp_path / "set"
    data.mkdir()
    io.write(data / "a.nii.gz", Volume(np.full((9, 9, 9), 7, dtype=np.float32), AFFINE))
    assert command(data, tmp_path / "out", "--methods", "cubic") == 1
    said = capsys.readouterr()
    assert "skipped a.nii.gz" in said.err
    assert f"nothing could be scored, so that there are no tables; {tmp_path}" in said.err
    assert "1 case skipped" in said.out
    assert "every voxel is 7" in (tmp_path / "out" / "skipped.csv").read_text()


def test_scales_are_said_in_the_order_of_the_file(folder):
    prepared = prepare("set", folder / "sub-1.nii.gz")
    with pytest.raises(UsageError, match=r"not 0\.5x1x2 \(i x j x k\)"):
        factors_of(prepared, (2, 1, 0.5))
    with pytest.raises(UsageError, match=r"scale 1\.01x1x1 \(i x j x k\) leaves"):
        factors_of(prepared, (1, 1, 1.01))


def test_pages_are_replaced_and_never_written_over(folder, tmp_path):
    out = tmp_path / "out"
    words = ("--methods", "cubic")
    names = ("report.html", "tables.md", "tables.tex", "settings.json")
    assert command(folder, out, *words, metrics="psnr") == 0
    before = {}
    for name in names:  # a reader that has the old page open
        (tmp_path / name).hardlink_to(out / name)
        before[name] = (out / name).read_bytes()
    assert command(folder, out, *words, metrics="psnr,ssim") == 0
    for name in names:
        assert (tmp_path / name).read_bytes() == before[name]
        assert (out / name).read_bytes() != before[name]


# --------------------------------------------------------------------------------- output


def test_the_command_makes_rows_tables_figures_and_a_report(folder, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("--methods", "cubic", "back-projection:3")
    assert command(folder, out, *words, scales=("2", "2.5", "1,1,2"), metrics="psnr,ssim") == 0
    assert "12 rows made, 0 there before, 0 cases skipped" in capsys.readouterr().out
    assert {row.scale for row in read_rows(out / "rows.csv")} == {"2", "2.5", "1x1x2"}
    (true,) = {r.true_scale for r in read_rows(out / "rows.csv") if r.scale == "1x1x2"}
    assert true == "1x1x2"  # the file's k is the array's first axis, of 24 voxels
    tables = (out / "tables.md").read_text()
    assert "Table 2: fidelity" in tables
    assert "| × 2 | × 2.5 | × 1 × 1 × 2 |" in tables
    assert r"\toprule" in (out / "tables.tex").read_text()
    names = {path.name for path in (out / "figures").iterdir()}
    assert "set-gaussian-1-psnr.svg" in names
    assert "set-gaussian-1-sub-1-x2-axial.png" in names
    assert "set-gaussian-1-sub-1-x2-axial-profile.svg" in names
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert not re.findall(r"(?:src|href)=['\"](?!data:)", page)  # nothing from elsewhere
    settings = json.loads((out / "settings.json").read_text())
    assert settings["scanner"] == "gaussian:1"
    assert str(tmp_path) not in (out / "settings.json").read_text()
    for path in ("tables.md", "tables.tex", "report.html", "settings.json"):
        (out / path).unlink()
    assert main(["evaluate", "--out", str(out)]) == 0  # again from the rows alone
    assert (out / "tables.md").read_text() == tables


def test_slices_are_kept_for_methods_that_come_later(folder, tmp_path):
    out = tmp_path / "out"
    assert command(folder, out, "--methods", "cubic", "--pictured", "0") == 0
    assert not (out / "pictures").exists()
    assert command(folder, out, "--methods", "cubic", "back-projection:3") == 0
    rows = read_rows(out / "rows.csv")
    assert len(rows) == 4
    for row in rows:
        wanted = row.volume == "sub-1.nii.gz"
        assert pictures.has_result(out / "pictures", row) == wanted
        assert (pictures.load_input(out / "pictures", row) is not None) == wanted


def test_volumes_of_one_stem_have_pictures_of_their_own(tmp_path):
    data = tmp_path / "set"
    data.mkdir()
    io.write(data / "a.nii", brain(1))
    io.write(data / "a.nii.gz", brain(2))
    out = tmp_path / "out"
    assert command(data, out, "--methods", "cubic", "--pictured", "2", metrics="psnr") == 0
    one, other = (out / "figures" / f"set-gaussian-1-a.{s}-x2-axial.png" for s in ("nii", "nii.gz"))
    assert one.read_bytes() != other.read_bytes()


def test_pictures_are_under_the_title_of_their_protocol(folder, tmp_path):
    out = tmp_path / "out"
    words = ("--methods", "cubic")
    figure = out / "figures" / "set-gaussian-1-sub-1-x2-axial-profile.svg"
    assert command(folder, out, *words, metrics="psnr") == 0
    before = figure.read_bytes()
    assert b"scanner model gaussian:1" in before
    assert command(folder, out, *words, "--scanner", "kspace", metrics="psnr") == 0
    assert figure.read_bytes() == before
    other = out / "figures" / "set-kspace-1-sub-1-x2-axial-profile.svg"
    assert b"scanner model kspace:1" in other.read_bytes()
    assert other.read_bytes().replace(b"kspace", b"gaussian") != before


def test_help_names_every_metric(capsys):
    with pytest.raises(SystemExit) as left:
        main(["evaluate", "--help"])
    assert left.value.code == 0
    said = re.sub(r"-\s+", "-", capsys.readouterr().out)  # lines break at hyphens
    for word in ("psnr", "lpips", "lpc-si", "cubic-corner", "+consistency", "back-projection"):
        assert word in said


def test_grids_of_results_are_those_of_references(folder):
    prepared = prepare("set", folder / "sub-1.nii.gz", crop=2)
    for scale in (2.0, 2.7, (1.0, 3.0, 1.5)):
        case = measured(prepared, scale, ScannerModel("gaussian"))
        for method in (parse("cubic"), parse("back-projection:2")):
            result, _, _ = method.run(case, Machine(), lambda: False)
            assert result.grid == prepared.volume.grid
    assert isinstance(prepared.whole, Grid)
