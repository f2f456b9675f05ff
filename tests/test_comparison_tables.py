"""What the comparison's pages say is what their rows give."""

from pathlib import Path

from napari_arssr.evaluation.rows import read_rows
from napari_arssr.evaluation.tables import groups, tables

DOCS = Path(__file__).parents[1] / "docs"


def made_of(name: str) -> str:
    found = groups(read_rows(DOCS / name))
    return "\n".join(table.markdown() for group in found for table in tables(group))


def test_all_tables_of_the_comparison_are_made_of_the_rows_beside_them():
    page = (DOCS / "comparison-tables.md").read_text("utf-8")
    assert made_of("comparison.csv") in page
    assert made_of("dice.csv") in page


def test_every_line_of_a_table_on_the_comparisons_page_is_one_of_theirs():
    known = {*made_of("comparison.csv").splitlines(), *made_of("dice.csv").splitlines()}
    page = (DOCS / "comparison.md").read_text("utf-8")
    shown = [line for line in page.splitlines() if line.startswith("|") and "±" in line]
    assert len(shown) > 20
    assert set(shown) <= known
