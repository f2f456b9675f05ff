"""Checkpoints of plain values: whole after any accident, and nothing in them is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from napari_arssr.errors import FileError
from napari_arssr.files import write_whole

__all__ = ["LAST", "RUN_KEY", "PlainCheckpointIO", "read_checkpoint"]

LAST = "last.ckpt"
"""The checkpoint that a run goes on from."""

RUN_KEY = "napari-arssr"
"""Where a checkpoint holds what is ours: settings, volumes, counters, scores."""


class PlainCheckpointIO(CheckpointIO):
    """How Lightning writes and reads checkpoints here.

    Written beside their name, flushed to the disk and renamed. Opened with ``weights_only``:
    tensors, numbers, text, lists and dictionaries, and nothing else.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises
        ------
        FileError
            If it cannot be written; the file that was there stays.
        """
        # Where a run stands is counted by ours, in steps. Lightning's own counters start anew
        # with each session, so that they cannot disagree.
        kept = {name: value for name, value in checkpoint.items() if name != "loops"}
        write_whole(Path(path), lambda opened: torch.save(kept, opened))

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """All that a checkpoint holds, on the CPU.

    Raises
    ------
    FileError
        If there is none, it is broken, or it is not one of ours.
    """
    if not path.is_file():
        raise FileError(f"{path}: there is no checkpoint to resume from.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many kinds for a broken archive, with advice of its own
        state = None
    if not isinstance(state, dict) or not isinstance(state.get(RUN_KEY), dict):
        raise FileError(
            f"{path}: the checkpoint cannot be read: it is cut short, damaged, or another "
            "program's; nothing in it was run."
        )
    checkpoint: dict[str, Any] = state
    return checkpoint
