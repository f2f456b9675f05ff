"""Sets of weights: the registry, downloads that go well and badly, names and paths."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
import torch
import urllib3
from tiny import TINY

from napari_arssr import download, weights
from napari_arssr.errors import Cancelled, FileError, UsageError
from napari_arssr.models import Card, ModelConfig, build, save
from napari_arssr.weights import REGISTRY, Weights, fetch_record

NAMES = ["default", "arssr-rdn", "arssr-rescnn", "arssr-srresnet"]
PUBLISHED = NAMES[1:]
# Half a megabyte, so that it comes in several chunks.
CONTENT = bytes(range(256)) * 2000
SHAPES = Path(__file__).parent / "conformance" / "state_dict_shapes.json"

CARD = Card(
    config=TINY,
    name="tiny",
    licence="CC0-1.0",
    paper="a paper",
    training_data="phantoms",
    bfloat16=True,
    scores={"phantoms": {"2": {"PSNR": 31.5}}},
)


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\x00" % len(content) + content).hexdigest()


def one_sentence(error: BaseException) -> str:
    message = str(error)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no proxy between a test and its server."""
    path = tmp_path / "cache"
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(path))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return path


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny network in the place of the bundled one, its checksum beside it."""
    place = tmp_path / "bundled"
    place.mkdir()
    path = place / "default.safetensors"
    torch.manual_seed(0)
    save(path, build(TINY), CARD, torch.float16)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (place / "default.safetensors.sha256").write_text(f"{digest}  default.safetensors\n")
    monkeypatch.setattr(weights, "_bundled_folder", lambda: place)
    return path


# A server


@dataclass
class Server:
    """An HTTP server on this machine that can misbehave; ``asked`` are the paths it was sent."""

    address: str
    asked: list[str] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)

    def record(self, path: str, content: bytes = CONTENT) -> Weights:
        """The published RDN's record, to be fetched here."""
        return replace(
            REGISTRY["arssr-rdn"],
            source=f"{self.address}/{path}",
            digest=f"gitblob:{blob_id(content)}",
        )


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Stay quiet."""

        def do_GET(self) -> None:
            described.asked.append(self.path)
            if self.path == "/missing":
                self.send_error(404)
                return
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/whole")
                self.end_headers()
                return
            content = CONTENT[::-1] if self.path == "/wrong" else CONTENT
            self.send_response(200)
            if self.path != "/unsized":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.path in ("/broken-off", "/slow"):
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                if self.path == "/slow":
                    described.go_on.wait(20)
                    self.close_connection = True
                return
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        described = Server(f"http://127.0.0.1:{listening.server_port}")
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield described
        described.go_on.set()
        listening.shutdown()
        thread.join()


def fetch_here(record: Weights, folder: Path, **options: object) -> Path:
    return fetch_record(record, folder, allow_http=True, **options)


# The registry


def test_importing_the_registry_loads_nothing_heavy() -> None:
    code = (
        "import sys, napari_arssr.weights as w; w.REGISTRY['default']; "
        "print({'torch', 'pooch', 'requests', 'numpy', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_set_says_what_it_is() -> None:
    assert list(REGISTRY) == NAMES
    for name, record in REGISTRY.items():
        assert record.name == name
        assert record.title
        assert record.summary
        assert record.licence
        json.dumps(record.to_dict())
        hash(record)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sets_come_from_their_authors_at_a_pinned_commit(name: str) -> None:
    record = REGISTRY[name]
    assert record.source == (
        "https://raw.githubusercontent.com/iwuqing/ArSSR/7e10fe0117efda7091d7ecda45c34a7202439642/"
        f"pre_trained_models/{record.filename}"
    )
    algorithm, _, value = record.digest.partition(":")
    assert algorithm == "gitblob"
    assert len(value) == 40
    assert int(value, 16)
    assert record.licence == "none stated by the authors"
    assert "10.1109/JBHI.2022.3223106" in record.paper
    assert "HCP-1200" in record.trained_on
    assert record.normalization == "minmax"
    assert not record.bfloat16
    assert not record.bundled


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_published_sets_are_those_of_their_tensors(name: str) -> None:
    record = REGISTRY[name]
    shapes = json.loads(SHAPES.read_text())[record.filename[len("ArSSR_") : -len(".pkl")]]
    assert record.parameters == sum(math.prod(shape) for _, shape in shapes)
    assert record.size is None  # stated by nobody
    assert record.approximate_size == 4 * record.parameters


def test_scores_of_published_sets_are_those_of_the_paper() -> None:
    (table,) = REGISTRY["arssr-rdn"].scores.values()
    assert list(table) == ["2", "2.5", "3", "3.5", "4"]
    assert table["2"] == {"PSNR": 36.55, "SSIM": 0.9700, "LPIPS": 0.0549}
    (table,) = REGISTRY["arssr-rescnn"].scores.values()
    assert table["4"] == {"PSNR": 32.18, "SSIM": 0.9240, "LPIPS": 0.1187}
    assert REGISTRY["arssr-srresnet"].scores == {}  # the paper's table has no row for it


@pytest.mark.parametrize("content", [b"", b"hello\n", CONTENT])
def test_git_blob_id_is_gits(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert download.git_blob_id(path) == blob_id(content)


def test_git_blob_id_of_a_known_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"hello\n")
    # echo hello | git hash-object --stdin
    assert download.git_blob_id(path) == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_the_cache_moves_with_an_environment_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert weights.cache_folder() == tmp_path / "cache"
    monkeypatch.setenv(weights.CACHE_VARIABLE, "~/elsewhere")
    assert weights.cache_folder() == Path.home() / "elsewhere"
    for unset in (True, False):
        if unset:
            monkeypatch.delenv(weights.CACHE_VARIABLE)
        else:
            monkeypatch.setenv(weights.CACHE_VARIABLE, "")
        assert weights.cache_folder().name == "napari-arssr"


# Downloads


def test_a_download_is_verified_and_kept(server: Server, folder: Path) -> None:
    record = server.record("whole")
    path = fetch_here(record, folder)
    assert path == folder / "ArSSR_RDN.pkl"
    assert path.read_bytes() == CONTENT
    assert fetch_here(record, folder) == path
    assert server.asked == ["/whole"]
    assert list(folder.iterdir()) == [path]


def test_a_file_put_into_the_cache_by_hand_is_taken(server: Server, folder: Path) -> None:
    folder.mkdir()
    path = folder / "ArSSR_RDN.pkl"
    path.write_bytes(CONTENT)
    assert fetch_here(server.record("whole"), folder) == path
    assert server.asked == []


def test_a_redirect_is_followed(server: Server, folder: Path) -> None:
    assert fetch_here(server.record("moved"), folder).read_bytes() == CONTENT
    assert server.asked == ["/moved", "/whole"]


def test_progress_counts_up_to_the_whole(server: Server, folder: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    fetch_here(
        server.record("whole"), folder, progress=lambda done, total: calls.append((done, total))
    )
    done = [done for done, _ in calls]
    assert len(done) > 3
    assert done == sorted(done)
    assert done[-1] == len(CONTENT)
    assert {total for _, total in calls} == {len(CONTENT)}


def test_progress_without_a_stated_size_says_so(server: Server, folder: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    fetch_here(
        server.record("unsized"), folder, progress=lambda done, total: calls.append((done, total))
    )
    assert calls[-1] == (len(CONTENT), None)


def check_way_out(message: str, record: Weights, folder: Path) -> None:
    """It says what to download, from where, where to put it, and what to do instead."""
    assert record.name in message
    assert record.source in message
    assert str(folder / record.filename) in message
    assert "your own copy" in message


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("wrong", f"gitblob:{blob_id(CONTENT[::-1])} instead of gitblob:{blob_id(CONTENT)}"),
        ("broken-off", "the connection broke off"),
        ("missing", "the server answered 404 Not Found"),
    ],
)
def test_a_bad_download_is_refused_and_leaves_nothing(
    server: Server, folder: Path, path: str, reason: str
) -> None:
    record = server.record(path)
    with pytest.raises(FileError) as caught:
        fetch_here(record, folder)
    message = one_sentence(caught.value)
    assert reason in message
    check_way_out(message, record, folder)
    assert list(folder.iterdir()) == []


def test_a_broken_file_in_the_cache_is_replaced(server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / "ArSSR_RDN.pkl").write_bytes(CONTENT[:-1])
    assert fetch_here(server.record("whole"), folder).read_bytes() == CONTENT


def test_a_broken_file_in_the_cache_is_removed_even_if_no_other_comes(
    server: Server, folder: Path
) -> None:
    folder.mkdir()
    (folder / "ArSSR_RDN.pkl").write_bytes(b"broken")
    with pytest.raises(FileError, match="the file in the cache was broken and was removed"):
        fetch_here(server.record("missing"), folder)
    assert list(folder.iterdir()) == []


def test_a_slow_download_is_cancelled_between_chunks(server: Server, folder: Path) -> None:
    received = 0

    def progress(done: int, _total: int | None) -> None:
        nonlocal received
        received = done

    with pytest.raises(Cancelled):
        fetch_here(server.record("slow"), folder, progress=progress, stop=lambda: received > 0)
    assert 0 < received < len(CONTENT) // 2
    assert list(folder.iterdir()) == []


def test_a_download_cancelled_before_it_began_asks_nobody(server: Server, folder: Path) -> None:
    with pytest.raises(Cancelled):
        fetch_here(server.record("whole"), folder, stop=lambda: True)
    assert server.asked == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_download_leaves_nothing(
    server: Server, folder: Path, error: type[BaseException]
) -> None:
    def progress(_done: int, _total: int | None) -> None:
        raise error

    with pytest.raises(error):
        fetch_here(server.record("whole"), folder, progress=progress)
    assert list(folder.iterdir()) == []


def test_a_silent_server_is_given_up(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_TIMEOUT", (1, 0.2))
    started = time.monotonic()
    with pytest.raises(FileError, match=r"127\.0\.0\.1 fell silent"):
        fetch_here(server.record("slow"), folder)
    assert time.monotonic() - started < 5
    assert list(folder.iterdir()) == []


def closed_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
    return port


def test_without_a_network_the_way_out_is_named(folder: Path) -> None:
    record = replace(REGISTRY["arssr-rdn"], source=f"https://127.0.0.1:{closed_port()}/x.pkl")
    with pytest.raises(FileError) as caught:
        fetch_record(record, folder)
    message = one_sentence(caught.value)
    assert "there is no connection to 127.0.0.1" in message
    check_way_out(message, record, folder)


def test_behind_a_dead_proxy_the_way_out_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(FileError) as caught:
        weights.fetch("arssr-rescnn")
    message = one_sentence(caught.value)
    assert "the proxy did not let it through" in message
    check_way_out(message, REGISTRY["arssr-rescnn"], folder)
    assert list(folder.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named_with_the_variable_that_moves_it(
    server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "a file"
    folder.write_bytes(b"")
    with pytest.raises(FileError, match=weights.CACHE_VARIABLE) as caught:
        fetch_here(server.record("whole"), folder)
    assert str(folder) in one_sentence(caught.value)
    assert server.asked == []


def test_a_full_disk_is_a_file_error_and_leaves_nothing(server: Server, folder: Path) -> None:
    def progress(_done: int, _total: int | None) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(FileError, match="No space left on device") as caught:
        fetch_here(server.record("whole"), folder, progress=progress)
    assert weights.CACHE_VARIABLE in one_sentence(caught.value)
    assert list(folder.iterdir()) == []


# Only https


@pytest.mark.parametrize("scheme", ["http", "ftp", "file"])
def test_addresses_without_tls_are_refused_before_they_are_asked(
    server: Server, folder: Path, scheme: str
) -> None:
    record = server.record("whole")
    record = replace(record, source=record.source.replace("http", scheme, 1))
    with pytest.raises(FileError, match="is not an https address and was not asked"):
        fetch_record(record, folder)
    assert server.asked == []
    assert list(folder.iterdir()) == []


def test_a_server_that_speaks_no_tls_is_refused(server: Server, folder: Path) -> None:
    record = server.record("whole")
    record = replace(record, source=record.source.replace("http", "https", 1))
    with pytest.raises(FileError, match=r"no secure connection to 127\.0\.0\.1"):
        fetch_record(record, folder)
    assert server.asked == []


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str | bytes]], list[str]]:
    """Answer requests from a table of redirects and contents; returns the addresses asked."""

    def install(table: dict[str, str | bytes]) -> list[str]:
        asked: list[str] = []

        def send(
            _self: object, request: requests.PreparedRequest, **_: object
        ) -> requests.Response:
            asked.append(str(request.url))
            answer = table[str(request.url)]
            response = requests.Response()
            response.status_code = 302 if isinstance(answer, str) else 200
            if isinstance(answer, str):
                response.headers["Location"] = answer
            body = io.BytesIO(b"" if isinstance(answer, str) else answer)
            response.raw = urllib3.HTTPResponse(body, preload_content=False)
            response.url, response.request = str(request.url), request
            return response

        monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
        return asked

    return install


def test_a_redirect_to_plain_http_is_refused_before_it_is_followed(
    folder: Path, answers: Callable[[dict[str, str | bytes]], list[str]]
) -> None:
    record = REGISTRY["arssr-rdn"]
    asked = answers({record.source: "http://mirror.example/x.pkl"})
    with pytest.raises(FileError, match=r"http://mirror.example/x.pkl is not an https address"):
        weights.fetch("arssr-rdn")
    assert asked == [record.source]
    assert list(folder.iterdir()) == []


def test_a_redirect_from_https_to_https_is_followed_and_verified(
    folder: Path, answers: Callable[[dict[str, str | bytes]], list[str]]
) -> None:
    mirror = "https://mirror.example/x.pkl"
    record = replace(REGISTRY["arssr-rdn"], digest=f"gitblob:{blob_id(CONTENT)}")
    asked = answers({record.source: mirror, mirror: CONTENT})
    assert fetch_record(record, folder).read_bytes() == CONTENT
    assert asked == [record.source, mirror]


def test_certificates_are_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def send(_self: object, _request: object, *, verify: object, **_: object) -> None:
        seen.append(verify)
        raise requests.exceptions.SSLError(ssl.SSLCertVerificationError("self-signed"))

    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    with pytest.raises(FileError, match="no secure connection"):
        weights.fetch("arssr-rdn")
    assert seen == [True]
    assert list(folder.iterdir()) == []


# What is here


@pytest.mark.parametrize("name", PUBLISHED)
def test_status_and_verify_of_a_published_set(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = replace(REGISTRY[name], digest=f"gitblob:{blob_id(CONTENT)}")
    monkeypatch.setitem(weights.REGISTRY, name, record)
    assert weights.status(name) == weights.verify(name) == "not downloaded"
    folder.mkdir()
    path = folder / record.filename
    path.write_bytes(CONTENT)
    assert weights.status(name) == weights.verify(name) == "downloaded"
    assert weights.describe(name) == replace(record, size=len(CONTENT))
    path.write_bytes(CONTENT[1:])
    assert weights.verify(name) == "broken"
    assert weights.describe(name).size is None
    assert path.read_bytes() == CONTENT[1:]  # looking removes nothing


def test_status_and_verify_of_the_bundled_set(bundled: Path) -> None:
    assert weights.status("default") == weights.verify("default") == "bundled"
    whole = bundled.read_bytes()
    bundled.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert weights.verify("default") == "broken"
    bundled.unlink()
    assert weights.status("default") == weights.verify("default") == "broken"


def test_a_damaged_bundled_file_is_not_opened(bundled: Path) -> None:
    whole = bundled.read_bytes()
    bundled.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for opened_by in (weights.fetch, weights.load, weights.describe):
        with pytest.raises(FileError, match="reinstall") as caught:
            opened_by("default")
        assert str(bundled) in one_sentence(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_a_bundled_file_without_its_checksum_is_not_opened(
    bundled: Path, content: bytes | None
) -> None:
    checksum = bundled.with_name("default.safetensors.sha256")
    checksum.unlink()
    if content is not None:
        checksum.write_bytes(content)
    with pytest.raises(FileError, match="checksum are missing; reinstall"):
        weights.fetch("default")


def test_the_bundled_set_is_described_by_its_card(bundled: Path) -> None:
    described = weights.describe("default")
    assert described.bundled
    assert described.architecture == "RDN encoder, residual decoder"
    assert described.size == bundled.stat().st_size == described.approximate_size
    assert described.digest == f"sha256:{hashlib.sha256(bundled.read_bytes()).hexdigest()}"
    assert described.parameters == sum(p.numel() for p in build(TINY).parameters())
    assert described.licence == "CC0-1.0"
    assert described.paper == "a paper"
    assert described.trained_on == "phantoms"
    assert described.scores == CARD.scores
    assert described.bfloat16
    assert described.normalization == "percentile"
    assert described.title == REGISTRY["default"].title


def test_what_comes_with_the_package_says_what_was_measured_on_it() -> None:
    gains = weights.describe("default").scores["brains_t1w/val"]
    assert set(gains) >= {"1.5", "2", "3", "4", "1x1x4"}
    assert all(0 < values["gain over cubic"] < values["PSNR"] for values in gains.values())
    # And those are the ones in the documentation.
    card = (Path(__file__).parents[1] / "docs" / "weights.md").read_text(encoding="utf-8")
    assert f"| {gains['3']['PSNR']:.2f} | {gains['3']['gain over cubic']:+.2f} |" in card


# Names and paths


def test_a_name_is_found_before_a_file_of_that_name(
    bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("default").write_bytes(b"mine")
    assert weights.resolve("default") == bundled
    assert weights.resolve("./default").read_bytes() == b"mine"


def test_any_existing_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"anything")
    assert weights.resolve(path) == weights.resolve(str(path)) == path


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("arssr-rnd", "arssr-rdn"),
        ("ArSSR_RDN.pkl", "arssr-rdn"),
        ("models/ArSSR_SRResnet.pkl", "arssr-srresnet"),
        ("ResCNN", "arssr-rescnn"),
        ("Default", "default"),
    ],
)
def test_an_unknown_name_gets_the_known_ones_and_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        weights.resolve(given)
    message = one_sentence(caught.value)
    assert repr(given) in message
    assert ", ".join(NAMES) in message
    assert message.endswith(f"; did you mean {nearest}?")
    assert "no such file" in message


def test_a_name_like_no_other_gets_no_guess(tmp_path: Path) -> None:
    for given in ("zzz", "", str(tmp_path), "weights/zzz.pt"):
        with pytest.raises(UsageError) as caught:
            weights.resolve(given)
        assert "did you mean" not in one_sentence(caught.value)


@pytest.mark.parametrize(
    "function", [weights.fetch, weights.status, weights.verify, weights.describe]
)
def test_only_registered_names_are_asked_about(function: Callable[[str], object]) -> None:
    with pytest.raises(UsageError, match="did you mean arssr-rdn"):
        function("arsr-rdn")


# Networks


def test_the_bundled_network_loads_with_what_it_needs(bundled: Path) -> None:
    loaded = weights.load("default")
    assert loaded.model.config == TINY
    assert loaded.card == CARD
    assert loaded.name == "default"
    assert loaded.normalization == "percentile"
    assert loaded.bfloat16
    assert bundled.exists()


def test_a_published_network_loads_by_name_with_the_registrys_card(
    server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig("ResCNN", feature_dim=5, decoder_depth=4, decoder_width=7, features=4)
    path = tmp_path / "made.pkl"
    torch.save(build(config).state_dict(), path)
    record = server.record("whole", path.read_bytes())
    record = replace(record, name="arssr-rdn")
    monkeypatch.setitem(weights.REGISTRY, "arssr-rdn", record)
    folder.mkdir()
    shutil.copy(path, folder / record.filename)
    loaded = weights.load("arssr-rdn")
    assert server.asked == []
    assert loaded.name == loaded.card.name == "arssr-rdn"
    assert loaded.model.config.encoder == "ResCNN"
    assert loaded.card.licence == "none stated by the authors"
    assert loaded.card.paper == record.paper
    assert loaded.card.training_data == record.trained_on
    assert loaded.card.scores == record.scores
    assert loaded.normalization == "minmax"
    assert not loaded.bfloat16


def test_local_networks_are_normalised_as_they_were_trained(tmp_path: Path) -> None:
    published = ModelConfig("RDN", "published", 5, 4, 7, features=4, growth=3, blocks=2, layers=2)
    checkpoint = tmp_path / "published.pkl"
    torch.save(build(published).state_dict(), checkpoint)
    assert weights.load(checkpoint).normalization == "minmax"
    # The same kind of network, trained with this package.
    trained = tmp_path / "trained.safetensors"
    card = replace(CARD, config=published, training={"seed": 0})
    save(trained, build(published), card, torch.float32)
    assert weights.load(trained).normalization == "percentile"
    recorded = replace(card, training={"seed": 0, "normalization": "minmax"})
    save(trained, build(published), recorded, torch.float32)
    assert weights.load(trained).normalization == "minmax"
    ours = tmp_path / "ours.safetensors"
    save(ours, build(TINY), CARD, torch.float32)
    loaded = weights.load(str(ours))
    assert loaded.normalization == "percentile"
    assert loaded.name == "ours.safetensors"
    assert loaded.bfloat16


def test_a_file_that_is_no_network_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not weights")
    with pytest.raises(FileError) as caught:
        weights.load(path)
    assert str(path) in one_sentence(caught.value)
