import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location(
        "benchmarks_fitting", ROOT / "benchmarks" / "fitting.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_table_in_the_docs_is_made_of_the_rows_beside_it(benchmark):
    rows = benchmark.read(ROOT / "docs" / "fit.csv")
    assert "\n".join(benchmark.lines(rows)) in (ROOT / "docs" / "fit.md").read_text("utf-8")


def test_a_subject_is_its_largest_piece_without_holes_and_specks(benchmark):
    wanted = np.zeros((30, 30, 30), dtype=bool)
    wanted[6:20, 6:20, 6:20] = True
    seen = wanted.copy()
    seen[12, 12, 12] = False
    seen[25, ::2, 3] = True
    seen[22:28, 22:28, 22:28] = True
    found = benchmark.subject(seen)
    assert not found[~wanted].any()
    assert found[12, 12, 12]
    assert found.sum() > 0.8 * wanted.sum()
