import itertools
import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from napari_arssr.errors import UsageError
from napari_arssr.evaluation import psnr, ssim


def volumes(shape=(13, 12, 14), noise=0.2, seed=0):
    random = np.random.default_rng(seed)
    z, y, x = np.indices(shape) / 3
    reference = np.sin(z) * np.cos(y) + 0.5 * np.sin(x)
    return reference, reference + noise * random.normal(size=shape)


def slow_ssim_map(a, b, data_range):
    """Equation 13 of Wang et al. (2004), voxel by voxel, borders reflected."""
    offsets = np.arange(-5, 6)
    weight = np.exp(-(offsets**2) / (2 * 1.5**2))
    weight /= weight.sum()
    window = weight[:, None, None] * weight[:, None] * weight
    a, b = (np.pad(v.astype(np.float64), 5, mode="symmetric") for v in (a, b))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    shape = tuple(n - 10 for n in a.shape)
    result = np.empty(shape)
    for z, y, x in itertools.product(*map(range, shape)):
        here = np.s_[z : z + 11, y : y + 11, x : x + 11]
        mean_a, mean_b = (window * a[here]).sum(), (window * b[here]).sum()
        var_a = (window * (a[here] - mean_a) ** 2).sum()
        var_b = (window * (b[here] - mean_b) ** 2).sum()
        cov = (window * (a[here] - mean_a) * (b[here] - mean_b)).sum()
        result[z, y, x] = ((2 * mean_a * mean_b + c1) * (2 * cov + c2)) / (
            (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
        )
    return result


def test_psnr_of_a_case_worked_by_hand():
    reference = np.array([[[0.0, 10.0], [4.0, 6.0]]])
    result = np.array([[[1.0, 10.0], [2.0, 9.0]]])
    # Errors 1, 0, 2, 3: MSE = (1 + 0 + 4 + 9)/4 = 3.5; L = 10.
    assert psnr(reference, result) == pytest.approx(10 * math.log10(100 / 3.5), abs=1e-12)
    # Inside the mask 0 and 2: MSE = 2; the data range is still the whole reference's.
    mask = np.array([[[0, 1], [1, 0]]])
    assert psnr(reference, result, mask=mask) == pytest.approx(10 * math.log10(50), abs=1e-12)
    assert psnr(reference, result, data_range=20) == pytest.approx(10 * math.log10(400 / 3.5))


def test_psnr_of_equal_volumes_is_infinite():
    reference, _ = volumes()
    assert psnr(reference, reference) == math.inf


def test_psnr_knows_no_overflow_of_integers():
    reference = np.array([[[0, 255]]], dtype=np.uint8)
    result = np.array([[[255, 0]]], dtype=np.uint8)
    assert psnr(reference, result) == pytest.approx(0, abs=1e-12)


def test_psnr_adds_up_many_small_errors_exactly():
    reference = np.zeros((300, 200, 200), dtype=np.float32)
    reference[0, 0, 0] = 1
    result = reference + np.float32(2.0**-10)
    assert psnr(reference, result) == pytest.approx(200 * math.log10(2), abs=1e-9)


def test_ssim_of_equal_volumes_is_one():
    reference, _ = volumes()
    assert ssim(reference, reference) == pytest.approx(1, abs=1e-12)
    assert ssim(reference, reference, mask=reference > 0) == pytest.approx(1, abs=1e-12)


def test_ssim_is_equation_13():
    reference, result = volumes()
    expected = slow_ssim_map(reference, result, np.ptp(reference))
    mask = np.zeros(reference.shape)
    mask[0, 2:5, :] = mask[6:9, 3:, :9] = 1  # up to the border
    assert ssim(reference, result, mask=mask) == pytest.approx(expected[mask > 0].mean(), abs=1e-10)
    inner = expected[5:-5, 5:-5, 5:-5]
    assert ssim(reference, result) == pytest.approx(inner.mean(), abs=1e-10)
    assert 0.2 < inner.mean() < 0.95
    wide = slow_ssim_map(reference, result, 10.0)
    assert ssim(reference, result, data_range=10.0, mask=mask) == pytest.approx(
        wide[mask > 0].mean(), abs=1e-10
    )


@pytest.mark.parametrize("depth", [11, 16, 17, 31, 33, 48])
def test_slabs_leave_no_trace_in_ssim(depth):
    from skimage.metrics import structural_similarity

    reference, result = volumes((depth, 11, 12), seed=depth)
    mean, similarity = structural_similarity(
        reference,
        result,
        data_range=np.ptp(reference),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    assert ssim(reference, result) == pytest.approx(mean, abs=1e-12)
    assert ssim(reference, result, mask=np.ones(reference.shape)) == pytest.approx(
        similarity.mean(), abs=1e-12
    )


def test_ssim_bears_a_large_offset_in_float32():
    reference, result = volumes((12, 12, 12))
    reference, result = ((30000 + 8 * v).astype(np.float32) for v in (reference, result))
    expected = slow_ssim_map(reference, result, float(np.ptp(reference)))[5:-5, 5:-5, 5:-5]
    assert ssim(reference, result) == pytest.approx(expected.mean(), abs=1e-6)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_more_noise_scores_less(metric):
    reference, slight = volumes(noise=0.05)
    _, strong = volumes(noise=0.3)
    assert metric(reference, slight) > metric(reference, strong)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_lists_and_integers_will_do(metric):
    reference, result = (np.round(20 * v + 50).astype(np.int16) for v in volumes())
    expected = metric(reference.astype(float), result.astype(float))
    assert metric(reference, result.tolist()) == pytest.approx(expected, abs=1e-9)


def test_values_that_are_not_finite_do_not_count_outside_the_mask():
    reference, result = volumes()
    mask = np.ones(reference.shape, dtype=bool)
    mask[0] = False
    expected = psnr(reference, result, mask=mask, data_range=3.0)
    reference[0, 0, 0], result[0, 0, 1] = np.nan, np.inf
    assert psnr(reference, result, mask=mask, data_range=3.0) == expected
    assert math.isfinite(psnr(reference, result, mask=mask))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_values_that_are_not_finite_are_counted_and_named(metric):
    reference, result = volumes()
    broken = result.copy()
    broken[1, 2, 3:6] = np.nan, np.inf, -np.inf
    with pytest.raises(UsageError, match=r"The result has 3 values that are not finite"):
        metric(reference, broken)
    broken = reference.copy()
    broken[1, 2, 3] = np.nan
    with pytest.raises(UsageError, match=r"The reference has a value that is not finite"):
        metric(broken, result)
    with pytest.raises(UsageError, match="no finite value"):
        metric(np.full_like(reference, np.nan), result)


def test_ssim_refuses_values_that_are_not_finite_beside_the_mask():
    reference, result = volumes()
    mask = np.ones(reference.shape)
    mask[0] = 0
    result[0, 0, 0] = np.nan
    with pytest.raises(UsageError, match="a value that is not finite"):
        ssim(reference, result, mask=mask)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"result": np.zeros((13, 12, 15))}, r"\(13, 12, 14\).*\(13, 12, 15\)"),
        ({"mask": np.ones((13, 12, 15))}, r"mask has \(13, 12, 15\)"),
        ({"mask": np.zeros((13, 12, 14))}, "mask is empty"),
        ({"reference": np.full((13, 12, 14), 7)}, "reference is 7 everywhere"),
        ({"reference": np.zeros((13, 12, 14), complex)}, "reference holds complex128"),
        ({"result": np.zeros((13, 12, 14), "U1")}, "result holds <U1"),
        ({"reference": np.zeros((0, 3, 3)), "result": np.zeros((0, 3, 3))}, "nothing to score"),
        ({"data_range": 0}, "not 0"),
        ({"data_range": math.nan}, "not nan"),
        ({"data_range": math.inf}, "not inf"),
    ],
)
def test_wrong_use_is_said_plainly(metric, change, message):
    reference, result = volumes()
    arguments = {"reference": reference, "result": result, **change}
    with pytest.raises(UsageError, match=message):
        metric(arguments.pop("reference"), arguments.pop("result"), **arguments)


def test_ssim_says_which_volumes_it_takes():
    flat = np.random.default_rng(0).normal(size=(10, 20, 20))
    with pytest.raises(UsageError, match=r"11 voxels wide.*\(10, 20, 20\)"):
        ssim(flat, flat)
    with pytest.raises(UsageError, match="3 axes, not 4"):
        ssim(flat[None], flat[None])


@pytest.mark.parametrize(("metric", "slices"), [(psnr, 64), (ssim, 48)])
def test_memory_does_not_grow_with_the_volume(metric, slices, monkeypatch):
    # What threads hold at once depends on how they meet.
    monkeypatch.setattr("napari_arssr.evaluation.metrics.cores", lambda: 1)

    def peak(depth):
        reference = np.random.default_rng(0).normal(size=(depth, 96, 96)).astype(np.float32)
        result = reference + np.float32(0.1)
        mask = reference > 0
        tracemalloc.start()
        metric(reference, result, mask=mask)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used - mask.nbytes

    peak(12)  # scikit-image loads
    assert peak(3 * slices) < 1.2 * peak(slices)


def test_scikit_image_loads_only_for_ssim():
    program = (
        "import sys, numpy as np; from napari_arssr.evaluation import psnr;"
        "psnr(np.arange(8.).reshape(2, 2, 2), np.zeros((2, 2, 2)));"
        "sys.exit('skimage' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
