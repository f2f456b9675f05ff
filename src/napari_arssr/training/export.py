"""From a run to a file of weights that ``--weights`` takes anywhere, with its model card."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

import napari_arssr
from napari_arssr.errors import FileError, UsageError
from napari_arssr.files import write_whole
from napari_arssr.models import (
    BaselineCard,
    Card,
    ModelConfig,
    build,
    load,
    load_baseline,
    read_baseline_card,
    save,
)
from napari_arssr.training.batches import Network
from napari_arssr.training.checkpoints import LAST, RUN_KEY, read_checkpoint
from napari_arssr.training.config import RunConfig, TrainingConfig
from napari_arssr.training.plain import from_plain, to_plain
from napari_arssr.training.volumes import Split
from napari_arssr.weights import ARSSR_PAPER

__all__ = ["BEST", "card_of", "card_text", "export_run", "run_record", "versions"]

BEST = "best.safetensors"
"""The weights of a run's best validation."""

Which = Literal["best", "last"]

_BASELINES = {
    "SRCNN3D": "Pham et al., Brain MRI super-resolution using deep 3D convolutional networks, "
    "ISBI 2017",
    "DCSRN": "Chen et al., Brain MRI super resolution using 3D deep densely connected neural "
    "networks, ISBI 2018",
    "ResCNN": "Du et al., Super-resolution reconstruction of single anisotropic 3D MR images using "
    "residual convolutional neural network, Neurocomputing 392, 2020",
}


def versions() -> dict[str, str]:
    """Of what a run depends on."""
    from importlib.metadata import version

    return {
        "napari-arssr": napari_arssr.__version__,
        "torch": str(torch.__version__),  # a class of its own, which no checkpoint should hold
        "pytorch-lightning": version("pytorch-lightning"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
    }


def run_record(
    config: RunConfig, split: Split, start: dict[str, str], processes: int = 1
) -> dict[str, Any]:
    """What a run is, as plain values: for its checkpoint, and in part for its weights.

    Parameters
    ----------
    config : RunConfig
    split : Split
    start : dict
        Name and SHA-256 of the weights it starts from; empty for random ones.
    processes : int
        That train together, each on pairs of its own.
    """
    return {
        "processes": processes,
        "config": to_plain(config),
        "volumes": {
            part: [
                {"name": v.name, "sha256": v.sha256, "content": v.content}
                for v in getattr(split, part)
            ]
            for part in ("train", "validation")
        },
        "start": start,
        "versions": versions(),
    }


def card_of(
    record: dict[str, Any], progress: dict[str, Any], scores: dict[str, float]
) -> Card | BaselineCard:
    """The card of a run's weights: nothing in it says where the files were.

    Parameters
    ----------
    record : dict
        From :func:`run_record`.
    progress : dict
        ``step`` and ``seconds`` of the weights.
    scores : dict
        Metrics on the validation pairs.
    """
    config = from_plain(RunConfig(), record["config"])
    volumes = record["volumes"]
    held_out = "held-out" if volumes["validation"] else "training"
    network = config.training.network
    facts: dict[str, Any] = {
        "name": config.weights.name,
        "licence": config.weights.licence,
        "training_data": config.weights.training_data,
        "training": {
            "preset": config.preset,
            "config": config.training.to_dict(),
            "normalization": config.training.normalization,
            "seed": config.training.seed,
            "steps": progress["step"],
            "minutes": round(progress["seconds"] / 60, 1),
            "start": record["start"],
            "files_sha256": {volume["name"]: volume["sha256"] for volume in volumes["train"]},
            "validation_sha256": {v["name"]: v["sha256"] for v in volumes["validation"]},
            "versions": record["versions"],
        },
        "scores": {f"pairs of the run's {held_out} volumes": scores} if scores else {},
    }
    if not isinstance(network, ModelConfig):
        return BaselineCard(network, paper=_BASELINES[network.network], **facts)
    own = "" if network.decoder == "published" else "; own decoder"
    return Card(network, paper=f"{ARSSR_PAPER}{own}", **facts)


def export_run(
    run: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    which: Which | None = None,
    half: bool = False,
    name: str = "",
    licence: str = "",
    training_data: str = "",
) -> Path:
    """Write a run's weights as safetensors, and their card beside them as Markdown.

    Parameters
    ----------
    run : path
        Folder of the run, at any stage.
    path : path ending in ``.safetensors``
    which : {"best", "last"}, optional
        Of the best validation, or of the last checkpoint. By default the best where the run was
        watched on volumes of its own, and the last where only on what it was trained on.
    half : bool
        As float16: half the size.
    name, licence, training_data : str
        In place of what the run's settings say.

    Returns
    -------
    pathlib.Path
        The weights.

    Raises
    ------
    UsageError
        If ``path`` does not end in ``.safetensors``.
    FileError
        If the folder holds no run, or the files cannot be written.
    """
    run, path = Path(run), Path(path)
    if path.suffix.lower() != ".safetensors":
        raise UsageError(f"{path}: weights are written as .safetensors; change the name's ending.")
    if not path.parent.is_dir():
        raise FileError(f"{path.parent}: there is no such folder to write {path.name} to.")
    model, card = _weights_of(run, which)
    card = replace(
        card,
        name=name or card.name,
        licence=licence or card.licence,
        training_data=training_data or card.training_data,
    )
    save(path, model, card, torch.float16 if half else torch.float32)
    write_whole(path.with_suffix(".md"), card_text(card, model, path).encode())
    return path


def _weights_of(run: Path, which: Which | None) -> tuple[Network, Card | BaselineCard]:
    if not (run / LAST).is_file() and not (run / BEST).is_file():
        raise FileError(
            f"{run}: this folder holds no run ({LAST} or {BEST}); name the folder that was given "
            "to train as --out."
        )
    if which is None and (run / LAST).is_file():
        watched = read_checkpoint(run / LAST)[RUN_KEY]["volumes"]["validation"]
        which = "best" if watched and (run / BEST).is_file() else "last"
    if which != "last" and (run / BEST).is_file():
        return _loaded(run / BEST)
    if which == "best":
        raise FileError(
            f"{run}: the run has had no validation yet, so that there is no best; export the last."
        )
    state = read_checkpoint(run / LAST)
    record = state[RUN_KEY]
    config = TrainingConfig.from_dict(record["config"]["training"])
    model: Network = build(config.network)
    prefix = "averaged."
    tensors = {
        key.removeprefix(prefix): tensor
        for key, tensor in state["state_dict"].items()
        if key.startswith(prefix)
    }
    model.load_state_dict(tensors)
    return model, card_of(record, record, record.get("scores", {}))


def _loaded(path: Path) -> tuple[Network, Card | BaselineCard]:
    try:
        read_baseline_card(path)
    except FileError:
        return load(path)
    return load_baseline(path)


def card_text(card: Card | BaselineCard, model: Network, path: Path) -> str:
    """A model card for people, in Markdown."""
    training = card.training
    parameters = sum(p.numel() for p in model.parameters())
    lines = [
        f"# {card.name}",
        "",
        f"{_what(card)}, {parameters / 1e6:.2f} million parameters. For {_use(card, path.name)}.",
        "",
        "| | |",
        "|---|---|",
        f"| licence | {card.licence or 'not stated'} |",
        f"| method | {card.paper} |",
        f"| training data | {card.training_data or 'not stated'} |",
    ]
    if training:
        start = training.get("start") or {}
        lines += [
            f"| volumes | {len(training['files_sha256'])} to train on, "
            f"{len(training['validation_sha256'])} held out |",
            f"| protocol | {training['preset']}, {training['steps']} steps, "
            f"{training['minutes']:g} minutes, seed {training['seed']} |",
            f"| started from | {start.get('name') or 'random weights'} |",
            f"| intensities | {training['normalization']} to [0, 1] |",
            "| versions | "
            + ", ".join(f"{key} {value}" for key, value in training["versions"].items())
            + " |",
        ]
    for what, scores in card.scores.items():
        values = ", ".join(f"{key} {value:g}" for key, value in scores.items())
        lines.append(f"| scores, {what} | {values} |")
    if training:
        lines += ["", "## Volumes", "", "| file | SHA-256 | |", "|---|---|---|"]
        for key, use in (("files_sha256", "training"), ("validation_sha256", "validation")):
            lines += [f"| {name} | `{digest}` | {use} |" for name, digest in training[key].items()]
    return "\n".join([*lines, ""])


def _what(card: Card | BaselineCard) -> str:
    if isinstance(card, Card):
        return f"{card.config.encoder} encoder, {card.config.decoder} decoder"
    scale = " × ".join(f"{k:g}" for k in card.config.scale[::-1])
    return f"Baseline {card.config.network}, for scale {scale} alone"


def _use(card: Card | BaselineCard, name: str) -> str:
    if isinstance(card, Card):
        return f"`napari-arssr upsample --weights {name}`"
    return f"`napari-arssr evaluate … --methods {name}`"
