"""Files of weights: what comes back, and what is refused without running anything."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TINY
from torch import Tensor

from napari_arssr.errors import FileError
from napari_arssr.models import ArSSR, Card, ModelConfig, build, load, read_card, save

CARD = Card(
    config=TINY,
    name="tiny",
    licence="BSD-3-Clause",
    paper="none",
    training_data="noise",
    bfloat16=True,
    training={"seed": 3, "steps": 0},
    scores={"noise": {"2": {"PSNR": 30.5}}},
)
KEY = "napari-arssr"


def random_network(config: ModelConfig) -> ArSSR:
    torch.manual_seed(0)
    model = build(config)
    for parameter in model.parameters():  # heads that start at zero too
        torch.nn.init.normal_(parameter, std=0.1)
    return model.requires_grad_(False)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    path = tmp_path / "ours.safetensors"
    save(path, random_network(TINY), CARD, torch.float32)
    return path


def published(encoder: str) -> ArSSR:
    return random_network(
        ModelConfig(
            encoder=encoder,
            feature_dim=5,
            decoder_depth=6,
            decoder_width=7,
            features=4,
            growth=3,
            blocks=2,
            layers=2,
        )
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "ArSSR_RDN.pkl"
    torch.save(published("RDN").state_dict(), path)
    return path


def refusal(path: Path, opened_by: Callable[[Path], object] = load) -> str:
    """The message of a refusal: one line that names the file."""
    with pytest.raises(FileError) as caught:
        opened_by(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert message.endswith(".")
    return message


# What comes back


def test_network_and_card_come_back_as_they_were(ours: Path) -> None:
    model, card = load(ours)
    assert card == CARD == read_card(ours)
    expected = random_network(TINY)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    volume = torch.rand(1, 5, 6, 4)
    assert torch.equal(model.encode(volume), expected.encode(volume))


def test_a_loaded_network_is_for_evaluation(ours: Path) -> None:
    model, _ = load(ours)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path: Path, ours: Path) -> None:
    half = tmp_path / "half.safetensors"
    save(half, random_network(TINY), CARD, torch.float16)
    sizes = {path: sum(t.nbytes for t in load_file(path).values()) for path in (ours, half)}
    assert sizes[half] * 2 == sizes[ours]
    for name, tensor in load(half)[0].state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, random_network(TINY).state_dict()[name].half().float())


def test_saving_replaces_the_file_and_leaves_nothing_else(tmp_path: Path, ours: Path) -> None:
    save(ours, build(TINY), CARD, torch.float32)
    assert load(ours)[0].decoder.head.weight.count_nonzero() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["ours.safetensors"]


def test_a_network_with_nan_is_not_saved_over_a_good_one(tmp_path: Path, ours: Path) -> None:
    before = ours.read_bytes()
    model = random_network(TINY)
    model.encoder.output.bias[2] = torch.nan
    message = refusal(ours, lambda path: save(path, model, CARD, torch.float32))
    assert "encoder.output.bias" in message
    assert ours.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_values_beyond_float16_are_not_saved_as_infinities(tmp_path: Path) -> None:
    model = random_network(TINY)
    model.encoder.output.bias[2] = 1e5
    path = tmp_path / "half.safetensors"
    assert "float16" in refusal(path, lambda path: save(path, model, CARD, torch.float16))
    assert not path.exists()


def test_saving_where_nothing_can_be_written_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "no such folder" / "x.safetensors"
    message = refusal(path, lambda path: save(path, build(TINY), CARD, torch.float32))
    assert "No such file or directory" in message


@pytest.mark.parametrize("encoder", ["RDN", "ResCNN", "SRResNet"])
@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".pth"])
def test_a_published_state_dict_says_its_architecture_itself(
    tmp_path: Path, encoder: str, suffix: str
) -> None:
    expected = published(encoder)
    path = tmp_path / f"some{suffix}"
    torch.save(expected.state_dict(), path)
    model, card = load(path)
    read = {"encoder", "feature_dim", "decoder_depth", "decoder_width", "features"}
    read |= {"growth", "blocks", "layers"} if encoder == "RDN" else set()
    found, wanted = card.config.to_dict(), expected.config.to_dict()
    assert {name: found[name] for name in read} == {name: wanted[name] for name in read}
    assert card.config.decoder == "published"
    assert card.name == path.name
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_state_dicts_of_several_gpus_and_of_old_pytorch_are_opened(tmp_path: Path) -> None:
    path = tmp_path / "old.pkl"
    expected = published("ResCNN").state_dict()
    state = OrderedDict((f"module.{name}", tensor) for name, tensor in expected.items())
    torch.save(state, path, _use_new_zipfile_serialization=False)
    for name, tensor in load(path)[0].state_dict().items():
        assert torch.equal(tensor, expected[name])


# Code in a file


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)


def as_zip(value: object, path: Path) -> None:
    torch.save(value, path)


def as_legacy(value: object, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def as_pickle(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def as_old_pickle(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


def beside_tensors(payload: Payload) -> object:
    return OrderedDict(published("RDN").state_dict(), note=payload)


def instead_of_tensors(payload: Payload) -> object:
    return payload


@pytest.mark.filterwarnings("error")  # a refusal is one sentence, without a warning beside it
@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".safetensors"])
@pytest.mark.parametrize("hidden", [beside_tensors, instead_of_tensors])
@pytest.mark.parametrize("write", [as_zip, as_legacy, as_pickle, as_old_pickle])
def test_code_in_a_file_is_refused_and_not_run(
    tmp_path: Path,
    write: Callable[[object, Path], None],
    hidden: Callable[[Payload], object],
    suffix: str,
) -> None:
    made = tmp_path / "made by the payload"
    path = tmp_path / f"malicious{suffix}"
    write(hidden(Payload(made)), path)
    message = refusal(path)
    assert not made.exists()
    if suffix != ".safetensors":
        assert "could run code" in message
        assert "nothing in it was run" in message


def test_the_payload_of_these_tests_would_run_if_it_were_unpickled(tmp_path: Path) -> None:
    made = tmp_path / "made by the payload"
    pickle.loads(pickle.dumps(Payload(made)))
    assert made.is_dir()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "module.pkl"
    torch.save(published("RDN"), path)
    assert "could run code" in refusal(path)


def test_a_number_repeated_without_end_is_refused_before_it_fills_the_memory(
    checkpoint: Path,
) -> None:
    state = published("RDN").state_dict()
    torch.save({name: torch.zeros(()).expand(t.shape) for name, t in state.items()}, checkpoint)
    assert "not one of plain real numbers" in refusal(checkpoint)


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such permissions")
def test_weights_are_for_whom_other_files_are(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save(tmp_path / "w.safetensors", random_network(TINY), CARD, torch.float32)
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


# Damage


@pytest.mark.parametrize("share", [0.0, 0.0002, 0.02, 0.5, 0.9, 0.9999])
def test_a_truncated_safetensors_file_is_refused(ours: Path, share: float) -> None:
    whole = ours.read_bytes()
    ours.write_bytes(whole[: int(share * len(whole))])
    for opened_by in (load, read_card):
        assert "not a whole safetensors file" in refusal(ours, opened_by)


@pytest.mark.parametrize("write", [as_zip, as_legacy])
@pytest.mark.parametrize("share", [0.0, 0.0002, 0.02, 0.5, 0.9, 0.9999])
def test_a_truncated_checkpoint_is_refused(
    checkpoint: Path, share: float, write: Callable[[object, Path], None]
) -> None:
    write(published("RDN").state_dict(), checkpoint)
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(share * len(whole))])
    message = refusal(checkpoint)
    assert "damaged" in message
    assert "weights_only" not in message  # torch's own advice is to switch its guard off


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><title>Log in to the hospital's network</title>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 25\n",
        b"hello world",
        bytes(4000),
        np.random.default_rng(0).bytes(4000),
    ],
    ids=["web page", "git-lfs pointer", "text", "zeros", "noise"],
)
@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"other{suffix}"
    path.write_bytes(content)
    assert "weights_only" not in refusal(path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_refused(checkpoint: Path, value: float) -> None:
    state = published("RDN").state_dict()
    state["decoder.stage_two.2.weight"][3, 1] = value
    torch.save(state, checkpoint)
    assert "decoder.stage_two.2.weight holds values that are not finite" in refusal(checkpoint)


def test_nan_in_our_own_file_is_refused(ours: Path) -> None:
    tensors = load_file(ours)
    tensors["decoder.head.bias"][0] = torch.nan
    save_file(tensors, ours, metadata=header(ours))
    assert "decoder.head.bias holds values that are not finite" in refusal(ours)


@pytest.mark.parametrize(
    "kind",
    [
        lambda tensor: tensor.to(torch.int32),
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
    ],
    ids=["integer", "complex", "sparse", "without data"],
)
def test_tensors_that_are_not_plain_real_numbers_are_refused(
    checkpoint: Path, kind: Callable[[Tensor], Tensor]
) -> None:
    state = published("RDN").state_dict()
    state["encoder.sfe2.bias"] = kind(state["encoder.sfe2.bias"])
    torch.save(state, checkpoint)
    assert "encoder.sfe2.bias is not one of plain real numbers" in refusal(checkpoint)


@pytest.mark.parametrize("name", ["gone.pkl", "gone.safetensors", ""])
def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert "no such weights file" in refusal(path)
    assert "no such weights file" in refusal(path, read_card)


# Another architecture


def drop(state: dict[str, Any]) -> None:
    del state["encoder.gff.1.bias"]


def add(state: dict[str, Any]) -> None:
    state["encoder.attention.weight"] = torch.zeros(2)


def reshape(state: dict[str, Any]) -> None:
    state["encoder.sfe2.weight"] = torch.zeros(4, 4, 5, 5, 5)


def drop_first_layer(state: dict[str, Any]) -> None:
    del state["encoder.rdbs.0.layers.0.conv.weight"]


def drop_decoder(state: dict[str, Any]) -> None:
    for name in [name for name in state if name.startswith("decoder.stage_two")]:
        del state[name]


def rename(state: dict[str, Any]) -> None:
    for name in list(state):
        state[name.replace("encoder", "backbone")] = state.pop(name)


def make_scalar(state: dict[str, Any]) -> None:
    state["encoder.output.weight"] = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop, "encoder.gff.1.bias is missing where (4,) was expected"),
        (add, "encoder.attention.weight is (2,) where no tensor was expected"),
        (reshape, "encoder.sfe2.weight is (4, 4, 5, 5, 5) where (4, 4, 3, 3, 3) was expected"),
        (drop_first_layer, "this RDN checkpoint is not whole"),
        (drop_decoder, "decoder"),
        (rename, "another architecture"),
        (make_scalar, "this RDN checkpoint is not whole"),
    ],
)
def test_another_architecture_is_refused_by_name_and_shape(
    checkpoint: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    state = dict(published("RDN").state_dict())
    change(state)
    torch.save(state, checkpoint)
    assert named in refusal(checkpoint)


@pytest.mark.parametrize(
    "value",
    [{"state_dict": {"a": torch.zeros(2)}, "epoch": 3}, [torch.zeros(2)], torch.zeros(2), 7],
    ids=["training checkpoint", "list", "tensor", "number"],
)
def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path, value: object) -> None:
    path = tmp_path / "other.pt"
    torch.save(value, path)
    assert "not a state dict of tensors" in refusal(path)


def test_another_networks_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save(torch.nn.Linear(3, 2).state_dict(), path)
    assert "another architecture" in refusal(path)


# Headers


def header(path: Path) -> dict[str, str]:
    """The metadata in a safetensors file, read without the library under test."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    metadata: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return metadata


def with_header(path: Path, metadata: dict[str, str] | None) -> None:
    save_file(load_file(path), path, metadata=metadata)


def test_the_header_is_plain_json_anyone_can_read(ours: Path) -> None:
    values = json.loads(header(ours)[KEY])
    assert values["config"] == TINY.to_dict()
    assert values["scores"] == CARD.scores


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, KEY),
        ("{", "Expecting"),
        ("[]", ""),
        ("7", ""),
        ("[" * 100_000, "recursion"),
        ('{"name": "without config"}', "config"),
        ('{"config": []}', ""),
        ('{"config": {"encoder": "UNet"}}', "UNet"),
        ('{"config": {"decoder": ["published"]}}', "published"),
        ('{"config": {"features": 0}}', "features"),
        ('{"config": {"features": "many"}}', "many"),
        ('{"config": {"heads": 8}}', "heads"),
        ('{"config": {}, "name": 3}', "name is 3"),
        ('{"config": {}, "bfloat16": "yes"}', "bfloat16 is 'yes'"),
        ('{"config": {}, "scores": 40.1}', "scores is 40.1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_header_that_describes_no_network_is_refused(
    ours: Path, text: str | None, named: str
) -> None:
    with_header(ours, None if text is None else {KEY: text})
    for opened_by in (load, read_card):
        message = refusal(ours, opened_by)
        assert "does not describe a network of napari-arssr" in message
        assert named in message


@pytest.mark.parametrize(
    "claim",
    [
        {"blocks": 10**12},
        {"layers": 10**12},
        {"decoder_depth": 10**12},
        {"features": 10**12},
        {"decoder_width": 10**30},
        {"decoder": "published", "decoder_depth": 7},
        {"decoder": "published", "decoder_depth": 2},
    ],
    ids=str,
)
def test_a_header_that_claims_an_impossible_network_is_refused_at_once(
    ours: Path, claim: dict[str, object]
) -> None:
    with_header(ours, {KEY: json.dumps({"config": TINY.to_dict() | claim})})
    assert "no network is as this file says" in refusal(ours)


@pytest.mark.parametrize("claim", [{"features": 5}, {"blocks": 1}, {"encoder": "ResCNN"}], ids=str)
def test_a_header_that_does_not_fit_the_tensors_is_refused(
    ours: Path, claim: dict[str, object]
) -> None:
    with_header(ours, {KEY: json.dumps({"config": TINY.to_dict() | claim})})
    assert "another architecture" in refusal(ours)


def test_a_header_of_a_later_version_is_read_for_what_is_known(ours: Path) -> None:
    values = json.loads(header(ours)[KEY]) | {"colour": "blue"}
    with_header(ours, {KEY: json.dumps(values)})
    assert read_card(ours) == CARD
