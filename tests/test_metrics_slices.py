import http.server
import os
import pickle
import sys
import tempfile
import threading
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from napari_arssr import io
from napari_arssr.degradation import ScannerModel
from napari_arssr.download import RemoteFile
from napari_arssr.errors import FileError, UsageError
from napari_arssr.evaluation import data_consistency, lpips, segmentation
from napari_arssr.evaluation.back_projection import back_project
from napari_arssr.evaluation.lpc_si import lpc_si
from napari_arssr.evaluation.psi import psi
from napari_arssr.evaluation.slices import Intensities, SliceScores, slicewise
from napari_arssr.field import CubicField
from napari_arssr.volume import Box, Grid, Volume


def picture(shape=(140, 133), blur=1.5, seed=0):
    random = np.random.default_rng(seed).normal(size=shape)
    smooth = gaussian_filter(random, blur) + 2 * gaussian_filter(random, 6)
    return (smooth - smooth.min()) / np.ptp(smooth)


# ------------------------------------------------------------------------------------ PSI


def ramp(width, axis, rising=True, shape=(128, 160)):
    """Dark, a straight slope of so many pixels, bright: across the middle of each block."""
    positions = np.arange(shape[axis])
    line = np.zeros(shape[axis])
    for number, start in enumerate(range(40, shape[axis] - 40, 32)):
        line += np.clip((positions - start) / width, 0, 1) * (-1) ** number
    line = line if rising else 1 - line
    return np.broadcast_to(line[:, None] if axis == 0 else line[None, :], shape)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("rising", [True, False])
@pytest.mark.parametrize("width", [2, 4, 6])
def test_psi_of_a_slope_is_one_over_its_width(axis, rising, width):
    slopes = ramp(width, axis, rising)
    # Slopes of at least three pixels lose their steepness, here 1 over the width.
    perceived = width - (1 / width if width >= 3 else 0)
    assert psi(slopes) == pytest.approx(1 / perceived, abs=1e-9)


def slow_edges(image):
    """Crests of the Sobel gradient, pixel by pixel."""
    padded = np.pad(image, 1, mode="edge")
    sobel = np.zeros((2, *image.shape))
    for i, j in np.ndindex(image.shape):
        near = padded[i : i + 3, j : j + 3]
        sobel[0, i, j] = ((near[2] - near[0]) * [1, 2, 1]).sum() / 8
        sobel[1, i, j] = ((near[:, 2] - near[:, 0]) * [1, 2, 1]).sum() / 8
    strength = (sobel**2).sum(axis=0)
    around = np.pad(strength, 1, constant_values=-1)
    for i, j in np.argwhere(strength > 4 * strength.mean()):
        down, right = np.abs(sobel[:, i, j])
        here = strength[i, j]
        crest_x = right >= down and around[i + 1, j] <= here > around[i + 1, j + 2]
        crest_y = down >= right and around[i, j + 1] <= here > around[i + 2, j + 1]
        if crest_x or crest_y:
            yield i, j


def slow_width(line, place, angle):
    """From extreme to extreme of a line that rises at a place; 0 if it runs out of the picture."""
    end = begin = place
    while end + 1 < len(line) and line[end + 1] > line[end]:
        end += 1
    while begin > 0 and line[begin - 1] < line[begin]:
        begin -= 1
    if end == len(line) - 1 or begin == 0:
        return 0
    width = (end - begin) / np.cos(angle)
    return width - (line[end] - line[begin]) / width if width >= 3 else width


def slow_psi(image):
    """The definition, pixel by pixel."""
    widths = np.zeros(image.shape)
    for i, j in slow_edges(image):
        down, right = np.gradient(image[:, j])[i], np.gradient(image[i])[j]
        for line, place, along, across in (
            (image[:, j], i, down, right),
            (image[i], j, right, down),
        ):
            angle = np.arctan2(abs(across), abs(along))
            if angle < np.radians(8) and along:
                widths[i, j] += slow_width(line * np.sign(along), place, angle)
    means = []
    for i, j in np.ndindex(image.shape[0] // 32 - 2, image.shape[1] // 32 - 2):
        block = widths[32 * i + 32 : 32 * i + 64, 32 * j + 32 : 32 * j + 64]
        if block.sum() >= 2:
            means.append(block[block != 0].mean())
    used = int(np.ceil(0.22 * len(means)))
    return used / sum(sorted(means)[:used])


@pytest.mark.parametrize("seed", [0, 1])
def test_psi_is_its_definition(seed):
    image = picture(seed=seed)
    assert psi(image) == pytest.approx(slow_psi(image), rel=1e-9)


def test_psi_falls_with_blur_and_is_the_same_for_a_turned_picture():
    sharp, blurred = picture(blur=1), gaussian_filter(picture(blur=1), 1.5)
    assert psi(sharp) > 1.3 * psi(blurred)
    square = picture((160, 160))
    assert psi(square.T) == pytest.approx(psi(square), rel=1e-9)


def test_psi_says_when_there_is_nothing_to_measure():
    assert psi(np.full((128, 128), 0.3)) == 0
    assert np.isnan(psi(picture((95, 200))))
    assert psi(picture((96, 96))) > 0


# --------------------------------------------------------------------------------- LPC-SI


def slow_lpc_si(image):
    """The definition with numpy's own transforms, in full."""
    rows, columns = image.shape

    def axis(n):
        if n % 2:
            return np.arange(-(n - 1) / 2, n / 2) / (n - 1)
        return np.arange(-n / 2, n / 2) / n

    fy, fx = np.meshgrid(axis(rows), axis(columns), indexing="ij")
    radius, theta = np.sqrt(fx**2 + fy**2), np.arctan2(-fy, fx)
    low = 1 / (1 + (radius / 0.45) ** 30)
    radius[rows // 2, columns // 2] = 1
    spectrum = np.fft.fft2(image)
    b = round(min(rows, columns) / 16)
    top, bottom = 0, 0
    for o in range(8):
        turn = o * np.pi / 8
        apart = np.abs(np.arctan2(np.sin(theta - turn), np.cos(theta - turn)))
        angular = np.exp(-(apart**2) / (2 * (np.pi / 8 / 1.5) ** 2))
        responses = []
        for s in (1, 1.5, 2):
            radial = np.exp(-(np.log(radius * 4 * s) ** 2) / (2 * np.log(0.75) ** 2)) * low
            radial[rows // 2, columns // 2] = 0
            responses.append(np.fft.ifft2(spectrum * np.fft.ifftshift(radial * angular)))
        coherent = responses[0] * responses[1] ** -3 * responses[2] ** 2
        cosine = np.maximum(np.cos(np.angle(coherent)), 0)
        energy = np.abs(responses[0])
        inner = energy[b : rows - b, b : columns - b]
        energy = np.maximum(energy - inner.mean() - 2 * inner.std(ddof=1), 0)
        top, bottom = top + cosine * energy, bottom + energy
    values = np.sort((top / (bottom + 2))[b : rows - b, b : columns - b].ravel())[::-1]
    n = len(values)
    weights = np.exp(-np.arange(n) / (n - 1) / 1e-4)
    return (values * weights).sum() / weights.sum()


@pytest.mark.parametrize("shape", [(140, 133), (96, 128), (61, 75)])
def test_lpc_si_is_its_definition(shape):
    image = 255 * picture(shape)
    assert lpc_si(image) == pytest.approx(slow_lpc_si(image), abs=2e-4)
    assert 0.05 < lpc_si(image) < 1


def test_lpc_si_falls_with_blur_and_depends_on_the_range():
    sharp = 255 * picture(blur=0.7)
    assert lpc_si(sharp) > 1.2 * lpc_si(gaussian_filter(sharp, 2))
    assert lpc_si(sharp) > 1.05 * lpc_si(sharp / 255)
    assert np.isnan(lpc_si(sharp[:7]))


# ------------------------------------------------------------------------ slice by slice


def test_every_slice_of_the_three_directions_is_scored():
    volume = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    scores = slicewise(lambda image: float(image.sum()), volume)
    for axis, found in enumerate(scores.directions):
        others = tuple(a for a in range(3) if a != axis)
        assert found == pytest.approx(volume.sum(axis=others), rel=1e-5)
    expected = np.mean([found.mean() for found in scores.directions])
    assert scores.mean == pytest.approx(expected)


def test_constant_slices_are_left_out_and_counted():
    volume = np.zeros((8, 9, 10), dtype=np.float32)
    volume[2:5, 3:7, 4:6] = np.random.default_rng(0).random((3, 4, 2))
    scores = slicewise(lambda image: 1.0, volume)
    assert scores.left_out == (8 - 3) + (9 - 4) + (10 - 2)
    assert scores.mean == 1
    other = SliceScores(*(np.full(n, 3.0) for n in (8, 9, 10)))
    assert other.where(scores).left_out == scores.left_out
    nothing = SliceScores(*(np.full(n, np.nan) for n in (8, 9, 10)))
    assert np.isnan(nothing.mean)


def test_results_are_brought_to_the_range_of_the_reference():
    reference = np.array([[[-10.0, np.nan, 30.0]]])
    unit = Intensities.of(reference).unit(np.array([[[-20.0, 0.0, 30.0, 31.0]]]))
    assert unit.ravel() == pytest.approx([0, 0.25, 1, 1])
    with pytest.raises(UsageError, match="same everywhere"):
        Intensities.of(np.ones((2, 2, 2)))


# ---------------------------------------------------------------------------------- LPIPS


def random_state(seed=0):
    """Tensors named as torchvision and the LPIPS repository name them."""
    random = np.random.default_rng(seed)
    features, heads = {}, {}
    sizes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    for number, (index, (outputs, inputs, kernel)) in enumerate(sizes.items()):
        spread = (inputs * kernel**2) ** -0.5
        weight = random.normal(0, 1.5 * spread, (outputs, inputs, kernel, kernel))
        features[f"features.{index}.weight"] = torch.from_numpy(weight).float()
        features[f"features.{index}.bias"] = torch.from_numpy(random.normal(0, 0.1, outputs))
        heads[f"lin{number}.model.1.weight"] = torch.from_numpy(
            random.random((1, outputs, 1, 1)).astype(np.float32)
        )
    return features, heads


def slow_conv(x, weight, bias, stride, padding):
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    kernel = weight.shape[2]
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]
    return np.einsum("cijkl,ockl->oij", windows, weight) + bias[:, None, None]


def slow_lpips(one, other, features, heads):
    """Zhang et al. 2018 in NumPy, float64; pictures in [0, 1]."""

    def answers(image):
        x = np.stack([2 * image.astype(np.float64) - 1] * 3)
        x = (x - np.array([-0.030, -0.088, -0.188])[:, None, None]) / np.array(
            [0.458, 0.448, 0.450]
        )[:, None, None]
        for index, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
            if index in (3, 6):
                windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
                x = windows[:, ::2, ::2].max(axis=(3, 4))
            weight, bias = (
                features[f"features.{index}.{kind}"].double().numpy() for kind in ("weight", "bias")
            )
            x = np.maximum(slow_conv(x, weight, bias, stride, padding), 0)
            yield x / (np.sqrt((x**2).sum(axis=0)) + 1e-10)

    total = 0
    for number, (a, b) in enumerate(zip(answers(one), answers(other), strict=True)):
        head = heads[f"lin{number}.model.1.weight"].double().numpy().ravel()
        total += ((a - b) ** 2 * head[:, None, None]).sum(axis=0).mean()
    return total


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lpips")
    features, heads = random_state()
    classifier = {"classifier.1.weight": torch.zeros(2, 2)}  # AlexNet's file holds more
    torch.save(features | classifier, folder / "alexnet.pth")
    torch.save(heads, folder / "heads.pth")
    return folder / "alexnet.pth", folder / "heads.pth"


def test_lpips_is_its_definition(lpips_files):
    model = lpips.load(lpips_files)
    one, other = (picture((40, 47), seed=seed).astype(np.float32) for seed in (0, 1))
    volumes = (np.broadcast_to(p, (2, 40, 47)) for p in (one, other))
    scores = lpips.lpips_slices(model, *volumes)
    assert scores.z == pytest.approx(slow_lpips(one, other, *random_state()), rel=1e-4)
    assert scores.z[0] > 0.1
    assert np.isnan(scores.y).all()  # 2 × 47 pixels say nothing


def test_lpips_of_equal_pictures_is_zero_and_constant_slices_are_left_out(lpips_files):
    model = lpips.load(lpips_files)
    volume = np.zeros((33, 36, 34), dtype=np.float32)
    volume[5:9] = np.random.default_rng(0).random((4, 36, 34))
    scores = lpips.lpips_slices(model, volume, volume)
    assert np.nanmax(np.abs(scores.z)) < 1e-6
    assert np.isnan(scores.z).sum() == 33 - 4
    assert not np.isnan(scores.y).any()
    worse = lpips.lpips_slices(model, volume, volume + np.float32(0.1))
    assert worse.mean > 1e-3


def test_lpips_weights_are_read_under_all_their_names(lpips_files, tmp_path):
    features, heads = random_state()
    slices = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
    package = {
        f"net.slice{slices[int(name.split('.')[1])]}.{name.removeprefix('features.')}": tensor
        for name, tensor in features.items()
    } | {f"lins.{name[3]}.model.1.weight": tensor for name, tensor in heads.items()}
    torch.save(package, tmp_path / "lpips.pth")
    expected = lpips.load(lpips_files).state_dict()
    for paths in ([tmp_path / "lpips.pth"], [lpips_files[0].parent]):
        found = lpips.load(paths).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


class _Bomb:
    def __reduce__(self):
        return print, ("this must not run",)


def test_lpips_opens_tensors_and_nothing_else(lpips_files, tmp_path, capsys):
    bomb = tmp_path / "bomb.pth"
    torch.save({"features.0.weight": _Bomb()}, bomb)
    with pytest.raises(FileError, match="could run code"):
        lpips.load([bomb, lpips_files[1]])
    bomb.write_bytes(pickle.dumps({"features.0.weight": _Bomb()}))
    with pytest.raises(FileError, match="bomb"):
        lpips.load([bomb, lpips_files[1]])
    assert "must not" not in capsys.readouterr().out
    with pytest.raises(FileError, match=r"not whole, heads\.0 is missing"):
        lpips.load(lpips_files[:1])
    with pytest.raises(FileError, match="no such file"):
        lpips.load([tmp_path / "nothing.pth"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="no LPIPS weights in this folder"):
        lpips.load([tmp_path / "empty"])
    features, heads = random_state()
    features["features.3.weight"] = features["features.3.weight"][:-1]
    torch.save(features | heads, tmp_path / "other.pth")
    with pytest.raises(FileError, match=r"convolutions\.3\.weight has shape"):
        lpips.load([tmp_path / "other.pth"])


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_lpips_weights_are_fetched_once_and_verified(server, tmp_path):
    import hashlib

    folder, address = server
    content = b"tensors"
    (folder / "a.pth").write_bytes(content)

    def remote(name, digest):
        return RemoteFile(f"{address}/{name}", name, f"sha256:{digest}", allow_http=True)

    wanted = remote("a.pth", hashlib.sha256(content).hexdigest())
    cache = tmp_path / "cache"
    (path,) = lpips.fetch(cache, [wanted])
    assert path.read_bytes() == content
    (folder / "a.pth").unlink()
    assert lpips.fetch(cache, [wanted]) == [path]
    (folder / "b.pth").write_bytes(b"something else")
    wrong = remote("b.pth", "0" * 64)
    with pytest.raises(FileError, match=r"LPIPS is not available.*b\.pth.*--lpips-weights"):
        lpips.fetch(cache, [wrong])
    assert not (cache / "b.pth").exists()
    gone = remote("c.pth", "0" * 64)
    with pytest.raises(FileError, match="not available"):
        lpips.fetch(cache, [gone])


def test_lpips_comes_from_where_it_is_published_over_https():
    for file in lpips.FILES:
        assert file.address.startswith("https://")
        assert not file.allow_http
        assert len(file.digest.removeprefix("sha256:")) == 64
    # torchvision names its files after the beginning of their hash
    assert lpips.FILES[0].digest[7:].startswith(lpips.FILES[0].filename[-12:-4])


# -------------------------------------------------------------------------- consistency


def test_data_consistency_is_the_psnr_of_what_is_measured_again():
    truth = picture((24, 20 * 22)).reshape(24, 20, 22)
    high = Volume((100 * truth).astype(np.float32), np.eye(4))
    scanner = ScannerModel("gaussian")
    low = scanner.measure(high, high.grid.scaled(0.5))
    result = CubicField(low).sample(high.grid)
    again = scanner.measure(result, low.grid).data.astype(np.float64)
    error = np.mean((again - low.data) ** 2)
    expected = 10 * np.log10(np.ptp(low.data.astype(np.float64)) ** 2 / error)
    assert data_consistency(result, low, scanner) == pytest.approx(expected, abs=1e-4)
    assert data_consistency(high, low, scanner) > 100
    better = back_project(low, high.grid, scanner)
    assert data_consistency(better, low, scanner) > expected + 3


# ----------------------------------------------------------------------------------- Dice


def test_dice_of_a_case_worked_by_hand():
    one = np.array([[1, 1, 2, 0], [2, 2, 3, 0]])
    other = np.array([[1, 2, 2, 0], [2, 2, 0, 0]])
    # 1: 2·1/(2 + 1); 2: 2·3/(3 + 4); 3: 0; 4: in neither.
    found = segmentation.dice(one, other, 4)
    assert found[:3] == pytest.approx([2 / 3, 6 / 7, 0])
    assert np.isnan(found[3])
    with pytest.raises(UsageError, match="cannot be compared"):
        segmentation.dice(one, other[:1], 3)


def test_without_ants_dice_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ants", None)
    monkeypatch.setenv("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "3")
    assert "dice is not available" in segmentation.why_not()
    # SimpleITK reads it too.
    assert os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] == "3"
    volume = Volume(np.zeros((4, 4, 4), dtype=np.float32), np.eye(4))
    with pytest.raises(UsageError, match=r"napari-arssr\[segmentation\]"):
        segmentation.segment(volume, np.ones((4, 4, 4), dtype=bool))


class _Image:
    def __init__(self, data, origin, spacing, direction):
        self.data, self.origin, self.spacing, self.direction = data, origin, spacing, direction

    def numpy(self):
        return self.data


def test_an_installation_of_ants_that_is_broken_is_said_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "ants.py").write_text("import a_module_that_is_missing")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ants", raising=False)
    assert "a_module_that_is_missing" in segmentation.why_not()


@pytest.fixture
def ants(monkeypatch):
    """What ANTs is asked for, answered by thresholds: ANTs itself is no dependency."""
    module = types.ModuleType("ants")
    module.asked = []

    def atropos(**options):
        module.asked.append(options)
        image, mask = options["a"].data, options["x"].data
        if isinstance(options["i"], list):
            labels = 1 + np.argmax([prior.data for prior in options["i"]], axis=0)
        else:
            labels = 1 + np.digitize(image, [100, 200])
        return {"segmentation": _Image(labels * mask, None, None, None)}

    module.from_numpy = _Image
    module.atropos = atropos
    module.config = types.SimpleNamespace(set_ants_deterministic=lambda **_: None)
    monkeypatch.setitem(sys.modules, "ants", module)
    monkeypatch.delenv("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", raising=False)
    return module


def test_ants_gets_the_volume_where_it_lies(ants):
    angle = 0.3
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.5, 1, 2])
    affine[:3, 3] = 10, -20, 30
    data = np.random.default_rng(0).uniform(0, 300, (4, 5, 6)).astype(np.float32)
    mask = data > 30
    labels = segmentation.segment(Volume(data, affine), mask)
    assert (labels == np.where(mask, 1 + np.digitize(data, [100, 200]), 0)).all()
    image = ants.asked[0]["a"]
    assert image.data.shape == (6, 5, 4)  # i, j, k
    index = np.array([3, 1, 2])  # i, j, k
    lps = image.origin + image.direction @ (np.array(image.spacing) * index)
    assert lps * [-1, -1, 1] == pytest.approx(Grid((4, 5, 6), affine).world([2, 1, 3]))
    assert np.allclose(image.direction @ image.direction.T, np.eye(3))
    assert ants.asked[0]["i"] == "kmeans[3]"


def test_priors_give_six_regions_and_must_lie_on_the_volume(ants, tmp_path):
    random = np.random.default_rng(0)
    maps = random.random((6, 5, 6, 7)).astype(np.float32)
    for number, data in enumerate(maps):
        io.write(tmp_path / f"prior{number + 1}.nii.gz", Volume(data, np.eye(4)))
    priors = segmentation.Priors.read(tmp_path)
    volume = Volume(random.random((5, 6, 7)).astype(np.float32), np.eye(4), name="v.nii")
    mask = np.ones((5, 6, 7), dtype=bool)
    labels = segmentation.segment(volume, mask, priors)
    assert (labels == 1 + maps.argmax(axis=0)).all()
    away = np.eye(4)
    away[0, 3] = 2
    with pytest.raises(UsageError, match=r"prior1.*does not lie on v\.nii.*template"):
        segmentation.segment(Volume(volume.data, away, name="v.nii"), mask, priors)
    (tmp_path / "prior6.nii.gz").unlink()
    with pytest.raises(FileError, match="5 prior maps are there where 6"):
        segmentation.Priors.read(tmp_path)


def test_places_are_told_to_ants_in_the_digits_of_its_own_files(ants):
    """Prior maps go through NIfTI files, whose origins are float32: others lie elsewhere."""
    affine = np.diag([1.2, 1.2, 1.2, 1.0])
    affine[:3, 3] = 33.6 + 1e-6, -10.7, 1 / 3
    segmentation.segment(Volume(np.ones((4, 5, 6), np.float32), affine), np.ones((4, 5, 6), bool))
    image = ants.asked[0]["a"]
    for values in (image.origin, image.spacing):
        assert np.array_equal(values, np.asarray(values, dtype=np.float32))


def test_priors_on_the_whole_volume_are_cut_with_it():
    grid = Grid.from_spacing((6, 7, 8), 2.0)
    maps = tuple(
        Volume(np.full(grid.shape, n, dtype=np.float32), grid.affine, name=str(n)) for n in range(6)
    )
    box = Box((1, 2, 3), (5, 6, 7))
    cut = segmentation.Priors(maps).cut(grid, box)
    assert all(one.grid == grid.crop(box) for one in cut.maps)
    elsewhere = Grid.from_spacing((6, 7, 8), 3.0)
    assert segmentation.Priors(maps).cut(elsewhere, box).maps[0].grid == grid


def test_real_ants_segments_a_cut_volume_alike_every_time(tmp_path):
    pytest.importorskip("ants", reason="the extra 'segmentation' is not installed")
    affine = np.array([[-1.2, 0, 0, 20.3], [0, 1.2, 0, -10.7], [0, 0, 1.2, 3.4], [0, 0, 0, 1]])
    z, y, x = np.indices((30, 32, 31)) - 15
    radius = np.sqrt(z**2 + y**2 + x**2)
    texture = np.random.default_rng(0).normal(scale=30, size=radius.shape)
    data = np.where(radius < 13, 900 - 40 * radius + texture, 0).astype(np.float32)
    volume = Volume(data, affine, name="ball")
    bounds = [(0, 3), (3, 5), (5, 7), (7, 9), (9, 11), (11, 14)]
    maps = [((radius >= a) & (radius < b)).astype(np.float32) for a, b in bounds]
    priors = segmentation.Priors(tuple(Volume(one, affine, name="prior") for one in maps))
    box = Box((1, 2, 1), (29, 30, 30))
    part, cut = volume.crop(box), priors.cut(volume.grid, box)
    found = [segmentation.segment(part, part.data > 0, cut) for _ in range(2)]
    assert set(np.unique(found[0])) == set(range(7))
    np.testing.assert_array_equal(*found)


def test_a_registration_that_fails_is_one_volume_skipped_and_leaves_no_files(
    ants, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = []

    def fail(**_options):
        left.append(Path(tempfile.mktemp()))
        left[0].write_bytes(b"a field")
        raise ValueError("moving image has NaNs")

    ants.registration = fail
    volume = Volume(np.ones((4, 4, 4), dtype=np.float32), np.eye(4), name="v.nii")
    priors = segmentation.Priors((volume,) * 6, volume)
    with pytest.raises(segmentation.SegmentationFailed, match=r"v\.nii: ANTs .*has NaNs"):
        segmentation.segment(volume, volume.data > 0, priors)
    assert len(left) == 1
    assert list(tmp_path.iterdir()) == []
    assert tempfile.tempdir == str(tmp_path)


def test_priors_that_ants_cannot_take_are_named_before_any_work(tmp_path):
    for number in range(6):
        data = np.full((4, 5, 6), np.nan if number == 3 else 1, dtype=np.float32)
        io.write(tmp_path / f"prior{number}.nii.gz", Volume(data, np.eye(4)))
    with pytest.raises(FileError, match=r"prior3\.nii\.gz: ANTs needs"):
        segmentation.Priors.read(tmp_path)


def test_what_ants_cannot_segment_is_named(ants):
    def fail(**_options):
        raise Exception("Atropos exited with non-zero status 1")  # noqa: TRY002

    ants.atropos = fail
    volume = Volume(np.zeros((4, 4, 4), dtype=np.float32), np.eye(4), name="v.nii")
    with pytest.raises(segmentation.SegmentationFailed, match=r"v\.nii: ANTs could not segment it"):
        segmentation.segment(volume, np.ones((4, 4, 4), dtype=bool))
