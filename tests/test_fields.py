"""Encoded volumes that are kept: the same for the same key, one user at a time, few at once."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from napari_arssr import weights as registry
from napari_arssr._fields import Fields
from napari_arssr.errors import Cancelled, FileError, UsageError
from napari_arssr.field import NetworkField
from napari_arssr.models import Card, ModelConfig, build, save
from napari_arssr.normalization import Normalizer
from napari_arssr.volume import Grid, Volume

TINY = ModelConfig(
    decoder="residual",
    feature_dim=4,
    decoder_depth=3,
    decoder_width=8,
    features=4,
    growth=3,
    blocks=1,
    layers=2,
)


def field() -> NetworkField:
    volume = Volume(np.zeros((4, 5, 6), np.float32), Grid.from_spacing((4, 5, 6), 1.0).affine)
    return NetworkField(volume, build(TINY), Normalizer(), memory=1 << 20)


def never() -> NetworkField:
    raise AssertionError("it is here already")


def test_the_same_key_gets_the_same_field_without_making_it_again() -> None:
    fields = Fields()
    with fields.lend("a", field) as first:
        assert isinstance(first, NetworkField)
    with fields.lend("a", never) as second:
        assert second is first
    with fields.lend_if_free("a", never) as third:
        assert third is first
    with fields.lend("b", field) as other:
        assert other is not first


def test_the_least_recently_used_goes_and_its_memory_with_it() -> None:
    fields = Fields(most=2)
    gone: dict[str, weakref.ref[Any]] = {}
    for key in ("a", "b"):
        with fields.lend(key, field) as made:
            gone[key] = weakref.ref(made)
        del made
    with fields.lend("a", never):
        pass
    seen: list[bool] = []

    def make() -> NetworkField:
        gc.collect()
        seen.append(gone["b"]() is None)  # gone before the new one asks for memory
        return field()

    with fields.lend("c", make):
        pass
    assert seen == [True]
    assert len(fields) == 2
    assert gone["a"]() is not None


def test_a_field_serves_one_at_a_time() -> None:
    fields = Fields()
    order: list[str] = []
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with fields.lend("a", field):
            entered.set()
            leave.wait(20)
            order.append("first")

    def second() -> None:
        with fields.lend("a", never):
            order.append("second")

    one, two = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    assert entered.wait(20)
    with fields.lend_if_free("a", never) as busy:
        assert busy is None
    with fields.lend_if_free("b", field) as free:
        assert free is not None
    two.start()
    two.join(0.1)
    assert order == []
    leave.set()
    one.join(20)
    two.join(20)
    assert order == ["first", "second"]
    with fields.lend_if_free("a", never) as again:
        assert again is not None


def test_who_waits_for_a_field_can_be_stopped() -> None:
    fields, lent, done = Fields(), threading.Event(), threading.Event()

    def hold() -> None:
        with fields.lend("a", field):
            lent.set()
            done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert lent.wait(60)
    asked: list[None] = []

    def stop() -> bool:
        asked.append(None)
        return len(asked) == 3

    with pytest.raises(Cancelled), fields.lend("a", never, stop):
        pytest.fail("nobody else has let go of it")
    done.set()
    holder.join()
    assert len(asked) == 3
    with fields.lend("a", never):
        pass  # it was given back


def test_what_could_not_be_made_is_tried_again() -> None:
    fields = Fields()

    def broken() -> NetworkField:
        raise UsageError("no")

    for lend in (fields.lend, fields.lend_if_free):
        with pytest.raises(UsageError), lend("a", broken):
            pass
    assert len(fields) == 0
    with fields.lend("a", field) as made:
        assert made is not None


def test_an_error_while_it_is_lent_gives_it_back() -> None:
    fields = Fields()
    for lend in (fields.lend, fields.lend_if_free):
        with pytest.raises(RuntimeError), lend("a", field):
            raise RuntimeError
        with fields.lend_if_free("a", never) as again:
            assert again is not None


def test_forgetting_frees_what_is_not_lent() -> None:
    fields = Fields()
    with fields.lend("a", field) as lent:
        fields.forget()
        assert len(fields) == 0
        assert lent is not None
        gone = weakref.ref(lent)
    del lent
    gc.collect()
    assert gone() is None


def test_forgetting_while_another_thread_imports_pytorch_goes_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))  # as it is found then
    Fields().forget()


def test_forgetting_while_weights_are_loaded_goes_well(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = Fields()
    load = registry.load

    def interrupted(name: Any) -> registry.Loaded:
        loaded = load(name)
        fields.forget()  # as the window's thread may at any moment
        return loaded

    monkeypatch.setattr(registry, "load", interrupted)
    assert fields.weights(weights)[1].card.name == "tiny"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save(path, build(TINY), Card(TINY, name="tiny"), torch.float32)
    return path


def test_weights_are_loaded_once_and_anew_when_the_file_changes(weights: Path) -> None:
    fields = Fields()
    identity, loaded = fields.weights(weights)
    again, same = fields.weights(str(weights))
    assert again == identity
    assert same is loaded
    save(weights, build(TINY), Card(TINY, name="other"), torch.float32)
    os.utime(weights, ns=(1, 1))
    other, anew = fields.weights(weights)
    assert other != identity
    assert anew.card.name == "other"


def test_broken_weights_are_named_every_time(weights: Path) -> None:
    fields = Fields()
    weights.write_bytes(b"nonsense")
    for _ in range(2):
        with pytest.raises(FileError, match=r"tiny\.safetensors"):
            fields.weights(weights)
