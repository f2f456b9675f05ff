"""What napari learns of the plugin: its manifest, its menu entry, its page in Preferences."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import npe2
import pytest
from napari.settings import get_plugin_settings
from napari.utils.notifications import notification_manager
from qtpy.QtWidgets import QApplication, QMainWindow

from napari_arssr import weights
from napari_arssr._preferences import Preferences, _Set, preferences, use_cache_folder
from napari_arssr.devices import choose_device, choose_precision

PLUGIN = "napari-arssr"


@pytest.fixture(scope="module")
def manifest() -> npe2.PluginManifest:
    return npe2.PluginManifest.from_distribution(PLUGIN)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The plugin's page in Preferences, as the user finds it and left as it was."""
    npe2.PluginManager.instance().discover()
    page = get_plugin_settings(PLUGIN).upsampling
    before = page.model_dump()
    yield page
    for name, value in before.items():
        setattr(page, name, value)


def test_npe2_finds_nothing_wrong_with_it() -> None:
    path = Path(__file__).parent.parent / "napari.yaml"
    run = subprocess.run(
        [Path(sys.executable).with_name("npe2"), "validate", "--imports", path],
        capture_output=True,
        check=False,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "valid!" in run.stdout


def test_every_command_is_there_and_every_contribution_has_one(
    manifest: npe2.PluginManifest,
) -> None:
    contributions = manifest.contributions
    commands = {command.id: command.python_name for command in contributions.commands}
    used = [
        item.command
        for item in [
            *contributions.readers,
            *contributions.writers,
            *contributions.sample_data,
            *contributions.widgets,
            *(item for menu in contributions.menus.values() for item in menu),
        ]
    ]
    assert set(used) == set(commands)
    for name in commands.values():
        assert callable(npe2.manifest.utils.import_python_name(name))


@pytest.mark.parametrize(
    ("layers", "name", "command"),
    [
        (["image"], "a.nii", "write_image"),
        (["image"], "a.nii.gz", "write_image"),
        (["image"], "A.NII.GZ", "write_image"),
        (["image"], "a.hdr", "write_image"),
        (["labels"], "a.nii.gz", "write_labels"),
        (["image"], "a.tif", "write_image_tiff"),
        (["labels"], "a.tiff", "write_labels_tiff"),
        (["image"], "a", "write_image"),
        (["image", "image"], "a.nii", None),
        (["image", "image"], "a", "write_folder"),
        (["labels", "image"], "a", "write_folder"),
        (["image", "points"], "a", "write_folder"),
        (["points", "points"], "a", None),
        (["points"], "a.nii", None),
        (["image"], "a.png", None),
    ],
)
def test_each_layer_has_its_writer(layers: list[str], name: str, command: str | None) -> None:
    manager = npe2.PluginManager.instance()
    manager.discover()
    writer, path = manager.get_writer(name, layers, plugin_name=PLUGIN)
    assert (writer and writer.command) == (command and f"{PLUGIN}.{command}")
    assert path.startswith(name)


@pytest.mark.parametrize("name", ["a.nii", "a.NII.GZ", "sub.01.nii.gz", "a.img", "a.hdr"])
def test_napari_asks_us_about_nifti_names(name: str) -> None:
    manager = npe2.PluginManager.instance()
    manager.discover()
    commands = {reader.command for reader in manager.iter_compatible_readers([name])}
    assert f"{PLUGIN}.get_reader" in commands


@pytest.mark.parametrize("name", ["a.gz", "a.tif", "a.tar.gz", "a.png", "nii"])
def test_napari_does_not_ask_us_about_others(name: str) -> None:
    manager = npe2.PluginManager.instance()
    manager.discover()
    commands = {reader.command for reader in manager.iter_compatible_readers([name])}
    assert f"{PLUGIN}.get_reader" not in commands


def texts(menu: Any, above: str = "") -> Iterator[str]:
    for action in menu.actions():
        here = f"{above}/{action.text().replace('&', '')}"
        yield here
        if action.menu() is not None:
            yield from texts(action.menu(), here)


def test_the_window_offers_the_widget_and_the_samples(
    make_napari_viewer_proxy: Callable[..., Any],
) -> None:
    make_napari_viewer_proxy(show=True)
    (window,) = (
        window
        for window in QApplication.topLevelWidgets()
        if isinstance(window, QMainWindow) and window.isVisible()
    )
    found = set(texts(window.menuBar()))
    assert "/Layers/Transform/Upsample (ArSSR super-resolution)" in found
    assert "/Layers/Transform/Fit stacks (ArSSR super-resolution)" in found
    for name in ("Upsample", "Fit stacks"):
        assert any(text.startswith("/Plugins/") and name in text for text in found)
    samples = "/File/Open Sample/ArSSR super-resolution"
    assert f"{samples}/Brain scan, 2 × 2 × 2.2 mm" in found
    assert f"{samples}/Cells, every fourth plane (download)" in found


# Preferences ---------------------------------------------------------------------------------


def test_what_nobody_changed_is_the_default(page: Any) -> None:
    assert preferences() == Preferences()
    found = preferences()
    assert found.weights in weights.REGISTRY
    device = choose_device(found.device)
    assert choose_precision(found.precision, device, bfloat16_is_safe=False) is not None


def test_what_the_user_set_is_found(page: Any, tmp_path: Path) -> None:
    page.weights = "arssr-rdn"
    page.device = " cpu "
    page.precision = "float32"
    page.memory = 2.5
    page.cache_folder = str(tmp_path)
    assert preferences() == Preferences(
        weights="arssr-rdn",
        device="cpu",
        precision="float32",
        memory=2_500_000_000,
        cache_folder=tmp_path,
    )


def test_what_the_user_emptied_is_the_default(page: Any) -> None:
    page.weights = page.device = page.cache_folder = "  "
    page.memory = 0
    assert preferences() == Preferences()


def test_a_home_folder_may_be_written_as_a_tilde(page: Any) -> None:
    page.cache_folder = "~/weights"
    page.weights = "~/mine.safetensors"
    assert preferences().cache_folder == Path.home() / "weights"
    assert preferences().weights == str(Path.home() / "mine.safetensors")


def test_a_little_memory_is_not_as_much_as_there_is(page: Any) -> None:
    page.memory = 1e-12
    assert preferences().memory == 1


@pytest.mark.parametrize(
    ("name", "value"), [("precision", "float8"), ("memory", -1), ("memory", 16000)]
)
def test_what_cannot_be_is_not_accepted(page: Any, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        setattr(page, name, value)
    assert preferences() == Preferences()


def test_an_older_napari_has_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("napari.settings.get_plugin_settings")
    assert preferences() == Preferences()


def test_a_disabled_plugin_has_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(plugin: str) -> None:
        raise KeyError(plugin)

    monkeypatch.setattr("napari.settings.get_plugin_settings", none)
    assert preferences() == Preferences()


@pytest.mark.parametrize(
    "text", ["upsampling: {precision: float8, memory: much}", "upsampling: [", "upsampling: 5", ""]
)
def test_a_broken_file_of_settings_costs_no_more_than_the_settings(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / f"{PLUGIN}.yaml").write_text(text)
    script = "from napari_arssr._preferences import *; print(preferences() == Preferences())"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "NAPARI_CONFIG": str(tmp_path / "settings.yaml")},
        capture_output=True,
        check=False,
        encoding="utf-8",
    )
    assert run.stdout.strip().endswith("True"), run.stderr


def test_downloads_go_where_the_user_wants_them(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(weights.CACHE_VARIABLE, raising=False)
    monkeypatch.setattr(_Set, "folder", None)
    default = weights.cache_folder()
    for folder in ("one", "two"):
        page.cache_folder = str(tmp_path / folder)
        use_cache_folder()
        assert weights.cache_folder() == tmp_path / folder
    page.cache_folder = ""
    use_cache_folder()
    assert weights.cache_folder() == default


def test_the_environment_has_the_last_word_on_where_downloads_go(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path / "given"))
    monkeypatch.setattr(_Set, "folder", None)
    page.cache_folder = str(tmp_path / "wanted")
    for _ in range(2):
        use_cache_folder()
        assert weights.cache_folder() == tmp_path / "given"


def test_preferences_show_the_page(make_napari_viewer_proxy: Callable[..., Any]) -> None:
    from napari._qt.dialogs.preferences_dialog import PreferencesDialog

    make_napari_viewer_proxy()
    before = len(notification_manager.records)
    dialog = PreferencesDialog()
    try:
        pages = [dialog._list.item(row).text() for row in range(dialog._list.count())]
        assert "ArSSR super-resolution" in pages
    finally:
        dialog.close()
        dialog.deleteLater()
    assert len(notification_manager.records) == before
