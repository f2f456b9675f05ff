"""Training on one channel of microscopes' stacks: of sets, of one volume, and in patches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
from ome_stores import cells, write_store
from safetensors.torch import load_file
from tiny import Run

from napari_arssr import io
from napari_arssr.errors import UsageError
from napari_arssr.training.volumes import MANIFEST, load_volumes

SIDES = (1.5, 0.5, 0.5)  # µm along z, y, x
SMOOTH = np.cumsum(cells(2, 16, 24, 24), axis=1).astype(np.uint16)


def alone(path: Path, data: npt.NDArray[Any]) -> Path:
    about = {"axes": "ZYX", "spacing": SIDES[0], "unit": "um"}
    tifffile.imwrite(path, data, imagej=True, resolution=(2, 2), metadata=about)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "cells.ome.zarr", SMOOTH, "czyx", scale=(1, *SIDES))


def test_of_a_stack_with_several_channels_one_is_learnt_from(store: Path, tmp_path: Path) -> None:
    (expected,) = load_volumes([alone(tmp_path / "alone.tif", SMOOTH[1])])
    (found,) = load_volumes([store], channel=1)
    assert found.content == expected.content
    assert found.sha256 == io.content_sha256(store)
    said: list[str] = []
    with pytest.raises(UsageError, match="no volume that can be used"):
        load_volumes([store], warn=said.append)
    assert "has 2 channels" in said[0]
    with pytest.raises(UsageError, match="there is no channel 1; it has one, channel 0"):
        load_volumes([tmp_path / "alone.tif"], channel=1, strict=True)


def test_a_channel_that_stays_on_the_disk_is_unpacked(store: Path, tmp_path: Path) -> None:
    (held,) = load_volumes([store], channel=1)
    (left,) = load_volumes([store], channel=1, unpack_to=tmp_path / "unpacked")
    part = np.s_[2:5, 3:9, 1:4]
    np.testing.assert_array_equal(left.data[part], held.data[part])
    assert len([*(tmp_path / "unpacked").iterdir()]) == 1


def test_patches_are_cut_from_the_channel_that_their_manifest_names(
    run: Run, store: Path, tmp_path: Path
) -> None:
    cut = ["--size", "8", "--count", "2", "--validation-share", "0"]
    assert run("patches", store, "--out", tmp_path / "one", *cut, "--channel", "1").status == 0
    manifest = json.loads((tmp_path / "one" / MANIFEST).read_text())
    assert manifest["channel"] == 1
    (volume,) = manifest["volumes"]
    grid = io.read(store, channel=1).grid
    normal = (SMOOTH[1] - float(SMOOTH[1].min())) / np.ptp(SMOOTH[1].astype(float))
    for patch in volume["patches"]:
        z, y, x = patch["start_zyx"]
        voxels = io.read(tmp_path / "one" / patch["file"])
        expected = normal[z : z + 8, y : y + 8, x : x + 8]
        np.testing.assert_allclose(voxels.data, expected, atol=1e-3)
        np.testing.assert_allclose(voxels.grid.world([0, 0, 0]), grid.world([z, y, x]), atol=1e-6)
    words = ["patches", store, "--out", tmp_path / "two"]
    assert run(*words, "--manifest", tmp_path / "one" / MANIFEST).status == 0
    again = json.loads((tmp_path / "two" / MANIFEST).read_text())
    assert again == manifest
    del manifest["channel"]  # of a time that knew none
    (tmp_path / "old.json").write_text(json.dumps(manifest))
    ran = run(*words[:-1], tmp_path / "three", "--manifest", tmp_path / "old.json")
    assert ran.status == 2
    assert "has 2 channels" in ran.err


def test_one_channel_of_one_stack_teaches_its_own_coarse_axis(
    run: Run, tiny: Path, store: Path, tmp_path: Path
) -> None:
    options = ["--self", "--from", tiny, "--steps", "2", "--batch", "2", "--patch", "6"]
    options += ["--quiet", "--device", "cpu", "--workers", "0"]
    ran = run("train", store, *options, "--channel", "1", "--out", tmp_path / "one")
    assert (ran.status, ran.err) == (0, "")
    single = alone(tmp_path / "alone.tif", SMOOTH[1])
    assert run("train", single, *options, "--out", tmp_path / "two").status == 0
    one, two = (load_file(tmp_path / run / "trained.safetensors") for run in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    (cubes,) = (tmp_path / "one" / "isotropic").iterdir()
    assert cubes.name.startswith("cells-channel1-")
    assert run("train", "--out", tmp_path / "one", "--resume", "--steps", "3", "--quiet").err == ""
    ran = run("train", store, *options, "--out", tmp_path / "three")
    assert ran.status == 2
    assert "has 2 channels" in ran.err
