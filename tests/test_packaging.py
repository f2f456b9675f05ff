"""What is installed, what importing it costs, and what the wheel carries."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import nibabel as nib
import npe2
import pytest
import yaml
from nibabel.testing import data_path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "napari_arssr"

# Imports each module named on the command line and prints the top-level packages then loaded.
PROBE = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""

# Prints where the package lies, and how many of each thing it contributes to napari.
CONTRIBUTIONS = """
import json, npe2, napari_arssr
manager = npe2.PluginManager.instance()
manager.discover()
found = manager.get_manifest("napari-arssr").contributions
parts = found.readers, found.writers, found.sample_data, found.widgets
print(json.dumps([napari_arssr.__file__, *map(len, parts)]))
"""


def output_of(*command: str | Path) -> str:
    """What a process prints, with its errors shown if it fails."""
    run = subprocess.run(command, capture_output=True, check=False, encoding="utf-8")
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    return run.stdout


def loaded_after_importing(*modules: str) -> set[str]:
    """Top-level packages in ``sys.modules`` of a fresh interpreter that imported ``modules``."""
    return set(json.loads(output_of(sys.executable, "-c", PROBE, *modules)))


def public_modules() -> list[str]:
    """Every module that runs without napari: no part of its name starts with an underscore."""
    paths = [path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py")]
    names = [path.parts[:-1] if path.name == "__init__" else path.parts for path in paths]
    return sorted(
        ".".join(parts) for parts in names if not any(part.startswith("_") for part in parts)
    )


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the working tree with what is installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    output_of(sys.executable, "-m", "build", "--no-isolation", "--wheel", "-o", folder, ROOT)
    return next(folder.glob("*.whl"))


def test_every_module_but_the_napari_side_loads_without_napari_and_qt() -> None:
    modules = public_modules()
    assert {"napari_arssr", "napari_arssr.volume", "napari_arssr.models"} <= set(modules)
    loaded = loaded_after_importing(*modules)
    assert "napari_arssr" in loaded
    unwanted = {"napari", "npe2", "magicgui", "qtpy", "PyQt5", "PyQt6", "PySide2", "PySide6"}
    assert not unwanted & loaded


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = loaded_after_importing("napari_arssr")
    assert "napari_arssr" in loaded
    assert not {"torch", "napari", "nibabel", "scipy", "numpy", "skimage", "pooch"} & loaded


def test_the_help_of_the_command_line_does_not_load_torch() -> None:
    script = """
import sys
from napari_arssr.cli import main
try:
    status = main(["--help"])
except SystemExit as end:
    status = end.code
print("heavy:", sorted({"torch", "napari", "scipy", "nibabel"} & set(sys.modules)))
sys.exit(status)
"""
    *help_text, heavy = output_of(sys.executable, "-c", script).splitlines()
    assert any("upsample" in line for line in help_text)
    assert heavy == "heavy: []"


def test_the_console_script_runs_the_command_line() -> None:
    (script,) = entry_points(group="console_scripts", name="napari-arssr")
    assert script.value == "napari_arssr.__main__:main"
    assert "upsample" in output_of(Path(sys.executable).with_name("napari-arssr"), "--help")


def test_lazy_names_are_the_real_ones() -> None:
    import napari_arssr
    from napari_arssr.degradation import ScannerModel
    from napari_arssr.field import Field
    from napari_arssr.io import read, write
    from napari_arssr.upsampling import encode, upsample
    from napari_arssr.volume import Box, Grid, Volume

    real = {
        "Box": Box,
        "Field": Field,
        "Grid": Grid,
        "ScannerModel": ScannerModel,
        "Volume": Volume,
        "encode": encode,
        "read": read,
        "upsample": upsample,
        "write": write,
    }
    assert {name: getattr(napari_arssr, name) for name in real} == real
    assert set(napari_arssr.__all__) == {*real, "__version__"}
    assert set(napari_arssr.__all__) <= set(dir(napari_arssr))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = napari_arssr.nothing


def test_the_version_is_the_same_everywhere(project: dict[str, object]) -> None:
    import napari_arssr

    version = project["version"]
    assert napari_arssr.__version__ == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    # Before a release the newest section is "Unreleased" and names the version to come.
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.split(r"^## ", changelog, flags=re.MULTILINE)[1]
    assert newest.startswith((f"[{version}]", "[Unreleased]"))
    assert str(version) in newest


def test_the_citation_names_both_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert [paper["doi"] for paper in citation["references"]] == [
        "10.1109/JBHI.2022.3223106",
        "10.1007/978-3-030-87231-1_7",
    ]


def test_qt_comes_only_with_the_app(project: dict[str, object]) -> None:
    dependencies = project["dependencies"]
    assert isinstance(dependencies, list)
    assert "napari>=0.9" in dependencies
    assert not [name for name in dependencies if re.search(r"pyqt|pyside|\[", name, re.IGNORECASE)]
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    assert extras["app"] == ["napari[pyqt6]>=0.9"]


def test_napari_finds_a_valid_manifest() -> None:
    manifest = npe2.PluginManifest.from_distribution("napari-arssr")
    manifest.validate_imports()
    assert manifest.name == "napari-arssr"
    readers = manifest.contributions.readers
    assert readers
    assert {"*.nii", "*.nii.gz", "*.img", "*.hdr"} == set(readers[0].filename_patterns)


def test_the_manifest_at_the_root_is_a_link_to_the_one_in_the_package() -> None:
    link = ROOT / "napari.yaml"
    assert link.is_symlink()
    assert link.samefile(PACKAGE / "napari.yaml")
    assert not link.readlink().is_absolute()


def test_the_wheel_carries_manifest_types_and_weights_and_stays_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {item.filename: item.file_size for item in archive.infolist()}
    assert {"napari_arssr/napari.yaml", "napari_arssr/py.typed"} <= set(sizes)
    weights = {name: size for name, size in sizes.items() if name.endswith(".safetensors")}
    assert "napari_arssr/bundled/default.safetensors" in weights
    assert sum(weights.values()) <= 6_000_000
    assert wheel.stat().st_size < 6_500_000
    # The package and its metadata, and nothing else of the repository.
    assert {name.partition("/")[0] for name in sizes} == {
        "napari_arssr",
        "napari_arssr-0.1.0.dist-info",
    }
    expected = {str(path.relative_to(PACKAGE.parent)) for path in PACKAGE.rglob("*.py")}
    assert expected <= {str(Path(name)) for name in sizes}


def test_the_wheel_installed_in_a_fresh_environment_has_all_it_needs(
    wheel: Path, tmp_path: Path
) -> None:
    python = fresh_environment(tmp_path / "environment", wheel)
    place, *counts = json.loads(output_of(python, "-c", CONTRIBUTIONS))
    assert Path(place).is_relative_to(tmp_path)
    assert counts == [1, 8, 5, 2]
    scripts = {path.stem for path in python.parent.iterdir()}
    assert {"napari-arssr", "napari-arssr-app"} <= scripts
    scan, out = Path(data_path) / "example4d.nii.gz", tmp_path / "out.nii.gz"
    box = ["--frame", "0", "--scale", "1.5", "--box", "50:58,40:48,10:16", "--quiet"]
    output_of(python.parent / "napari-arssr", "upsample", scan, out, *box)
    assert nib.load(out).shape == (12, 12, 9)


def fresh_environment(folder: Path, wheel: Path) -> Path:
    """The Python of a new virtual environment that holds the wheel.

    What the wheel depends on is taken from this interpreter's environment; of this project
    itself, which is installed there from the working tree, nothing is.
    """
    venv.create(folder, with_pip=False)
    python = next(path for path in (folder / "bin", folder / "Scripts") if path.is_dir()) / "python"
    packages = output_of(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    here = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (Path(packages.strip()) / "dependencies.pth").write_text("\n".join(here), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    output_of(*pip, "--no-index", "--ignore-installed", wheel)
    return python


def test_the_constraints_pin_every_version_and_nothing_else(project: dict[str, object]) -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    # No local tags (+cpu), addresses or editable entries: an index elsewhere has none of them.
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    pinned = {normal(line.partition("==")[0]) for line in lines}
    assert "torch==2.13.0" in lines

    extras = project["optional-dependencies"]
    dependencies = project["dependencies"]
    assert isinstance(extras, dict)
    assert isinstance(dependencies, list)
    wanted = [*dependencies, *(name for extra in extras.values() for name in extra)]
    names = {normal(re.split(r"[\[>=<~!; ]", line)[0]) for line in wanted}
    # antspyx wants an older NumPy than all else here is tested with.
    assert names - pinned == {"napari-arssr", "antspyx"}


def test_no_tracked_file_names_a_place_on_one_machine() -> None:
    files = tracked_files()
    assert Path("pyproject.toml") in files
    # Spelt in pieces, so that this file passes too.
    forbidden = re.compile(
        rb"(?<![\w.])(?:/wo"
        + rb"rk/|/ro"
        + rb"ot/\.|/ho"
        + rb"me/\w|/Us"
        + rb"ers/\w|/o"
        + rb"pt/(?:pypi|wheels))"
        rb"|file"
        + rb"://|pypi\.o"
        + rb"rg/simple|files\.python"
        + rb"hosted|download\.pyto"
        + rb"rch\.org/whl"
    )
    found = {
        str(path): sorted({hit.decode() for hit in forbidden.findall((ROOT / path).read_bytes())})
        for path in files
        if path.suffix not in {".safetensors", ".npy", ".png", ".gif"}
    }
    assert {path: hits for path, hits in found.items() if hits} == {}


def tracked_files() -> list[Path]:
    """Files git tracks or would track; in an unpacked source archive, all there are."""
    git = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if git.returncode == 0:
        files = [Path(name) for name in git.stdout.decode().split("\0") if name]
    else:
        hidden = re.compile(r"\.(?:venv|git|\w+_cache|hypothesis)|__pycache__|site|build|dist")
        files = [
            path.relative_to(ROOT)
            for path in ROOT.rglob("*")
            if not any(hidden.fullmatch(part) for part in path.relative_to(ROOT).parts)
        ]
    return sorted(path for path in files if (ROOT / path).is_file())


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
