import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from napari_arssr.errors import Cancelled, FileError, OutOfMemory
from napari_arssr.evaluation.methods import refine
from napari_arssr.models import (
    ArSSR,
    BaselineCard,
    BaselineConfig,
    Card,
    ModelConfig,
    Regressor,
    build,
    load,
    load_baseline,
    read_baseline_card,
    read_card,
    save,
)

NETWORKS = ("SRCNN3D", "DCSRN", "ResCNN")
TINY = ModelConfig(feature_dim=4, features=4, growth=4, blocks=1, layers=1, decoder_width=8)


def network(name, seed=0, scale=(2.0, 2.0, 2.0)):
    torch.manual_seed(seed)
    model = build(BaselineConfig(name, scale)).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):  # as after training
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model


def conv(size, inputs, outputs):
    return size**3 * inputs * outputs + outputs


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("SRCNN3D", conv(9, 1, 64) + conv(1, 64, 32) + conv(5, 32, 1)),
        (
            "DCSRN",
            conv(3, 1, 48)
            + sum(conv(3, 48 + 24 * n, 24) + 2 * (48 + 24 * n) for n in range(4))
            + conv(3, 144, 1),
        ),
        ("ResCNN", conv(3, 1, 64) + 18 * conv(3, 64, 64) + conv(3, 64, 1)),
    ],
)
def test_networks_have_the_published_sizes(name, parameters):
    model = network(name)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_srcnn3d_is_three_convolutions():
    model = network("SRCNN3D")
    weights = list(model.parameters())
    x = torch.rand(1, 1, 12, 13, 14)
    hidden = torch.relu(torch.nn.functional.conv3d(x, weights[0], weights[1], padding=4))
    hidden = torch.relu(torch.nn.functional.conv3d(hidden, weights[2], weights[3]))
    expected = torch.nn.functional.conv3d(hidden, weights[4], weights[5], padding=2)
    assert torch.allclose(model(x[:, 0]), expected[:, 0], atol=1e-6)


def test_dcsrn_keeps_every_units_channels_and_normalises_before_each():
    model = network("DCSRN")
    state = dict(model.state_dict())
    x = torch.rand(2, 1, 8, 9, 10)
    hidden = torch.nn.functional.conv3d(
        x, state["network.0.weight"], state["network.0.bias"], padding=1
    )
    for unit in range(1, 5):
        name = f"network.{unit}"
        shape = (1, -1, 1, 1, 1)
        spread = torch.sqrt(state[f"{name}.0.running_var"].view(shape) + 1e-5)
        normal = (hidden - state[f"{name}.0.running_mean"].view(shape)) / spread
        normal = normal * state[f"{name}.0.weight"].view(shape) + state[f"{name}.0.bias"].view(
            shape
        )
        elu = torch.where(normal > 0, normal, torch.exp(normal) - 1)
        added = torch.nn.functional.conv3d(
            elu, state[f"{name}.2.weight"], state[f"{name}.2.bias"], padding=1
        )
        hidden = torch.cat([hidden, added], dim=1)
    expected = torch.nn.functional.conv3d(
        hidden, state["network.5.weight"], state["network.5.bias"], padding=1
    )
    assert torch.allclose(model(x[:, 0]), expected[:, 0], atol=1e-5)


def test_rescnn_adds_what_it_finds_to_its_input():
    model = network("ResCNN")
    with torch.no_grad():
        model.network.conv_end[0].weight.zero_()
        model.network.conv_end[0].bias.fill_(0.25)
    x = torch.rand(1, 6, 7, 8)
    assert torch.allclose(model(x), x + 0.25)


@pytest.mark.parametrize("name", NETWORKS)
def test_halo_is_the_receptive_field(name):
    model = network(name)
    size = 2 * model.halo + 5
    x = torch.rand(1, 7, 7, size)
    middle = model(x)[0, 3, 3, size // 2]
    beyond, edge = x.clone(), x.clone()
    for side in (-1, 1):
        beyond[..., size // 2 + side * (model.halo + 1)] += 3
        edge[..., size // 2 + side * model.halo] += 3
    assert model(beyond)[0, 3, 3, size // 2] == middle
    if name != "ResCNN":  # forty layers away a random network hardly answers
        assert model(edge)[0, 3, 3, size // 2] != middle


@pytest.mark.parametrize("name", NETWORKS)
def test_files_keep_the_network_and_its_scale(tmp_path, name):
    model = network(name, scale=(2.0, 2.5, 4))
    card = BaselineCard(
        BaselineConfig(name, (2.0, 2.5, 4), "minmax"), name="mine", training={"steps": 3}
    )
    path = tmp_path / "x.safetensors"
    save(path, model, card, torch.float32)
    again, found = load_baseline(path)
    assert found == card
    assert found.config.scale == (2.0, 2.5, 4.0)
    assert not any(p.requires_grad for p in again.parameters())
    x = torch.rand(1, 9, 10, 11)
    assert torch.equal(again(x), model(x))
    assert torch.equal(again.to("cpu", torch.float64)(x.double()).float(), model(x)) or (
        torch.allclose(again(x.double()).float(), model(x), atol=1e-5)
    )


def test_half_precision_files_are_half_the_size(tmp_path):
    model = network("DCSRN")
    card = BaselineCard(model.config)
    save(tmp_path / "32.safetensors", model, card, torch.float32)
    save(tmp_path / "16.safetensors", model, card, torch.float16)
    sizes = [(tmp_path / f"{bits}.safetensors").stat().st_size for bits in (16, 32)]
    assert sizes[0] < 0.55 * sizes[1]
    x = torch.rand(1, 8, 8, 8)
    again, _ = load_baseline(tmp_path / "16.safetensors")
    assert torch.allclose(again(x), model(x), atol=5e-3)


def test_upsampling_says_what_a_baseline_is_for(tmp_path):
    path = tmp_path / "x.safetensors"
    save(path, network("SRCNN3D"), BaselineCard(network("SRCNN3D").config), torch.float32)
    for opens in (load, read_card):
        with pytest.raises(FileError, match=r"SRCNN3D, which knows one scale.*evaluate"):
            opens(path)


def test_an_arssr_file_is_no_baseline(tmp_path):
    path = tmp_path / "x.safetensors"
    save(path, ArSSR(TINY), Card(TINY, name="x"), torch.float32)
    with pytest.raises(FileError, match="ArSSR network, not of a baseline"):
        read_baseline_card(path)
    assert load(path)[1].name == "x"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"network": "VGG", "scale": [2, 2, 2]}, "no baseline 'VGG'"),
        ({"network": "DCSRN", "scale": [2, 2]}, "three numbers"),
        ({"network": "DCSRN", "scale": [2, 2, 0.5]}, "at least 1"),
        ({"network": "DCSRN", "scale": [2, 2, float("nan")]}, "at least 1"),
        ({"network": "DCSRN", "scale": 2}, "three numbers"),
        ({"network": "DCSRN", "scale": [2, 2, 2], "depth": 4}, "depth"),
        ({"network": "DCSRN", "scale": [2, 2, 2], "normalization": "x"}, "no normalisation 'x'"),
    ],
)
def test_a_header_that_no_baseline_has_is_refused(tmp_path, config, message):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"napari-arssr": json.dumps({"config": config})})
    with pytest.raises(FileError, match=message):
        load_baseline(path)


def test_tensors_of_another_network_are_refused(tmp_path):
    good = tmp_path / "x.safetensors"
    save(good, network("SRCNN3D"), BaselineCard(network("SRCNN3D").config), torch.float32)
    with safe_open(good, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        header = opened.metadata()
    broken = dict(tensors)
    broken["network.0.weight"] = broken["network.0.weight"][:, :, :7].contiguous()
    save_file(broken, tmp_path / "y.safetensors", header)
    with pytest.raises(FileError, match=r"network\.0\.weight"):
        load_baseline(tmp_path / "y.safetensors")
    tensors["network.4.bias"] = tensors["network.4.bias"] * float("nan")
    save_file(tensors, tmp_path / "z.safetensors", header)
    with pytest.raises(FileError, match="not finite"):
        load_baseline(tmp_path / "z.safetensors")


@pytest.mark.parametrize("name", ["SRCNN3D", "DCSRN"])
def test_a_baseline_in_blocks_is_the_baseline_at_once(name):
    model = network(name)
    volume = np.random.default_rng(0).random((19, 30, 22), dtype=np.float32)
    whole = model(torch.from_numpy(volume)[None])[0].numpy()
    blocks = 0

    def count():
        nonlocal blocks
        blocks += 1
        return False

    side = 8 + 2 * model.halo
    memory = model.peak_channels * 4 * side**3
    assert np.abs(refine(model, volume, memory=memory, stop=count) - whole).max() < 1e-5
    assert blocks > 4
    assert np.abs(refine(model, volume) - whole).max() < 1e-5


def test_a_baseline_stops_when_told_and_says_when_nothing_fits():
    model = network("SRCNN3D")
    volume = np.zeros((8, 8, 8), dtype=np.float32)
    with pytest.raises(Cancelled):
        refine(model, volume, stop=lambda: True)
    with pytest.raises(OutOfMemory, match="halo of 6 voxels"):
        refine(model, volume, memory=1000)


def test_a_regressor_is_built_from_its_config():
    config = BaselineConfig("ResCNN", (2, 2, 2))
    assert isinstance(build(config), Regressor)
    assert BaselineConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
