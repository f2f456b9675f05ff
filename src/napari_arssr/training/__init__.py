"""Train a network, without a window: ``napari-arssr train``."""

from napari_arssr.training.config import Augmentation, TrainingConfig
from napari_arssr.training.files import train_files
from napari_arssr.training.loop import Progress, TrainingRun

__all__ = ["Augmentation", "Progress", "TrainingConfig", "TrainingRun", "train_files"]
