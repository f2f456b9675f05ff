import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from measured import measured
from PIL import Image
from scipy.stats import wilcoxon

from napari_arssr import io
from napari_arssr.degradation import ScannerModel
from napari_arssr.evaluation import pictures
from napari_arssr.evaluation.charts import Series, line_chart
from napari_arssr.evaluation.methods import scale_text
from napari_arssr.evaluation.montage import Panel, Window, choose_window, montage
from napari_arssr.evaluation.protocol import prepare
from napari_arssr.evaluation.rows import REFERENCE, Row, add_row
from napari_arssr.evaluation.tables import groups, tables
from napari_arssr.volume import Volume

VOLUMES = [f"sub-{n}" for n in range(8)]


def row(method, volume, value, scale="2", **others):
    facts = {"network": "interpolation", "dataset": "set", "scanner": "gaussian:1", "mask": "auto"}
    return Row(method=method, volume=volume, scale=scale, **facts | {"psnr": value} | others)


def rows(method, values, scale="2", **others):
    pairs = zip(VOLUMES, values, strict=False)
    return [row(method, volume, value, scale, **others) for volume, value in pairs]


def table(found, number="2"):
    (group,) = groups(found)
    return next(t for t in tables(group) if t.number == number)


# ---------------------------------------------------------------------------------- tables

GOOD = [31.2, 33.1, 30.7, 34.0, 32.2, 31.9, 33.3, 32.8]
FAIR = [31.0, 32.4, 30.8, 33.1, 31.7, 31.2, 33.0, 32.1]
POOR = [28.0, 29.0, 27.5, 30.1, 28.8, 28.1, 29.9, 29.3]


def test_slices_that_no_method_is_scored_in_are_counted():
    rows = [
        row(method, volume, 30.0, psi=0.2, psi_left_out=10 + number, cores=2 + number)
        for method in ("cubic", "theirs")
        for number, volume in enumerate(VOLUMES[:3])
    ]
    notes = {made.title: made.notes for made in tables(groups(rows)[0])}
    sharp = notes["sharpness without a reference"]
    assert any("PSI: 10 to 12 slices of a volume left out" in note for note in sharp)
    assert "Of more than one number of processor cores: cubic, theirs." in sharp
    assert not any("slices" in note for note in notes["fidelity"])


def test_a_table_holds_means_and_deviations_and_marks_the_best():
    made = table(rows("good", GOOD) + rows("poor", POOR) + rows("fair", FAIR))
    cells = made.blocks[0].cells
    assert cells["good", "2"].mean == pytest.approx(np.mean(GOOD))
    assert cells["good", "2"].deviation == pytest.approx(np.std(GOOD, ddof=1))
    assert [cells[m, "2"].best for m in ("good", "poor", "fair")] == [True, False, False]
    text = made.markdown()
    assert f"| good | **{np.mean(GOOD):.2f} ± {np.std(GOOD, ddof=1):.2f}** |" in text
    assert f"| poor | {np.mean(POOR):.2f} ± {np.std(POOR, ddof=1):.2f} |" in text


def test_names_of_any_signs_leave_tables_whole():
    names = ("a|b", "*star", "[x]<y>")
    made = table([row for name in names for row in rows(name, GOOD)])
    lines = [line for line in made.markdown().splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
    assert "| \\*star |" in made.markdown()
    tex = made.latex()
    assert r"{}*star & " in tex
    assert r"{}[x]\textless{}y\textgreater{} & " in tex
    assert r"a\textbar{}b" in tex
    assert "Table 2 of the evaluation" in tex


def test_the_best_is_tested_against_the_runner_up_in_pairs():
    made = table(rows("good", GOOD) + rows("poor", POOR) + rows("fair", FAIR))
    runner_up, p = made.blocks[0].tests["2"]
    assert runner_up == "fair"
    assert p == pytest.approx(wilcoxon(GOOD, FAIR).pvalue)
    assert p < 0.05
    assert f"{p:.2g} * (fair)" in made.markdown()


def test_with_few_volumes_it_is_said_that_the_test_cannot_tell():
    made = table(rows("good", GOOD[:5]) + rows("poor", POOR[:5]))
    assert made.blocks[0].tests["2"][1] == pytest.approx(2 / 2**5)
    assert "with 5 volumes it cannot fall below 0.062" in made.markdown()
    assert "cannot fall" not in table(rows("good", GOOD) + rows("poor", POOR)).markdown()


def test_smaller_is_better_for_lpips_and_time():
    made = table(rows("a", GOOD, lpips=0.2) + rows("b", POOR, lpips=0.1))
    lpips = next(block for block in made.blocks if block.column.title == "LPIPS")
    assert lpips.cells["b", "2"].best
    assert not lpips.cells["a", "2"].best


def test_methods_are_compared_on_the_volumes_that_all_have_and_others_are_named():
    found = rows("good", GOOD) + rows("fair", [*FAIR[:6], math.nan])
    made = table(found)
    block = made.blocks[0]
    assert block.cells["good", "2"].count == 6
    assert block.cells["good", "2"].mean == pytest.approx(np.mean(GOOD[:6]))
    assert block.left_out["2"] == ["sub-6", "sub-7"]
    assert "PSNR at scale 2: 2 left out" in made.markdown()
    assert "sub-6, sub-7" in made.markdown()


def test_a_method_without_a_scale_leaves_a_gap_and_not_the_others_out():
    found = rows("good", GOOD) + rows("fair", FAIR) + rows("good", POOR, "3")
    made = table(found)
    assert made.blocks[0].cells["good", "3"].count == 8
    assert ("fair", "3") not in made.blocks[0].cells
    assert not made.blocks[0].left_out
    assert re.search(r"\| fair \| [\d.]+ ± [\d.]+ \| – \|", made.markdown())


def test_the_reference_stands_for_the_volumes_that_are_compared():
    found = rows("a", GOOD, psi=0.2) + rows("b", FAIR[:6], psi=0.3)
    own = zip(VOLUMES, [0.5] * 6 + [9.0] * 2, strict=True)
    found += [
        Row(dataset="set", volume=volume, method=REFERENCE, mask="auto", psi=value)
        for volume, value in own
    ]
    cell = table(found, "4").blocks[0].cells[REFERENCE, "2"]
    assert (cell.mean, cell.count) == (pytest.approx(0.5), 6)


def test_results_of_weights_that_have_changed_are_never_averaged_in():
    old = rows("net", POOR, weights_sha256="old") + rows("cubic", FAIR)
    new = rows("net", GOOD[:6], weights_sha256="new")  # a run that was broken off
    made = table(old + new)
    cell = made.blocks[0].cells["net", "2"]
    assert (cell.mean, cell.count) == (pytest.approx(np.mean(GOOD[:6])), 6)
    assert made.blocks[0].left_out["2"] == ["sub-6", "sub-7"]
    assert "8 older rows of recipes, weights, masks or volumes that have" in made.markdown()
    changed = [row("cubic", "sub-0", 1.0, volume_sha256="new")]
    made = table(rows("cubic", FAIR) + changed)
    assert made.blocks[0].cells["cubic", "2"].mean == pytest.approx(np.mean([1.0, *FAIR[1:]]))
    assert "1 older row of" in made.markdown()


def test_methods_are_not_compared_on_a_volume_that_changed_between_them():
    old = rows("a", GOOD, volume_sha256="old") + rows("b", FAIR, volume_sha256="old")
    made = table([*old, row("a", "sub-0", 1.0, volume_sha256="new")])
    assert made.blocks[0].cells["a", "2"].mean == pytest.approx(np.mean(GOOD[1:]))
    assert made.blocks[0].left_out["2"] == ["sub-0"]


def test_results_measured_with_other_priors_or_lpips_are_never_averaged_in():
    old = rows("a", GOOD, dice=0.1, dice_gm=0.1, lpips=0.9, lpips_sha256="old")
    new = rows("a", GOOD[:6], dice=0.8, dice_gm=0.8, priors_sha256="new")
    new = [replace(r, lpips=0.2, lpips_sha256="new") for r in new]
    made = table([*old[6:], *new], "5")
    means = [cell.mean for block in made.blocks for cell in block.cells.values()]
    assert means == [pytest.approx(0.8)] * 2
    assert made.blocks[0].left_out["2"] == ["sub-6", "sub-7"]
    note = "2 older values left out, because measured with other weights or priors."
    assert made.markdown().count(f"Dice, mean: {note}") == made.markdown().count(note) == 1
    lpips = next(b for b in table([*old[6:], *new]).blocks if b.name == "lpips")
    assert lpips.cells["a", "2"].mean == pytest.approx(0.2)


def test_the_number_of_volumes_is_that_of_the_means_at_each_scale():
    found = rows("good", GOOD) + rows("fair", FAIR[:4])
    found += rows("good", GOOD, "3") + rows("fair", FAIR, "3")
    text = table(found).markdown()
    assert "over 4 to 8 volumes (PSNR 4 at scale 2, 8 at scale 3); the best in bold." in text
    assert "(with 4 volumes it cannot fall below 0.12)." in text


def test_a_volume_without_any_value_is_named():
    made = table([*rows("a", GOOD[:7]), *rows("b", FAIR[:7]), row("a", "sub-7", math.nan)])
    assert "PSNR at scale 2: 1 left out" in made.markdown()
    assert "over 7 volumes" in made.markdown()
    assert made.blocks[0].left_out["2"] == ["sub-7"]


def test_methods_that_share_no_volume_keep_their_table_and_it_says_so():
    made = table([*rows("a", GOOD[:2]), row("b", "sub-5", 29.0)])
    text = made.markdown()
    assert "There is no mean." in text
    assert "| a | – |" in text
    assert "no volume has a value of every method: sub-0, sub-1, sub-5." in text
    assert r"\begin{table}" in made.latex()
    ET.fromstring(made.html())


def test_results_made_elsewhere_have_a_digest_each():
    found = [
        row("theirs", volume, value, network="results", weights_sha256=volume)
        for volume, value in zip(VOLUMES, GOOD, strict=True)
    ]
    assert table(found).blocks[0].cells["theirs", "2"].count == 8


def test_of_one_volume_there_is_neither_deviation_nor_test():
    text = table([row("a", "v", 1.0), row("b", "v", 2.0)]).markdown()
    assert "One volume: there is no deviation; the best in bold." in text
    assert "±" not in text
    assert "Wilcoxon" not in text


def test_infinite_and_equal_values_are_shown_as_they_are():
    made = table(rows("a", [math.inf] * 3) + rows("b", [math.inf] * 3))
    assert "| a | **∞** |" in made.markdown()
    assert made.blocks[0].tests["2"][1] == 1


def test_scales_stand_by_size_and_anisotropic_ones_last():
    found = [row("a", "v", 1.0, scale) for scale in ("10", "1x1x4", "2.5", "4")]
    assert table(found).blocks[0].scales == ("2.5", "4", "10", "1x1x4")


def test_what_was_measured_otherwise_stands_in_a_table_of_its_own():
    found = [
        row("a", "v", 1.0),
        row("a", "v", 2.0, noise_percent=2.0),
        row("a", "v", 3.0, scanner="cubic-corner"),
        row("a", "v", 4.0, dataset="other"),
        row("a", "v", 5.0, crop="8"),
        row("a", "v", 6.0, noise_percent=2.0, seed=1),
        row("a", "v", 7.0, mask="sha256:0"),
    ]
    made = [t for group in groups(found) for t in tables(group)]
    assert len(made) == 7
    assert len({t.group.name for t in made}) == 7
    titles = {t.group.title for t in made}
    assert "set, scanner model gaussian:1, 2 % noise" in titles
    assert "set, scanner model gaussian:1, cut to the mask and 8 voxels around it" in titles


def test_there_is_a_table_for_each_of_the_papers_and_one_for_cost():
    values = {"ssim": 0.9, "lpips": 0.1, "psnr_mask": 30.0, "psi": 0.3, "lpc_si": 0.8}
    values |= {"dice": 0.9, "dice_csf": 0.8, "consistency": 40.0, "seconds": 3.0}
    arssr = {"network": "ArSSR RDN with residual decoder"}
    found = rows("cubic", GOOD, **values) + rows("ours", GOOD, **values | arssr)
    found.append(Row(dataset="set", volume="sub-0", method=REFERENCE, mask="auto", psi=0.5))
    (group,) = groups(found)
    made = {t.number: t for t in tables(group)}
    assert list(made) == ["1", "2", "3", "4", "5", "6"]
    assert made["1"].blocks[0].methods == ("ours",)
    assert made["4"].blocks[0].methods == ("cubic", "ours", REFERENCE)
    assert made["4"].blocks[0].cells[REFERENCE, "2"].mean == 0.5
    assert not made["4"].blocks[0].cells[REFERENCE, "2"].best
    assert "Dice, CSF" in made["5"].markdown()


def test_latex_is_whole_and_escaped():
    found = rows("a_b & 5 %", GOOD) + rows("fair", FAIR)
    text = table(found).latex()
    assert r"a\_b \& 5 \%" in text
    odd = table([row(r"{x}^\~", "v", 1.0), row("y", "v", 2.0)]).latex()
    assert r"\{x\}\textasciicircum{}\textbackslash{}\textasciitilde{} & 1.00 \\" in odd
    assert rf"\textbf{{{np.mean(GOOD):.2f} $\pm$ " in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {1}


def test_html_is_escaped():
    text = table(rows("<b>", GOOD) + rows("fair", FAIR)).html()
    assert "&lt;b&gt;" in text
    assert f"<b>{np.mean(GOOD):.2f}" in text
    ET.fromstring(text)


# ---------------------------------------------------------------------------------- charts

SVG = "{http://www.w3.org/2000/svg}"


def lines_of(svg: str) -> list[list[tuple[float, float]]]:
    """The places of each line's points, in the order drawn; y grows downwards."""
    root = ET.fromstring(svg)
    found = []
    for group in root.iter(f"{SVG}g"):
        for path in group.findall(f"{SVG}path"):
            style = path.get("style") or ""
            # Lines of data are cut to the axes, and thicker than the grid and error bars.
            if path.get("clip-path") and re.search(r"stroke-width: 2(\.6)?\b", style):
                numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", path.get("d"))]
                found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return found


def words_of(svg: str) -> list[str]:
    return [node.text for node in ET.fromstring(svg).iter(f"{SVG}text")]


def test_a_chart_has_labels_units_a_legend_and_its_lines():
    text = line_chart(
        [
            Series("cubic & <b>", (2, 3, 4), (30, 28, 26), (1, 1, 1), marked=True),
            Series("reference", (2, 4), (31, 31), strong=True),
        ],
        "PSNR: set",
        "scale",
        "PSNR, dB",
        subtitle="scanner model gaussian:1",
        x_ticks=(2, 3, 4),
    )
    words = words_of(text)
    assert {"PSNR: set", "scanner model gaussian:1", "scale", "PSNR, dB"} <= set(words)
    assert {"cubic & <b>", "reference", "2", "3", "4"} <= set(words)
    lines = lines_of(text)
    assert [len(line) for line in lines] == [3, 2]
    heights = [y for _, y in lines[0]]
    assert heights == sorted(heights)  # lower values lie lower
    assert heights[0] - lines[1][0][1] == pytest.approx((heights[2] - heights[0]) / 4, abs=0.1)


def test_the_same_chart_is_the_same_file():
    made = {line_chart([Series("a", (1, 2), (1, 2))], "title", "x", "y") for _ in range(2)}
    assert len(made) == 1


def test_a_chart_leaves_out_what_is_not_finite():
    text = line_chart([Series("a", (1, 2, 3), (1, math.inf, 2))], "", "x", "y")
    assert [len(line) for line in lines_of(text)] == [2]
    assert line_chart([Series("a", (1,), (math.nan,))], "", "x", "y") == ""


def test_bars_stand_beside_each_other():
    series = [Series(name, (2, 3), (30, 28), (1, 1), marked=True) for name in "abc"]
    lines = lines_of(line_chart(series, "", "x", "y", x_ticks=(2, 3)))
    assert np.diff([[x for x, _ in line] for line in lines], axis=0) == pytest.approx(3, abs=0.01)


def test_curves_are_over_the_volumes_that_all_methods_have(tmp_path):
    from napari_arssr.evaluation.report import write_report

    # On the volumes that both have, both are the same; alone, a has worse ones too.
    for scale in ("2", "3"):
        for found in rows("a", [30, 31, 10], scale) + rows("b", [30, 31], scale):
            add_row(tmp_path / "rows.csv", found)
    write_report(tmp_path, tmp_path / "rows.csv")
    text = (tmp_path / "figures" / "set-gaussian-1-psnr.svg").read_text(encoding="utf-8")
    one, other = ([y for _, y in line] for line in lines_of(text))
    assert len(one) == 2
    assert one == other
    assert {"PSNR: set", "scanner model gaussian:1"} <= set(words_of(text))


# --------------------------------------------------------------------------------- montage


def test_the_inset_is_where_there_is_most_to_see_and_inside():
    plane = np.zeros((80, 100), dtype=np.float32)
    plane[50:60, 70:80] = np.random.default_rng(0).random((10, 10))
    window = choose_window(plane, (1.0, 1.0))
    assert (window.rows, window.columns) == (25, 25)
    assert window.row <= 50 and window.row + window.rows >= 60  # noqa: PT018
    assert window.column <= 70 and window.column + window.columns >= 80  # noqa: PT018
    corner = np.zeros((80, 100), dtype=np.float32)
    corner[:6, :6] = plane[50:56, 70:76]
    window = choose_window(corner, (1.0, 1.0))
    assert window.row >= 0 and window.column >= 0  # noqa: PT018


def drawn(panels, truth, **settings):
    """A montage's pixels."""
    settings = {
        "spacing": (1.0, 1.0),
        "limits": (0.0, 100.0),
        "window": Window(5, 5, 8, 8),
        "letters": ("S", "I", "R", "L"),
        **settings,
    }
    with Image.open(BytesIO(montage(panels, truth, **settings))) as opened:
        return np.asarray(opened.convert("RGB"), dtype=int)


def test_a_montage_shows_slices_insets_and_differences_in_their_colours():
    truth = np.zeros((60, 40), dtype=np.float32)
    truth[:, 20:] = 50
    off = truth.copy()
    off[:30] += 20  # of the range of 100: beyond full colour, which is 10 %
    off[30:] -= 20
    panels = [
        Panel("input", "", truth, compared=False),
        Panel("mine", "30 dB", off),
        Panel("reference", "", truth, compared=False),
    ]
    # The slice is square in millimetres.
    pixels = drawn(panels, truth, spacing=(1.0, 1.5), window=Window(0, 10, 15, 10))
    red, blue = ((pixels == colour).all(axis=2) for colour in ([103, 0, 31], [5, 48, 97]))
    # The bar that explains the colours has some of each, too few to count.
    (red_rows, red_columns), (blue_rows, _) = np.nonzero(red), np.nonzero(blue)
    assert len(red_rows) == pytest.approx(len(blue_rows), rel=0.05)
    assert np.median(red_rows) < np.median(blue_rows)
    # From the middle of one half to the middle of the other.
    side = 2 * (np.median(blue_rows) - np.median(red_rows))
    assert len(red_rows) == pytest.approx(side * side / 2, rel=0.05)
    assert side == pytest.approx(240, abs=40)
    assert pixels.shape[1] > 3 * side
    assert red_columns.min() > pixels.shape[1] / 3.2  # the second column's alone


def test_a_montage_has_its_title_above_all():
    truth = np.random.default_rng(0).random((30, 30)).astype(np.float32)
    panels = [Panel("a", "", truth)]
    plain = drawn(panels, truth)
    titled = drawn(panels, truth, title="sub-1, scale × 2\n" + "set, gaussian:1 " * 9)
    assert (titled[:40] == 0).any()
    assert titled.shape[1] > plain.shape[1]
    assert (titled[:40, -4:] == 255).all()  # nothing is cut off


def test_a_long_name_ends_before_the_next_column():
    truth = np.random.default_rng(0).random((30, 30)).astype(np.float32)

    def named(first):
        return drawn([Panel(first, first, truth), Panel("b", "", truth)], truth)

    short, long = named("ab"), named("network_of_$2$_layers " * 9)
    assert long.shape[1] == short.shape[1]  # columns lie as they did
    words = (long[:40] < 200).any(axis=(0, 2))
    middle = long.shape[1] // 2
    assert words[: middle - 20].any()
    assert not words[middle - 5 : middle + 5].any()


def test_more_methods_than_fit_go_on_below_in_rows_alike():
    truth = np.random.default_rng(0).random((30, 30)).astype(np.float32)
    four, seven, eight = (
        drawn([Panel(f"method {n}", "", truth) for n in range(count)], truth).shape
        for count in (4, 7, 8)
    )
    assert seven[1] > 1.6 * four[1]
    assert eight[1] == pytest.approx(four[1], rel=0.1)
    assert eight[0] > 1.6 * four[0]


# ------------------------------------------------------------------------------ kept slices


def test_slices_lie_alike_whatever_the_order_of_a_file(tmp_path):
    data = np.random.default_rng(0).random((12, 14, 16)).astype(np.float32) + 1
    ras = Volume(data, np.diag([1.0, 1.2, 1.5, 1.0]), name="a")
    flipped = np.diag([-1.0, 1.2, 1.5, 1.0])
    flipped[0, 3] = 15
    las = Volume(np.ascontiguousarray(data[:, :, ::-1]), flipped, name="b")
    turned = replace(ras.transposed((1, 2, 0)), name="c")
    shown = []
    for number, volume in enumerate((ras, las, turned)):
        path = tmp_path / f"{number}.nii"
        io.write(path, replace(volume, data=np.ascontiguousarray(volume.data), metadata={}))
        prepared = prepare("set", path)
        case = measured(prepared, 2.0, ScannerModel("gaussian"))
        found = row("a", path.name, 1.0, scale_text(case.measurement.factors))
        place = pictures.folder_of(tmp_path, found)
        pictures.save_reference(place, prepared)
        pictures.save_input(tmp_path, found, case)
        planes = pictures.load_reference(place)
        shown.append((pictures.load_view(place), planes, pictures.load_input(tmp_path, found)))
    first, planes, low = shown[0]
    # Row 0 of an axial plane is the most anterior, column 0 the patient's right.
    index = first.index[0]
    assert (planes["axial"] == data[::-1, ::-1, ::-1][index]).all()
    assert first.spacing == pytest.approx((1.5, 1.2, 1.0))
    for view, others, others_low in shown[1:]:
        assert view.index == first.index
        assert view.spacing == pytest.approx(first.spacing)
        for name in pictures.PLANES:
            assert (others[name] == planes[name]).all()
            assert np.abs(others_low[name] - low[name]).max() < 1e-5


def test_the_input_is_drawn_as_the_voxels_that_were_measured(tmp_path):
    data = np.random.default_rng(0).random((9, 10, 12)).astype(np.float32) + 1
    io.write(tmp_path / "a.nii", Volume(data, np.eye(4)))
    prepared = prepare("set", tmp_path / "a.nii")
    case = measured(prepared, (1.0, 2.0, 3.0), ScannerModel("gaussian"))
    found = row("a", "a.nii", 1.0, "3x2x1")
    place = pictures.folder_of(tmp_path, found)
    pictures.save_reference(place, prepared)
    pictures.save_input(tmp_path, found, case)
    axial = pictures.load_input(tmp_path, found)["axial"]
    blocks = axial.reshape(5, 2, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    z = pictures.load_view(place).index[0]
    expected = case.low.data[::-1, ::-1, ::-1][z]
    assert (blocks[:, 0, :, 0] == expected).all()


def test_names_of_files_are_safe(tmp_path):
    place = pictures.folder_of(tmp_path, row("a", "a b:c.nii.gz", 1.0, dataset="../up"))
    assert place.parent.parent == tmp_path
    assert place.name.startswith("a-b-c-")


@pytest.mark.parametrize(
    "change",
    [
        {"scanner": "kspace:1"},
        {"noise_percent": 2.0},
        {"seed": 1, "noise_percent": 1.0},
        {"weights_sha256": "b"},
        {"recipe": "back-projection:20"},
        {"precision_asked": "bfloat16"},
        {"scale": "3"},
        {"volume": "v.nii"},
        {"volume_sha256": "b"},
        {"crop": "8"},
        {"mask": "sha256:0"},
        {"dataset": "other"},
    ],
)
def test_a_picture_is_of_one_row(tmp_path, change):
    random = np.random.default_rng(0)
    io.write(tmp_path / "v.nii", Volume(random.random((9, 9, 9)).astype(np.float32) + 1, np.eye(4)))
    prepared = prepare("set", tmp_path / "v.nii")
    kept = row("a", "v.nii.gz", 1.0, noise_percent=1.0)
    pictures.save_reference(pictures.folder_of(tmp_path, kept), prepared)
    pictures.save_result(tmp_path, kept, prepared.volume)
    assert pictures.has_result(tmp_path, replace(kept, ssim=0.5))
    assert not pictures.has_result(tmp_path, replace(kept, **change))


def test_voxels_that_are_laid_out_come_with_their_spacing_alone():
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    laid, spacing = pictures._laid_out(Volume(data, np.diag([1.0, 1.2, 1.5, 1.0])))
    assert isinstance(laid, np.ndarray)
    assert (laid == data[::-1, ::-1, ::-1]).all()
    assert spacing == pytest.approx((1.5, 1.2, 1.0))


def test_a_volume_that_is_one_slice_has_no_picture_across_it(tmp_path):
    from napari_arssr.evaluation.report import write_report

    data = np.random.default_rng(0).random((30, 30, 1)).astype(np.float32) + 1
    io.write(tmp_path / "v.nii", Volume(data, np.eye(4)))
    prepared = prepare("set", tmp_path / "v.nii")
    for method in ("one", "two"):
        found = row(method, "v.nii", 20.0)
        pictures.save_reference(pictures.folder_of(tmp_path / "pictures", found), prepared)
        pictures.save_result(tmp_path / "pictures", found, prepared.volume)
        add_row(tmp_path / "rows.csv", found)
    written = write_report(tmp_path, tmp_path / "rows.csv", planes=["axial", "sagittal"])
    assert [path.name for path in written if path.suffix == ".png"] == [
        "set-gaussian-1-v-x2-sagittal.png"
    ]


def test_names_with_dollars_and_underscores_are_shown_as_they_are():
    text = line_chart(
        [Series("_best", (1, 2), (1, 2)), Series("$b$", (1, 2), (1, 2))], "$", "x", "y"
    )
    words = "".join(words_of(text))
    assert "_best" in words
    assert "$b$" in words


def test_the_report_draws_what_is_kept(tmp_path):
    from napari_arssr.evaluation.report import write_report

    random = np.random.default_rng(0)
    data = random.random((20, 30, 40)).astype(np.float32) + 1
    (tmp_path / "data").mkdir()
    io.write(tmp_path / "data" / "v.nii", Volume(data, np.eye(4)))
    prepared = prepare("set", tmp_path / "data" / "v.nii")
    case = measured(prepared, 2.0, ScannerModel("gaussian"))
    album = tmp_path / "pictures"
    pictures.save_reference(pictures.folder_of(album, row("", "v.nii", 1.0)), prepared)
    for method in ("one", "two"):
        found = row(method, "v.nii", 20.0)
        pictures.save_input(album, found, case)
        noisy = replace(prepared.volume, data=data + random.random(data.shape).astype(np.float32))
        pictures.save_result(album, found, noisy)
        add_row(tmp_path / "rows.csv", found)
        add_row(tmp_path / "rows.csv", replace(found, scanner="kspace:1"))  # nothing kept
    written = write_report(tmp_path, tmp_path / "rows.csv", planes=["axial", "sagittal"])
    names = {path.name for path in written}
    assert {"set-gaussian-1-v-x2-axial.png", "set-gaussian-1-v-x2-sagittal.png"} <= names
    with Image.open(tmp_path / "figures" / "set-gaussian-1-v-x2-axial.png") as opened:
        assert opened.width > 4 * 200
    profile = (tmp_path / "figures" / "set-gaussian-1-v-x2-axial-profile.svg").read_text()
    words = [node.text for node in ET.fromstring(profile).iter(f"{SVG}text")]
    assert {"one", "two", "reference", "along the line, mm"} <= set(words)
    assert "set, scanner model gaussian:1" in words
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png") == 2
    assert "Table 2" in page
