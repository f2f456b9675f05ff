"""Files from the network: verified, kept whole, and asked for over https alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urljoin, urlsplit

from napari_arssr.errors import Cancelled
from napari_arssr.files import sha256_of, whole_file
from napari_arssr.watching import Stop

__all__ = ["NotFetched", "Progress", "RemoteFile", "Stop", "fetch", "git_blob_id", "is_whole"]

Progress = Callable[[int, int | None], None]
"""Told the bytes received and the bytes in all, None where the server does not say."""

# 64 KiB, so that a cancel is felt and progress moves on a slow line too; pooch's own 1 KiB
# would cost more than the transfer on a fast one.
_CHUNK = 1 << 16
# Seconds to connect, and between two packets.
_TIMEOUT = (10, 30)


@dataclass(frozen=True)
class RemoteFile:
    """A file to download.

    Parameters
    ----------
    address : str
        https.
    filename : str
        What it is called here.
    digest : str
        ``"sha256:…"``, or ``"gitblob:…"`` for the name that git gives a file by its content;
        hexadecimal.
    allow_http : bool
        For a server on this machine; otherwise a plain-http address is refused, and so is a
        redirect to one, before anything is sent there.
    """

    address: str
    filename: str
    digest: str
    allow_http: bool = False


class NotFetched(Exception):
    """Why a download failed, in a few words.

    Attributes
    ----------
    removed : bool
        Whether there was a file under its name, which was another and was removed.
    """

    removed = False


def fetch(
    remote: RemoteFile,
    folder: Path,
    *,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Path:
    """The verified file in a folder, downloaded if it is not there yet.

    Parameters
    ----------
    remote : RemoteFile
    folder : Path
        Made if need be. A file there under the name that is not the right one is removed.
    progress : callable, optional
    stop : callable, optional
        Asked between chunks; True ends the download and leaves nothing behind.

    Raises
    ------
    NotFetched
        If the file cannot be downloaded, or is not the one it should be.
    OSError
        If it cannot be kept in the folder.
    Cancelled
        If ``stop()`` was True.
    """
    target = folder / remote.filename
    removed = False
    if target.exists():
        if is_whole(target, remote):
            return target
        target.unlink()
        removed = True
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with whole_file(target) as partial:
            with partial.open("wb") as opened:
                _download(remote, opened, progress, stop)
            _check(partial, remote)
    except NotFetched as failure:
        failure.removed = removed
        raise
    return target


def is_whole(path: Path, remote: RemoteFile) -> bool:
    """Whether a file is the one that it should be; raises OSError if it cannot be read."""
    return _digest(path, remote) == remote.digest


def _check(path: Path, remote: RemoteFile) -> None:
    found = _digest(path, remote)
    if found != remote.digest:
        raise NotFetched(
            f"what came is not the published file ({found} instead of {remote.digest}) and was "
            "thrown away"
        )


def _digest(path: Path, remote: RemoteFile) -> str:
    """Digest of a file, by the algorithm of what it is to be."""
    if remote.digest.startswith("gitblob:"):
        return f"gitblob:{git_blob_id(path)}"
    return f"sha256:{sha256_of(path)}"


def git_blob_id(path: str | os.PathLike[str]) -> str:
    """The id git gives a file: SHA-1 of "blob", size, a zero byte and the content, in hex."""
    with Path(path).open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        # SHA-1 is git's choice. Replacing a given file takes a second preimage, which nobody
        # can make; "not for security" lets machines in FIPS mode compute it.
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class _Sink:
    """What pooch writes to: passes bytes on, counts and reports them, stops when asked."""

    def __init__(self, file: IO[bytes], progress: Progress | None, stop: Stop | None) -> None:
        self._file = file
        self._progress = progress
        self._stop = stop
        self._done = 0
        self.total: int | None = None

    def check(self) -> None:
        if self._stop is not None and self._stop():
            raise Cancelled("The download was cancelled.")

    def write(self, chunk: bytes) -> None:
        self.check()
        self._file.write(chunk)
        self._done += len(chunk)
        if self._progress is not None:
            self._progress(self._done, self.total)

    def flush(self) -> None:
        """Pooch flushes every chunk; closing the file does it once."""


def _download(
    remote: RemoteFile, file: IO[bytes], progress: Progress | None, stop: Stop | None
) -> None:
    """Stream an address into a file.

    Raises
    ------
    NotFetched
        If the address is refused, cannot be reached, or the connection breaks off.
    Cancelled
        If ``stop()`` was True.
    OSError
        If the file cannot be written.
    """
    import pooch
    import requests

    sink = _Sink(file, progress, stop)
    sink.check()
    allowed = {"https", "http"} if remote.allow_http else {"https"}

    def refuse_unless_secure(address: str) -> None:
        if urlsplit(address).scheme not in allowed:
            raise NotFetched(f"{address} is not an https address and was not asked")

    def inspect(response: requests.Response, **_: object) -> None:
        """Called for every answer, and before a redirect is followed."""
        sink.check()
        if response.is_redirect:
            refuse_unless_secure(urljoin(response.url, response.headers["location"]))
            return
        length = response.headers.get("content-length", "")
        if length.isdecimal() and "content-encoding" not in response.headers:
            sink.total = int(length)

    refuse_unless_secure(remote.address)
    downloader = pooch.HTTPDownloader(
        chunk_size=_CHUNK,
        timeout=_TIMEOUT,
        hooks={"response": inspect},
        headers={"Accept-Encoding": "identity"},
    )
    try:
        downloader(remote.address, sink, None)
    except requests.RequestException as error:
        host = urlsplit(remote.address).hostname or remote.address
        raise NotFetched(_reason(error, host)) from None


def _reason(error: Exception, host: str) -> str:
    """A network error in a few words; ``requests`` gives a paragraph."""
    from requests import exceptions

    if isinstance(error, exceptions.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if "Read timed out" in str(error):  # while the content came; not a Timeout to requests
        return f"{host} fell silent"
    kinds = [  # the special ones are kinds of the general ones, so the order counts
        (exceptions.ProxyError, "the proxy did not let it through"),
        (exceptions.SSLError, f"no secure connection to {host} could be made"),
        (exceptions.Timeout, f"{host} did not answer in time"),
        (exceptions.ChunkedEncodingError, "the connection broke off"),
        (exceptions.ConnectionError, f"there is no connection to {host}"),
    ]
    return next((text for kind, text in kinds if isinstance(error, kind)), type(error).__name__)
