"""Files of weights: safetensors of ours, published PyTorch state dicts; nothing is unpickled."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from napari_arssr.errors import FileError
from napari_arssr.files import whole_file
from napari_arssr.models.arssr import ArSSR, ModelConfig
from napari_arssr.models.baselines import BaselineConfig, Regressor

__all__ = [
    "BaselineCard",
    "Card",
    "load",
    "load_baseline",
    "read_baseline_card",
    "read_card",
    "save",
    "write_tensors",
]

_CARD_KEY = "napari-arssr"
_SAFETENSORS = ".safetensors"
_CARD_KINDS = {"str": str, "bool": bool, "dict[str, Any]": dict}


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What a weights file says of any network."""

    name: str = ""
    licence: str = ""
    paper: str = ""
    training_data: str = ""
    bfloat16: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Card(_Facts):
    """What a weights file of an ArSSR network says of itself in its header.

    Parameters
    ----------
    config : ModelConfig
    name, licence, paper, training_data : str
    bfloat16 : bool
        Whether bfloat16 was measured to move results by less than 0.02 dB.
    training : dict
        Settings of the run, and its seed, steps, versions.
    scores : dict
        Metrics with the names of what they were measured on.
    """

    config: ModelConfig


@dataclass(frozen=True)
class BaselineCard(_Facts):
    """The same of a baseline's weights, whose config holds its one scale."""

    config: BaselineConfig


def save(
    path: str | os.PathLike[str],
    model: ArSSR | Regressor,
    card: Card | BaselineCard,
    dtype: torch.dtype,
) -> None:
    """Write weights with their card; the file appears under its name only when whole.

    Parameters
    ----------
    path : path ending in ``.safetensors``
    model : ArSSR or Regressor
    card : Card or BaselineCard
    dtype : torch.dtype
        How tensors are stored: ``torch.float32``, or ``torch.float16`` for half the size.

    Raises
    ------
    FileError
        If the file cannot be written, or would hold values that are not finite.
    """
    target = Path(path)
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in _real_tensors(model).items()
    }
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise FileError(
                f"{target}: not written, because the tensor {name} holds values that are not "
                f"finite as {str(dtype).removeprefix('torch.')}."
            )
    header = {_CARD_KEY: json.dumps(asdict(card), sort_keys=True)}
    write_tensors(target, tensors, header, what="the weights")


def write_tensors(
    target: Path, tensors: dict[str, Tensor], header: dict[str, str], *, what: str
) -> None:
    """Write a safetensors file that is whole as soon as it has its name.

    Parameters
    ----------
    target : Path
    tensors : dict
        On the CPU, contiguous.
    header : dict
    what : str
        What they are, for errors.

    Raises
    ------
    FileError
        If it cannot be written there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save

    try:
        with whole_file(target) as partial:
            # Not by save_file, which makes a file of its own that only its owner can read.
            partial.write_bytes(save(tensors, metadata=header))
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FileError(
            f"{target}: {what} cannot be written there ({reason}); name another place."
        ) from None


def read_card(path: str | os.PathLike[str]) -> Card:
    """The card in the header of a ``.safetensors`` file, its tensors left alone.

    Raises
    ------
    FileError
        If the file is not one of this project's, or of a baseline.
    """
    file = _existing(path)
    card = _read_any_card(file)
    if isinstance(card, BaselineCard):
        raise FileError(
            f"{file}: these are weights of the baseline {card.config.network}, which knows one "
            "scale; score it with 'napari-arssr evaluate', and name weights of an ArSSR network "
            "here."
        )
    return card


def read_baseline_card(path: str | os.PathLike[str]) -> BaselineCard:
    """The card of a baseline's weights, their tensors left alone.

    Raises
    ------
    FileError
        If the file is not one of this project's, or of an ArSSR network.
    """
    file = _existing(path)
    card = _read_any_card(file)
    if isinstance(card, Card):
        raise FileError(f"{file}: these are weights of an ArSSR network, not of a baseline.")
    return card


def _read_any_card(file: Path) -> Card | BaselineCard:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise FileError(
            f"{file}: this is not a whole safetensors file ({error}); fetch or export it again."
        ) from None
    if _CARD_KEY not in header:
        raise FileError(
            f"{file}: its header does not describe a network of napari-arssr; use weights that "
            "napari-arssr wrote, or a published ArSSR checkpoint (.pkl)."
        )
    try:
        values = json.loads(header[_CARD_KEY])
        config = values.pop("config")
        facts = _card_values(values)
        if "network" in config:
            return BaselineCard(BaselineConfig.from_dict(config), **facts)
        return Card(ModelConfig.from_dict(config), **facts)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FileError(
            f"{file}: its header does not describe a network of napari-arssr ({error}); "
            "use weights that napari-arssr wrote, or a published ArSSR checkpoint (.pkl)."
        ) from None


def load(path: str | os.PathLike[str]) -> tuple[ArSSR, Card]:
    """A network in evaluation mode, from our ``.safetensors`` or a published state dict.

    Published checkpoints (``.pkl``, ``.pt``, ``.pth``) are opened with ``weights_only=True``;
    their architecture is read off the tensor names and shapes.

    Raises
    ------
    FileError
        If the file is missing, broken, holds more than tensors, or another architecture.
    """
    file = _existing(path)
    if file.suffix.lower() == _SAFETENSORS:
        card = read_card(file)
        tensors = _load_safetensors(file)
    else:
        tensors = _load_state_dict(file)
        card = Card(config=_published_config(tensors, file), name=file.name)
    model = _build_empty(card.config, tensors, file)
    _check(tensors, model, file)
    model.load_state_dict({k: v.float() for k, v in tensors.items()}, assign=True)
    return model.eval().requires_grad_(False), card


def load_baseline(path: str | os.PathLike[str]) -> tuple[Regressor, BaselineCard]:
    """A baseline in evaluation mode, from our ``.safetensors``.

    Raises
    ------
    FileError
        If the file is missing, broken, or not of a baseline.
    """
    card = read_baseline_card(path)
    file = Path(path)
    tensors = _load_safetensors(file)
    with torch.device("meta"):
        model = Regressor(card.config)
    _check(tensors, model, file)
    model.load_state_dict({k: v.float() for k, v in tensors.items()}, assign=True)
    return model.eval().requires_grad_(False), card


def _real_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, without the whole numbers that batch normalisation counts in."""
    state: dict[str, Tensor] = model.state_dict()
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


def _card_values(values: dict[str, Any]) -> dict[str, Any]:
    """What a card knows of a header's values; a value of another kind is a TypeError."""
    kinds = {item.name: _CARD_KINDS[str(item.type)] for item in fields(_Facts)}
    known = {name: value for name, value in values.items() if name in kinds}
    for name, value in known.items():
        if not isinstance(value, kinds[name]):
            raise TypeError(f"{name} is {value!r}")
    return known


def _existing(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if not file.is_file():
        raise FileError(f"{file}: there is no such weights file.")
    return file


def _load_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except Exception as error:  # a kind of number that torch does not know, a failing disk
        raise FileError(f"{file}: its tensors cannot be read ({error}); fetch it again.") from None


def _load_state_dict(file: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            # About pickles that PyTorch did not write, which are refused below.
            warnings.simplefilter("ignore", UserWarning)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():  # it names a class or function to be called
            raise FileError(
                f"{file}: refused, because it holds more than tensors and could run code; "
                "nothing in it was run, and only plain state dicts are opened."
            ) from None
        raise FileError(
            f"{file}: refused, because it is not a PyTorch file of plain tensors: it is damaged, "
            "of another kind, or a pickle that could run code; nothing in it was run."
        ) from None
    except PermissionError:
        raise FileError(f"{file}: the file may not be read; change its permissions.") from None
    except Exception:  # torch raises many kinds for a broken archive, with advice of its own
        raise FileError(
            f"{file}: this is not a whole PyTorch checkpoint: it is cut short, damaged or of "
            "another kind; fetch it again."
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise FileError(f"{file}: this is not a state dict of tensors, as ArSSR publishes them.")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def _published_config(tensors: dict[str, Tensor], file: Path) -> ModelConfig:
    """The architecture, from the names and shapes of a published checkpoint's tensors."""
    markers = {
        "RDN": ("encoder.sfe1.weight", "encoder.output.weight"),
        "ResCNN": ("encoder.conv_start.0.weight", "encoder.conv_end.0.weight"),
        "SRResNet": ("encoder.features.0.0.weight", "encoder.features.20.0.weight"),
    }
    encoder = next((k for k, names in markers.items() if set(names) <= tensors.keys()), None)
    if encoder is None or "decoder.stage_one.0.weight" not in tensors:
        raise FileError(
            f"{file}: its tensors are not those of an ArSSR network with an RDN, ResCNN or "
            "SRResNet encoder; these weights are of another architecture."
        )
    first, last = (tensors[name] for name in markers[encoder])
    depth = sum(name.startswith("decoder.stage") and name.endswith("weight") for name in tensors)
    try:
        sizes = {
            "feature_dim": last.shape[0],
            "features": first.shape[0],
            "decoder_depth": depth,
            "decoder_width": tensors["decoder.stage_one.0.weight"].shape[0],
        }
        if encoder == "RDN":
            sizes["growth"] = tensors["encoder.rdbs.0.layers.0.conv.weight"].shape[0]
            sizes["blocks"] = sum(name.endswith("lff.weight") for name in tensors)
            sizes["layers"] = sum(
                name.startswith("encoder.rdbs.0.layers.") and name.endswith("weight")
                for name in tensors
            )
        return ModelConfig(encoder=encoder, **sizes)  # type: ignore[arg-type]
    except (KeyError, IndexError, ValueError) as error:
        raise FileError(f"{file}: this {encoder} checkpoint is not whole ({error}).") from None


def _build_empty(config: ModelConfig, tensors: dict[str, Tensor], file: Path) -> ArSSR:
    """A network without memory for its tensors; a config that none can have is refused."""
    # Every block and layer holds a tensor: a header that claims more would build for ever.
    claimed = max(config.blocks, config.layers, config.decoder_depth)
    try:
        if claimed <= len(tensors):
            with torch.device("meta"):
                return ArSSR(config)
        reason = f"{claimed} blocks or layers for {len(tensors)} tensors"
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
    raise FileError(
        f"{file}: no network is as this file says ({reason}); its weights are broken or of "
        "another architecture."
    )


def _check(tensors: dict[str, Tensor], model: nn.Module, file: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in _real_tensors(model).items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected == found:
        for name, tensor in tensors.items():
            plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
            # Repeated without end, one number would claim any amount of memory.
            size = tensor.numel() * tensor.element_size() if plain else 0
            plain = plain and tensor.untyped_storage().nbytes() >= size
            if not (plain and tensor.is_floating_point()):
                raise FileError(f"{file}: the tensor {name} is not one of plain real numbers.")
            if not torch.isfinite(tensor.float()).all():
                raise FileError(
                    f"{file}: the tensor {name} holds values that are not finite; "
                    "fetch or train the weights again."
                )
        return
    wrong = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    name = wrong[0]
    raise FileError(
        f"{file}: these weights are of another architecture: {name} is "
        f"{found.get(name, 'missing')} where {expected.get(name, 'no tensor')} was expected "
        f"({len(wrong)} tensors differ)."
    )
