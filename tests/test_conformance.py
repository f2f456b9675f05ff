"""What the published networks compute (see conformance/README.md), whole and in boxes."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from napari_arssr import weights
from napari_arssr.field import NetworkField
from napari_arssr.interpolation import linear_support, linear_weights
from napari_arssr.models import ModelConfig, build
from napari_arssr.normalization import Normalizer
from napari_arssr.volume import Box, Volume

CASES = Path(__file__).parent / "conformance"
# As the checkpoints spell them, and as this package does.
ENCODERS = {"RDN": "RDN", "ResCNN": "ResCNN", "SRResnet": "SRResNet"}
SCALES = (2.0, 2.7)

Float32Array = npt.NDArray[np.float32]


def state_dict(encoder: str) -> OrderedDict[str, Tensor]:
    """Tensors by the recipe of conformance/README.md, in the checkpoint's order."""
    names = json.loads((CASES / "state_dict_shapes.json").read_text())[encoder]
    tensors = OrderedDict()
    for number, (name, shape) in enumerate(names):
        values = np.random.RandomState(300 + number).standard_normal(shape)
        if name.endswith("weight"):
            gain = 1.0 if name.startswith("encoder") else 2.0
            values *= math.sqrt(gain / math.prod(shape[1:]))
        else:
            values = 0.05 * np.abs(values)
        tensors[name] = torch.from_numpy(values).float()
    return tensors


def low_resolution() -> Float32Array:
    array: Float32Array = np.load(CASES / "lr.npy")
    return array


def reference(encoder: str, scale: float) -> Float32Array:
    array: Float32Array = np.load(CASES / f"{encoder}_k{scale}.npy")
    return array


@pytest.fixture(scope="module", params=ENCODERS)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, weights.Loaded, Tensor]:
    """An encoder's name, its network from a checkpoint as it is published, and its features."""
    encoder: str = request.param
    path = tmp_path_factory.mktemp("published") / f"ArSSR_{encoder}.pkl"
    torch.save(state_dict(encoder), path)
    loaded = weights.load(path)
    with torch.inference_mode():
        features = loaded.model.encode(torch.from_numpy(low_resolution())[None])[0]
    return encoder, loaded, features


@torch.inference_mode()
def decode(loaded: weights.Loaded, features: Tensor, shape: tuple[int, ...], box: Box) -> Tensor:
    """A box of the output grid of ``shape``, from the features its interpolation reads alone."""
    nodes, matrices, positions = features, [], []
    for axis in range(3):
        size = features.shape[axis]
        outputs = np.arange(box.start[axis], box.stop[axis])
        coordinates = (outputs + 0.5) * size / shape[axis] - 0.5
        start, stop = linear_support(coordinates, size)
        nodes = nodes.narrow(axis, start, stop - start)
        matrix = linear_weights(coordinates, size, start, stop, loaded.model.decoder.outside)
        matrices.append(torch.from_numpy(matrix))
        cell = size / shape[axis]
        code = loaded.model.decoder.encode_position(torch.from_numpy(coordinates), size, cell)
        positions.append(code.float())
    return loaded.model.decode_lattice(nodes, tuple(matrices), tuple(positions))


def boxes(shape: tuple[int, ...]) -> list[Box]:
    """The first and the last corner, one voxel, one slice, and a box in the middle."""
    z, y, x = shape
    return [
        Box((0, 0, 0), (3, 2, 4)),
        Box((z - 2, y - 5, x - 3), (z, y, x)),
        Box((z // 2, 0, x - 1), (z // 2 + 1, 1, x)),
        Box((0, y // 3, 0), (z, y // 3 + 1, x)),
        Box((z // 4, y // 3, x // 5), (z // 2, y // 2, x - 2)),
    ]


def relative_error(result: Float32Array, expected: Float32Array, largest: float) -> float:
    return float(np.abs(result - expected).max() / largest)


def published_names(encoder: str) -> list[tuple[str, tuple[int, ...]]]:
    names = json.loads((CASES / "state_dict_shapes.json").read_text())[encoder]
    return [(name, tuple(shape)) for name, shape in names]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_tensors_have_the_names_shapes_and_order_of_the_published_checkpoints(encoder: str) -> None:
    with torch.device("meta"):
        model = build(ModelConfig(encoder=ENCODERS[encoder]))
    tensors = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    assert tensors == published_names(encoder)


def test_a_published_checkpoint_says_what_it_is(
    case: tuple[str, weights.Loaded, Tensor],
) -> None:
    encoder, loaded, _ = case
    assert loaded.model.config == ModelConfig(encoder=ENCODERS[encoder], decoder="published")
    assert loaded.name == f"ArSSR_{encoder}.pkl"
    assert loaded.normalization == "minmax"
    assert not loaded.bfloat16


@pytest.mark.parametrize("scale", SCALES)
def test_whole_volume(case: tuple[str, weights.Loaded, Tensor], scale: float) -> None:
    encoder, loaded, features = case
    expected = reference(encoder, scale)
    assert expected.shape == tuple(math.floor(n * scale) for n in features.shape[:3])
    whole = Box((0, 0, 0), expected.shape)
    result = decode(loaded, features, expected.shape, whole).numpy()
    assert relative_error(result, expected, np.abs(expected).max()) < 1e-5


@pytest.mark.parametrize("scale", SCALES)
def test_boxes(case: tuple[str, weights.Loaded, Tensor], scale: float) -> None:
    encoder, loaded, features = case
    expected = reference(encoder, scale)
    for box in boxes(expected.shape):
        result = decode(loaded, features, expected.shape, box).numpy()
        part = expected[box.slices]
        assert result.shape == part.shape
        assert relative_error(result, part, np.abs(expected).max()) < 1e-5


@pytest.mark.parametrize("scale", SCALES)
def test_a_field_whole_and_in_boxes(case: tuple[str, weights.Loaded, Tensor], scale: float) -> None:
    encoder, loaded, _ = case
    expected = reference(encoder, scale)
    volume = Volume(low_resolution(), np.diag([0.9, 1.1, 1.3, 1.0]))
    grid = volume.grid.with_shape(expected.shape)
    # The published network is fed the intensities as they are.
    field = NetworkField(volume, loaded.model, Normalizer())
    first, *others = boxes(expected.shape)
    # A box first, so that it is asked for before its surroundings are known.
    for box in (first, Box((0, 0, 0), expected.shape), *others):
        result = field.sample(grid.crop(box)).data
        part = expected[box.slices]
        assert result.shape == part.shape
        assert relative_error(result, part, np.abs(expected).max()) < 1e-5
