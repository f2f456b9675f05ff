"""Draw a run's ``log.csv`` for docs/training.md: its loss and its gain over cubic interpolation.

python scripts/training_curves.py RUN/log.csv docs/images
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from napari_arssr.evaluation.charts import Series, line_chart

CURVES = {
    "loss": ("Training loss", "loss, intensities in [0, 1]"),
    "gain_db": ("Held-out pairs", "dB over cubic interpolation"),
}


def main(log: str, folder: str) -> None:
    """Write one picture a column."""
    with Path(log).open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    steps = [float(row["step"]) for row in rows]
    for column, (title, label) in CURVES.items():
        line = Series("one run", steps, [float(row[column]) for row in rows], marked=True)
        picture = line_chart([line], title, "step", label)
        name = f"training-{column.partition('_')[0]}.svg"
        (Path(folder) / name).write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
