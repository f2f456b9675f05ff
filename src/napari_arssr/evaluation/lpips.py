"""LPIPS: learned perceptual distance of two pictures.

Zhang, Isola, Efros, Shechtman & Wang, "The unreasonable effectiveness of deep features as a
perceptual metric", CVPR 2018; version 0.1 with AlexNet, linear heads on frozen features.

The weights are two files: AlexNet as torchvision distributes it (BSD-3-Clause) and the heads of
the authors' repository (BSD-2-Clause). They are fetched on request, compared with their
SHA-256, and opened as tensors alone.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_arssr import download
from napari_arssr.devices import float32_means_float32
from napari_arssr.download import NotFetched, Progress, RemoteFile
from napari_arssr.errors import FileError
from napari_arssr.evaluation.slices import SliceScores
from napari_arssr.weights import cache_folder

__all__ = ["FILES", "LPIPS", "fetch", "load", "lpips_slices"]


FILES = (
    RemoteFile(
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "alexnet-owt-7be5be79.pth",
        "sha256:7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
    RemoteFile(
        "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/"
        "v0.1/alex.pth",
        "lpips-v0.1-alex.pth",
        "sha256:df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    ),
)
"""AlexNet, 244 MB, and the heads, 6 kB."""

# Channels, kernel, stride, padding, and whether pooling comes before; indices as in torchvision.
_LAYERS = {
    0: (3, 64, 11, 4, 2, False),
    3: (64, 192, 5, 1, 2, True),
    6: (192, 384, 3, 1, 1, True),
    8: (384, 256, 3, 1, 1, False),
    10: (256, 256, 3, 1, 1, False),
}
_SHIFT = (-0.030, -0.088, -0.188)
_SPREAD = (0.458, 0.448, 0.450)
_TINY = 1e-10
_LEAST = 31  # pixels along an axis, or nothing is left after the pooling
_BATCH_PIXELS = 1 << 20


class LPIPS(nn.Module):
    """The distance of two batches of pictures; evaluation only."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleDict(
            {
                str(index): nn.Conv2d(inputs, outputs, kernel, stride, padding)
                for index, (inputs, outputs, kernel, stride, padding, _) in _LAYERS.items()
            }
        )
        self.heads = nn.ParameterList(
            nn.Parameter(torch.zeros(outputs)) for _, outputs, *_ in _LAYERS.values()
        )
        self.eval().requires_grad_(False)

    @property
    def sha256(self) -> str:
        """Of all weights, in hexadecimal digits; the same from whatever files they came."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            found.update(name.encode())
            found.update(tensor.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def features(self, pictures: Tensor) -> list[Tensor]:
        """What the five convolutions answer, each of length 1 over its channels.

        Parameters
        ----------
        pictures : (n, rows, columns) tensor
            Grey, in [-1, 1].
        """
        shift, spread = (
            pictures.new_tensor(values).view(1, 3, 1, 1) for values in (_SHIFT, _SPREAD)
        )
        hidden = (pictures.unsqueeze(1).expand(-1, 3, -1, -1) - shift) / spread
        answers = []
        for index, (*_, pooled) in _LAYERS.items():
            if pooled:
                hidden = functional.max_pool2d(hidden, 3, 2)
            hidden = functional.relu(self.convolutions[str(index)](hidden))
            length = hidden.square().sum(dim=1, keepdim=True).sqrt()
            answers.append(hidden / (length + _TINY))
        return answers

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Distances (n,): 0 for equal pictures, larger for less alike.

        d = Σ over layers of the mean over places of Σ over channels of w (f₁ - f₂)².

        Parameters
        ----------
        one, other : (n, rows, columns) tensors
            Grey, in [-1, 1], at least 31 pixels along each axis.
        """
        total = one.new_zeros(len(one))
        pairs = zip(self.features(one), self.features(other), self.heads, strict=True)
        for mine, theirs, head in pairs:
            apart = (mine - theirs).square()
            total = total + torch.einsum("nchw,c->nhw", apart, head).mean(dim=(1, 2))
        return total


def lpips_slices(
    model: LPIPS, reference: npt.NDArray[np.float32], result: npt.NDArray[np.float32]
) -> SliceScores:
    """LPIPS of every slice of two volumes, grey as red, green and blue.

    Parameters
    ----------
    model : LPIPS
        On the device where it shall run.
    reference, result : (z, y, x) arrays
        Intensities in [0, 1], from the reference's range.

    Returns
    -------
    SliceScores
        NaN where the reference's slice is the same everywhere, or smaller than 31 pixels along
        an axis.
    """
    device = next(model.parameters()).device
    found = []
    for axis in range(3):
        one, other = (np.moveaxis(volume, axis, 0) for volume in (reference, result))
        scores = np.full(len(one), np.nan)
        flat = one.reshape(len(one), -1)
        told = np.flatnonzero(flat.min(axis=1) < flat.max(axis=1))
        if min(one.shape[1:]) < _LEAST:
            told = told[:0]
        step = max(1, _BATCH_PIXELS // (one.shape[1] * one.shape[2]))
        for start in range(0, len(told), step):
            part = told[start : start + step]
            tensors = [
                torch.from_numpy(np.ascontiguousarray(volume[part])).to(device) * 2 - 1
                for volume in (one, other)
            ]
            with torch.inference_mode(), float32_means_float32():
                scores[part] = model(*tensors).cpu().numpy()
        found.append(scores)
    return SliceScores(*found)


def load(paths: Iterable[str | os.PathLike[str]], device: torch.device | str = "cpu") -> LPIPS:
    """LPIPS from files that together hold AlexNet's convolutions and the heads.

    Parameters
    ----------
    paths : iterable of paths
        State dicts (``.pth``, ``.pt``) or safetensors: AlexNet as torchvision names its
        tensors, the heads as the LPIPS repository does, or both in one as the ``lpips``
        package saves its model. A folder stands for the files in it.
    device : torch.device or str

    Raises
    ------
    FileError
        If a file is missing, broken or holds more than tensors, or a tensor is missing or of
        another shape.
    """
    tensors: dict[str, Tensor] = {}
    names = []
    for path in _expanded(paths):
        names.append(str(path))
        tensors |= {_plain_name(name): tensor for name, tensor in _tensors_of(path).items()}
    model = LPIPS()
    state = {}
    for name, wanted in model.state_dict().items():
        tensor = tensors.get(name)
        if tensor is None:
            raise FileError(
                f"{', '.join(names)}: the LPIPS weights are not whole, {name} is missing; name "
                "AlexNet's file and that of the heads."
            )
        if tensor.numel() != wanted.numel() or not torch.isfinite(tensor).all():
            raise FileError(
                f"{', '.join(names)}: {name} has shape {tuple(tensor.shape)} or values that are "
                f"not finite, where {tuple(wanted.shape)} was expected: this is not AlexNet's "
                "LPIPS."
            )
        state[name] = tensor.float().reshape(wanted.shape)
    model.load_state_dict(state)
    return model.to(device)


def fetch(
    folder: Path | None = None,
    files: Sequence[RemoteFile] = FILES,
    progress: Progress | None = None,
) -> list[Path]:
    """The verified weights, downloaded if they are not here yet.

    Parameters
    ----------
    folder : path, optional
        Where they are kept; by default with all other weights.
    files : sequence of RemoteFile
    progress : callable, optional
        Told the bytes of a file that have come, and of all of it.

    Raises
    ------
    FileError
        If a file cannot be had, or is not the one it should be.
    """
    folder = folder or cache_folder()
    found = []
    for file in files:
        try:
            found.append(download.fetch(file, folder, progress=progress))
        except (NotFetched, OSError) as error:
            raise FileError(
                f"LPIPS is not available: {file.address} could not be fetched and kept in "
                f"{folder} ({error}); fetch it by other means and name it with --lpips-weights."
            ) from None
    return found


def _expanded(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    found: list[Path] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            inside = sorted(
                p for p in path.iterdir() if p.suffix.lower() in (".pth", ".pt", ".safetensors")
            )
            if not inside:
                raise FileError(f"{path}: there are no LPIPS weights in this folder.")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise FileError(f"{path}: there is no such file of LPIPS weights.")
    return found


def _tensors_of(path: Path) -> dict[str, Tensor]:
    state: Any
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            with warnings.catch_warnings():
                # About pickles that PyTorch did not write, which are refused below.
                warnings.simplefilter("ignore", UserWarning)
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise FileError(
            f"{path}: refused, because it holds more than tensors and could run code; nothing "
            "in it was run."
        ) from None
    except Exception as error:  # torch raises many kinds for a broken archive
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise FileError(f"{path}: its tensors cannot be read ({reason}).") from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise FileError(f"{path}: this is not a state dict of tensors.")
    return state


def _plain_name(name: str) -> str:
    """Our name of a tensor, from torchvision's, the repository's or the package's."""
    parts = name.split(".")
    if parts[0] == "features":  # features.0.weight
        return ".".join(["convolutions", *parts[1:]])
    if parts[:1] == ["net"] and len(parts) == 4:  # net.slice1.0.weight
        return ".".join(["convolutions", *parts[2:]])
    if parts[0].startswith("lin") and parts[0][3:].isdigit():  # lin0.model.1.weight
        return f"heads.{parts[0][3:]}"
    if parts[0] == "lins" and len(parts) > 1:  # lins.0.model.1.weight
        return f"heads.{parts[1]}"
    return name
