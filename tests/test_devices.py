"""Devices and precisions: what is chosen, what is refused, and that all compute the same."""

from __future__ import annotations

import math
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from napari_arssr import devices
from napari_arssr.devices import (
    available_devices,
    bfloat16_is_faster,
    choose_device,
    choose_precision,
    float32_means_float32,
    is_out_of_memory,
)
from napari_arssr.errors import UsageError
from napari_arssr.field import CubicField, NetworkField
from napari_arssr.models import ArSSR, ModelConfig, build
from napari_arssr.models.encoders import first_layer
from napari_arssr.normalization import Normalizer
from napari_arssr.volume import Grid, Volume

CPU = torch.device("cpu")


def test_the_best_device_comes_first_and_the_processor_last() -> None:
    names = available_devices()
    assert names[-1] == "cpu"
    assert choose_device() == choose_device("auto") == torch.device(names[0])
    for name in names:
        assert choose_device(name) == torch.device(name)
        torch.zeros(3, device=choose_device(name)).add_(1)


def test_gpus_come_before_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert available_devices() == ["cuda:0", "cuda:1", "cpu"]
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:0")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")


def test_a_build_without_onednn_says_no_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    # Such a build does not even know the question.
    monkeypatch.delattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", raising=False)
    bfloat16_is_faster.cache_clear()
    try:
        assert choose_precision("auto", CPU, bfloat16_is_safe=True) == torch.float32
        assert not devices.onednn_takes(torch.float32)
    finally:
        bfloat16_is_faster.cache_clear()


def test_tf32_stays_off_until_the_last_of_several_threads_has_left() -> None:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        with ExitStack() as first, ExitStack() as second:
            first.enter_context(float32_means_float32())
            second.enter_context(float32_means_float32())
            first.close()
            assert not torch.backends.cudnn.allow_tf32
            second.close()
            assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "CPU"])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_device(name)
    message = str(caught.value)
    assert repr(name) in message
    assert all(device in message for device in available_devices())
    assert "\n" not in message


def test_an_unknown_precision_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"'int8'.*auto, float32, bfloat16, float16"):
        choose_precision("int8", CPU, bfloat16_is_safe=True)


def test_float16_is_refused_on_a_processor_only() -> None:
    with pytest.raises(UsageError, match=r"float16.*float32, bfloat16 or auto\.$"):
        choose_precision("float16", CPU, bfloat16_is_safe=True)
    cuda = torch.device("cuda:0")
    assert choose_precision("float16", cuda, bfloat16_is_safe=False) == torch.float16


def test_intensities_are_seen_in_all_their_digits_by_a_network_in_half_precision() -> None:
    layer = torch.nn.Conv3d(1, 1, 3, padding=1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, 1, 1, 1] = 1024
        assert layer.bias is not None
        layer.bias.fill_(-512)
    layer.to(torch.bfloat16)
    # Beside 0.5, bfloat16 holds nothing nearer than 0.502.
    seen = first_layer(layer, torch.full((1, 1, 1, 1, 1), 0.5 + 2**-11))
    assert seen.dtype == torch.bfloat16
    assert seen.item() == 0.5
    # Done some planes at a time, it is the same convolution.
    layer = torch.nn.Conv3d(1, 3, 3, padding=1)
    volume = torch.rand(1, 1, 19, 6, 5)
    expected = layer(volume)
    layer.to(torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(first_layer(layer, volume).float(), expected)


def test_a_precision_by_name_is_that_precision() -> None:
    for safe in (True, False):
        assert choose_precision("float32", CPU, bfloat16_is_safe=safe) == torch.float32
        assert choose_precision("bfloat16", CPU, bfloat16_is_safe=safe) == torch.bfloat16


@pytest.mark.parametrize("faster", [True, False])
@pytest.mark.parametrize("safe", [True, False])
def test_auto_takes_bfloat16_where_it_is_faster_and_measured_to_be_safe(
    faster: bool, safe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "bfloat16_is_faster", lambda _device: faster)
    expected = torch.bfloat16 if faster and safe else torch.float32
    assert choose_precision("auto", CPU, bfloat16_is_safe=safe) == expected


@pytest.mark.parametrize("name", available_devices())
def test_the_trial_of_bfloat16_says_yes_or_no_and_is_made_once(name: str) -> None:
    first = bfloat16_is_faster(torch.device(name))
    assert isinstance(first, bool)
    hits = bfloat16_is_faster.cache_info().hits
    assert bfloat16_is_faster(torch.device(name)) is first
    assert bfloat16_is_faster.cache_info().hits == hits + 1


@pytest.mark.skipif(
    not devices.onednn_takes(torch.bfloat16), reason="no bfloat16 here: there is no trial"
)
def test_the_trial_of_bfloat16_times_what_networks_run_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = {}
    convolve = torch.nn.Conv3d.forward

    def watched(layer: torch.nn.Conv3d, volume: torch.Tensor) -> torch.Tensor:
        seen[volume.dtype] = torch._C._select_conv_backend(
            volume, layer.weight, layer.bias, [1] * 3, [1] * 3, [1] * 3, False, [0] * 3, 1
        )
        return convolve(layer, volume)

    monkeypatch.setattr(torch.nn.Conv3d, "forward", watched)
    bfloat16_is_faster.__wrapped__(CPU)
    assert set(seen) == {torch.float32, torch.bfloat16}
    assert {str(backend).split(".")[-1] for backend in seen.values()} == {"Mkldnn"}


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error: Exception, memory: bool) -> None:
    assert is_out_of_memory(error) is memory


def test_what_numpy_and_torch_raise_is_out_of_memory() -> None:
    for allocate in (
        lambda: np.empty(1 << 60, dtype=np.uint8),
        lambda: torch.empty(1 << 60, dtype=torch.uint8),
    ):
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            allocate()
        assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("before", [True, False])
def test_tf32_is_off_inside_and_as_it_was_after(before: bool) -> None:
    def flags() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    original = flags()
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = before
        with float32_means_float32():
            assert flags() == (False, False)
        assert flags() == (before, before)
        with pytest.raises(KeyError), float32_means_float32():
            raise KeyError
        assert flags() == (before, before)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = original


# The same on every device ---------------------------------------------------------------------


def network(decoder: str) -> ArSSR:
    torch.manual_seed(0)
    config = ModelConfig(
        decoder=decoder,
        feature_dim=8,
        decoder_depth=4,
        decoder_width=16,
        features=8,
        growth=8,
        blocks=2,
        layers=2,
    )
    model = build(config).requires_grad_(False).eval()
    for parameter in model.decoder.parameters():
        bound = 1 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
        torch.nn.init.uniform_(parameter, -bound / 4, bound)
    return model


def volume() -> Volume:
    data = np.random.default_rng(0).random((9, 12, 20), dtype=np.float32)
    return Volume(data, np.diag([1.0, 1.2, 2.0, 1.0]))


def grids(source: Grid) -> list[Grid]:
    turned = source.affine.copy()
    turned[:2, :2] = turned[:2, :2] @ [[0.8, -0.6], [0.6, 0.8]]
    return [source.scaled(1.7), Grid((2, 14, 14), turned)]


@pytest.mark.parametrize("decoder", ["published", "residual"])
@pytest.mark.parametrize("name", available_devices())
def test_every_device_computes_the_same_in_float32(name: str, decoder: str) -> None:
    model = network(decoder)
    for grid in grids(volume().grid):
        there = NetworkField(volume(), model, Normalizer(), device=name, tile=5, points=300)
        here = NetworkField(volume(), copy_in_float64(model), Normalizer(), dtype=torch.float64)
        result, expected = there.sample(grid).data, here.sample(grid).data
        assert expected.std() > 0.01
        np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max())
    assert there.device == torch.device(name)
    assert there.precision == "float32"


def copy_in_float64(model: ArSSR) -> ArSSR:
    double = build(model.config).double().eval()
    double.load_state_dict(model.state_dict())
    return double


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", available_devices())
def test_half_precision_stays_close_on_every_device(name: str, dtype: torch.dtype) -> None:
    source, model = volume(), network("residual")
    grid = grids(source.grid)[0]
    exact = NetworkField(source, model, Normalizer()).sample(grid).data
    close = NetworkField(source, model, Normalizer(), device=name, dtype=dtype).sample(grid).data
    residual = exact - CubicField(source).sample(grid).data
    assert 0 < np.abs(close - exact).mean() < 0.02 * np.abs(residual).mean()
