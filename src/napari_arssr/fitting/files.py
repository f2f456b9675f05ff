"""A fit in one safetensors file: volume, network, poses and affines; written whole or not at all.

Tensors: ``base``, ``expected``, ``uncertainty``, ``mask`` on the grid of ``affine`` (NIfTI's,
float64); ``stack.N.registered`` (4, 4), ``stack.N.motion`` (slices, 4, 4), ``stack.N.weight``
(slices,) and ``stack.N.affine`` of the N-th stack, slices along the first array axis; ``starts``
(stacks, 4, 4); ``network.…``, and ``memory.…`` of its optimiser. The header's entry
``napari-arssr fit`` is JSON with all else.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from napari_arssr.errors import FileError, UsageError
from napari_arssr.fitting.implicit import Trained
from napari_arssr.fitting.registration import Agreement
from napari_arssr.fitting.settings import Settings
from napari_arssr.fitting.state import STAGES, StackRecord, State
from napari_arssr.models.checkpoint import write_tensors
from napari_arssr.models.hash_grid import HashGrid, HashGridConfig
from napari_arssr.models.irem import IREM, IREMConfig
from napari_arssr.normalization import Normalizer
from napari_arssr.volume import Grid

__all__ = ["check_target", "load", "save"]

_KEY = "napari-arssr fit"
_SUFFIX = ".safetensors"
_PLANES = ("base", "expected", "uncertainty", "mask")


def check_target(path: str | os.PathLike[str]) -> Path:
    """See that a fit can be kept under a name, before the work.

    Raises
    ------
    UsageError, FileError
    """
    target = Path(path)
    if target.suffix.lower() != _SUFFIX:
        raise UsageError(f"{target}: a fit is kept in a file that ends in {_SUFFIX}.")
    if not target.parent.is_dir():
        raise FileError(f"The folder {target.parent} does not exist; make it first.")
    return target


def save(path: str | os.PathLike[str], state: State) -> Path:
    """Write a fit, done or not.

    Raises
    ------
    UsageError, FileError
    """
    target = check_target(path)
    tensors: dict[str, Tensor] = {
        "affine": torch.from_numpy(np.array(state.grid.affine)),
        "starts": torch.from_numpy(np.array(state.starts)),
    }
    for name in _PLANES:
        plane = getattr(state, name)
        if plane is not None:
            tensors[name] = torch.from_numpy(plane.astype(np.uint8 if name == "mask" else "f4"))
    for number, stack in enumerate(state.stacks):
        tensors[f"stack.{number}.registered"] = torch.from_numpy(np.array(stack.registered))
        tensors[f"stack.{number}.motion"] = torch.from_numpy(np.array(stack.motion))
        tensors[f"stack.{number}.weight"] = torch.from_numpy(np.array(stack.weight))
        tensors[f"stack.{number}.affine"] = torch.from_numpy(np.array(stack.grid.affine))
    header: dict[str, Any] = {
        "settings": state.settings.to_dict(),
        "shape": list(state.grid.shape),
        "normalizer": asdict(state.normalizer),
        "stage": state.stage,
        "numbers": state.numbers,
        "warnings": state.warnings,
        "stacks": [
            {
                "name": stack.name,
                "digest": stack.digest,
                "shape": list(stack.grid.shape),
                "gain": stack.gain,
                "agreement": asdict(stack.agreement),
            }
            for stack in state.stacks
        ],
        "network": None,
    }
    if state.trained is not None:
        network = state.trained.network
        assert isinstance(network, IREM | HashGrid)
        header["network"] = {
            "kind": "irem" if isinstance(network, IREM) else "hash-grid",
            "config": network.config.to_dict(),
            "step": state.trained.step,
            "losses": state.trained.losses,
        }
        for name, tensor in network.state_dict().items():
            tensors[f"network.{name}"] = tensor.detach().cpu().contiguous()
        for name, tensor in state.trained.memory.items():
            tensors[f"memory.{name}"] = tensor.contiguous()
    header_text = {_KEY: json.dumps(header, sort_keys=True)}
    write_tensors(target, tensors, header_text, what="the fit")
    return target


def load(path: str | os.PathLike[str]) -> State:
    """Read a fit that :func:`save` wrote.

    Raises
    ------
    FileError
        If the file is missing, broken, or no fit.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(path)
    if not file.is_file():
        raise FileError(f"{file}: there is no such fit.")
    try:
        with safe_open(file, framework="pt") as opened:
            header = (opened.metadata() or {}).get(_KEY)
            if header is None:
                raise FileError(f"{file}: this is no fit of napari-arssr, but another file.")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FileError(f"{file}: this is not a whole safetensors file ({error}).") from None
    try:
        return _state_of(json.loads(header), tensors)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
        raise FileError(
            f"{file}: this fit is damaged or of another version ({error}); fit the stacks again."
        ) from None


def _state_of(header: dict[str, Any], tensors: dict[str, Tensor]) -> State:
    grid = Grid(tuple(header["shape"]), tensors["affine"].numpy())
    stacks = [
        StackRecord(
            facts["name"],
            facts["digest"],
            Grid(tuple(facts["shape"]), tensors[f"stack.{number}.affine"].numpy()),
            float(facts["gain"]),
            Agreement(**facts["agreement"]),
            _shaped(tensors[f"stack.{number}.registered"], (4, 4)).numpy(),
            _shaped(tensors[f"stack.{number}.motion"], (facts["shape"][0], 4, 4)).numpy(),
            _shaped(tensors[f"stack.{number}.weight"], (facts["shape"][0],)).numpy(),
        )
        for number, facts in enumerate(header["stacks"])
    ]
    stage = header["stage"]
    if stage not in STAGES:
        raise ValueError(f"stage {stage!r}")
    state = State(
        Settings.from_dict(header["settings"]),
        grid,
        Normalizer(**header["normalizer"]),
        stacks,
        _shaped(tensors["starts"], (len(stacks), 4, 4)).numpy(),
        stage,
        numbers=dict(header["numbers"]),
        warnings=list(header["warnings"]),
    )
    for name in _PLANES:
        if name in tensors:
            plane = _shaped(tensors[name], grid.shape).numpy()
            setattr(state, name, plane.astype(bool) if name == "mask" else plane)
    if header["network"] is not None:
        state.trained = _trained(header["network"], tensors)
    return state


def _trained(facts: dict[str, Any], tensors: dict[str, Tensor]) -> Trained:
    network: nn.Module
    saved = _under("network.", tensors)
    of_irem = facts["kind"] == "irem"
    # Every layer holds a tensor: a header that claims more would build for ever.
    claimed = facts["config"]["layers" if of_irem else "levels"]
    if claimed > len(saved):
        raise ValueError(f"{claimed} layers for {len(saved)} tensors")
    with torch.device("meta"):  # without memory for what is replaced at once
        if of_irem:
            network = IREM(IREMConfig.from_dict(facts["config"]))
        else:
            network = HashGrid(HashGridConfig.from_dict(facts["config"]))
    network.load_state_dict(saved, assign=True)
    network.eval()
    return Trained(network, int(facts["step"]), _under("memory.", tensors), list(facts["losses"]))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _shaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"a tensor of {tuple(tensor.shape)} where {tuple(shape)} is expected")
    return tensor
