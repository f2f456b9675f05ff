"""A server on this machine that has the samples to download, in small."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from napari_arssr import samples

Array = npt.NDArray[Any]


def tiff(data: Array) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, data, photometric="minisblack")
    return file.getvalue()


RANDOM = np.random.default_rng(0)
BRAIN = RANDOM.integers(0, 1000, (5, 120, 500)).astype(np.uint16)  # some hundred kB
CELLS = RANDOM.integers(0, 1000, (9, 2, 60, 70)).astype(np.uint16)


class Server(ThreadingHTTPServer):
    """A server on this machine that has both files, and sends the second half when told to."""

    def __init__(self) -> None:
        self.files = {"/brain.tiff": tiff(BRAIN), "/cells3d.tif": tiff(CELLS)}
        self.asked: list[str] = []
        self.go_on = threading.Event()
        self.go_on.set()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def source(self, source: Any) -> Any:
        """The same sample, to be fetched here."""
        path = f"/{source.filename}"
        digest = hashlib.sha256(self.files[path]).hexdigest()
        return replace(
            source, address=self.address + path, digest=f"sha256:{digest}", allow_http=True
        )


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.files[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.server.go_on.wait(60)
            self.wfile.write(content[len(content) // 2 :])
        except OSError:  # nobody listens any more
            pass


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Server]:
    """Both samples are to be downloaded from here, into an empty cache in ``folder``."""
    monkeypatch.setenv("NAPARI_ARSSR_CACHE", str(folder / "cache"))
    with Server() as listening:
        for name in ("_BRAIN", "_CELLS"):
            monkeypatch.setattr(samples, name, listening.source(getattr(samples, name)))
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        yield listening
        listening.go_on.set()
        listening.shutdown()
        thread.join()
