"""What mkdocs makes by itself: a reference page for each public module, the commands' help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parent.parent
_PACKAGE = _ROOT / "src" / "napari_arssr"
_HELP = re.compile(r"<!-- help: ?(?P<arguments>[a-z ]*?) ?-->")


def _modules() -> list[str]:
    """Every module whose path holds no leading underscore, packages themselves included."""
    modules = []
    for path in sorted(_PACKAGE.rglob("*.py")):
        parts = path.relative_to(_PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if parts and not any(part.startswith("_") for part in parts):
            modules.append(".".join(("napari_arssr", *parts)))
    return sorted(modules)


def _page(module: str) -> str:
    return f"reference/{module.removeprefix('napari_arssr.').replace('.', '_')}.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the reference pages into the navigation, after python.md."""
    assert config.nav is not None
    section = next(entry["Python"] for entry in config.nav if "Python" in entry)
    section.extend({module: _page(module)} for module in _modules())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make the reference pages."""
    for module in _modules():
        content = f"# `{module}`\n\n::: {module}\n"
        files.append(File.generated(config, _page(module), content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace ``<!-- help: upsample -->`` by what ``napari-arssr upsample --help`` prints."""
    return _HELP.sub(lambda match: _help(match["arguments"].split()), markdown)


def _help(arguments: list[str]) -> str:
    script = "import sys; from napari_arssr.cli import main; sys.exit(main())"
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments, "--help"],
        capture_output=True,
        check=False,
        cwd=_ROOT,
        encoding="utf-8",
        env=os.environ | {"COLUMNS": "88", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"},
    )
    if run.returncode:
        raise PluginError(f"napari-arssr {' '.join(arguments)} --help failed:\n{run.stderr}")
    return f"```text\n{run.stdout.replace('usage: -c', 'usage: napari-arssr').rstrip()}\n```"
