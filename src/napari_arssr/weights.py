"""Which weights exist, where they come from, what they are good for.

The bundled set lies in the package. The published sets of ArSSR are fetched on request from
their authors' own address at a pinned commit, verified, and kept in a cache folder; their
authors state no licence, so they are never redistributed. Any local file will do in their place.

A published file is verified by its git blob id, the name git gives a file by its content.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal
from urllib.parse import urljoin, urlsplit

from napari_arssr.errors import Cancelled, FileError, UsageError

if TYPE_CHECKING:
    from napari_arssr.models import ArSSR, Card
    from napari_arssr.normalization import Method

__all__ = [
    "BUNDLED",
    "CACHE_VARIABLE",
    "REGISTRY",
    "Loaded",
    "Progress",
    "Status",
    "Stop",
    "Weights",
    "cache_folder",
    "describe",
    "fetch",
    "fetch_record",
    "git_blob_id",
    "load",
    "resolve",
    "status",
    "verify",
]

CACHE_VARIABLE = "NAPARI_ARSSR_CACHE"
BUNDLED = "bundled"

Status = Literal["bundled", "downloaded", "not downloaded", "broken"]
Progress = Callable[[int, int | None], None]
Stop = Callable[[], bool]

_REPOSITORY = "https://raw.githubusercontent.com/iwuqing/ArSSR"
_COMMIT = "7e10fe0117efda7091d7ecda45c34a7202439642"
_PAPER = (
    "Wu et al., An Arbitrary Scale Super-Resolution Approach for 3D MR Images via Implicit "
    "Neural Representation, IEEE JBHI 27(2), 2023, doi:10.1109/JBHI.2022.3223106"
)
_HCP_TEST = "HCP-1200, 222 test volumes, as reported in the paper"

# 64 KiB, so that a cancel is felt and progress moves on a slow line too; pooch's own 1 KiB
# would cost more than the transfer on a fast one.
_CHUNK = 1 << 16
# Seconds to connect, and between two packets.
_TIMEOUT = (10, 30)


@dataclass(frozen=True)
class Weights:
    """One set of weights.

    Parameters
    ----------
    name : str
        What ``--weights`` takes.
    title, summary : str
        A few words; what the set is good for.
    architecture : str
    parameters : int or None
        Numbers in the network; None if only the file knows (see :func:`describe`).
    source : str
        An https address, or ``"bundled"``.
    filename : str
    digest : str or None
        ``"gitblob:…"`` or ``"sha256:…"``, hexadecimal. None if only the file knows.
    size : int or None
        Bytes; None where nobody has stated it and no file is at hand.
    licence, paper, trained_on : str
    scores : dict
        Data set → scale → metric → value.
    normalization : {"percentile", "minmax", "none"}
        How intensities were brought to [0, 1] in training
        (:meth:`napari_arssr.normalization.Normalizer.fit`).
    bfloat16 : bool
        Whether bfloat16 was measured to move results by less than 0.02 dB.
    """

    name: str
    title: str
    summary: str
    architecture: str
    source: str
    filename: str
    licence: str
    normalization: Method
    parameters: int | None = None
    digest: str | None = None
    size: int | None = None
    paper: str = ""
    trained_on: str = ""
    scores: dict[str, Any] = field(default_factory=dict, hash=False)
    bfloat16: bool = False

    @property
    def bundled(self) -> bool:
        """Whether the set comes with the package."""
        return self.source == BUNDLED

    @property
    def approximate_size(self) -> int | None:
        """Bytes: the size if known, else that of the parameters alone in float32."""
        if self.size is not None or self.parameters is None:
            return self.size
        return 4 * self.parameters

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Loaded:
    """A network ready to run, and what has to be known to run it right.

    Parameters
    ----------
    model : ArSSR
        On the CPU in float32, evaluation mode.
    card : Card
        From the file; for a published set from the registry.
    name : str
        The registered name, or the name of the file.
    normalization : {"percentile", "minmax", "none"}
        How intensities were brought to [0, 1] in training.
    bfloat16 : bool
        Whether bfloat16 was measured to move results by less than 0.02 dB.
    """

    model: ArSSR
    card: Card
    name: str
    normalization: Method
    bfloat16: bool


def _published(
    name: str,
    encoder: str,
    spelling: str,
    *,
    parameters: int,
    blob: str,
    reported: dict[str, tuple[float, float, float]],
) -> Weights:
    by_scale = {
        scale: dict(zip(("PSNR", "SSIM", "LPIPS"), values, strict=True))
        for scale, values in reported.items()
    }
    filename = f"ArSSR_{spelling}.pkl"
    return Weights(
        name=name,
        title=f"ArSSR, {encoder} encoder (published)",
        summary="T1-weighted brain MRI at one scale between 2 and 4 for all axes, as in the paper",
        architecture=f"{encoder} encoder, published decoder",
        parameters=parameters,
        source=f"{_REPOSITORY}/{_COMMIT}/pre_trained_models/{filename}",
        filename=filename,
        digest=f"gitblob:{blob}",
        licence="none stated by the authors",
        paper=_PAPER,
        trained_on="HCP-1200: 6 patches of 40³ from each of 780 volumes, scales 2 to 4",
        scores={_HCP_TEST: by_scale} if by_scale else {},
        normalization="minmax",
    )


REGISTRY: dict[str, Weights] = {
    record.name: record
    for record in (
        Weights(
            name="default",
            title="default (bundled)",
            summary="brain MRI of any contrast, any scale from 1 to 4, each axis its own",
            architecture="RDN encoder, residual decoder",
            source=BUNDLED,
            filename="default.safetensors",
            licence="BSD-3-Clause",
            normalization="percentile",
        ),
        _published(
            "arssr-rdn",
            "RDN",
            "RDN",
            parameters=6_283_460,
            blob="c6c0cd259a237ac80b260a21984809b0f9ba16f2",
            reported={
                "2": (36.55, 0.9700, 0.0549),
                "2.5": (34.57, 0.9538, 0.0715),
                "3": (33.42, 0.9426, 0.0811),
                "3.5": (31.98, 0.9242, 0.1009),
                "4": (31.33, 0.9155, 0.1136),
            },
        ),
        _published(
            "arssr-rescnn",
            "ResCNN",
            "ResCNN",
            parameters=2_579_588,
            blob="ef2a7e86266f7f2a775efe7fb03a3310d510aa1d",
            reported={
                "2": (36.92, 0.9722, 0.0573),
                "2.5": (35.17, 0.9585, 0.0736),
                "3": (34.10, 0.9485, 0.0841),
                "3.5": (32.77, 0.9322, 0.1054),
                "4": (32.18, 0.9240, 0.1187),
            },
        ),
        _published(
            "arssr-srresnet",
            "SRResNet",
            "SRResnet",
            parameters=4_682_052,
            blob="62e4f6965ab2cd5d0ade47952c561bd3723f8bd8",
            reported={},
        ),
    )
}


def cache_folder() -> Path:
    """Where downloads are kept: ``$NAPARI_ARSSR_CACHE``, or the system's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("napari-arssr"))


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


def fetch(name: str, *, progress: Progress | None = None, stop: Stop | None = None) -> Path:
    """The verified file of a registered set, downloaded if it is not here yet.

    Parameters
    ----------
    name : str
        One of :data:`REGISTRY`.
    progress : callable, optional
        Called with the bytes received and the bytes in all (None if the server does not say).
    stop : callable, optional
        Asked between chunks; True ends the download and leaves nothing behind.

    Raises
    ------
    UsageError
        If no set has that name.
    FileError
        If the file cannot be downloaded or written, or is not the one it should be.
    Cancelled
        If ``stop()`` was True.
    """
    record = _record(name)
    if record.bundled:
        return _verified_bundled(record)
    return fetch_record(record, cache_folder(), progress=progress, stop=stop)


def fetch_record(
    record: Weights,
    folder: Path,
    *,
    progress: Progress | None = None,
    stop: Stop | None = None,
    allow_http: bool = False,
) -> Path:
    """:func:`fetch` for any record with an address, into any folder.

    A file under the record's name that is not the right one is removed. ``allow_http`` is for
    a server on this machine; otherwise a plain-http address is refused, and so is a redirect
    to one, before anything is sent there.
    """
    target = folder / record.filename
    removed = False
    try:
        if target.exists():
            if _digest(target, record) == record.digest:
                return target
            target.unlink()
            removed = True
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, partial_name = tempfile.mkstemp(
            dir=folder, prefix=f".{record.filename}.", suffix=".part"
        )
    except OSError as error:
        raise _cache_error(folder, error) from None
    partial = Path(partial_name)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            _download(record.source, opened, progress, stop, allow_http=allow_http)
        _compare(partial, record)
        partial.chmod(0o644)  # mkstemp's files are for their owner only; caches are shared
        partial.replace(target)
    except _NotFetched as failure:
        before = "the file in the cache was broken and was removed, and " if removed else ""
        raise FileError(
            f"{record.name}: {before}{record.source} could not be fetched: {failure}; download "
            f"{record.filename} from there by other means and put it at {target}, or name your "
            "own copy with --weights PATH."
        ) from None
    except OSError as error:
        raise _cache_error(folder, error) from None
    finally:
        partial.unlink(missing_ok=True)
    return target


def status(name: str) -> Status:
    """Whether a set is here, at a glance: no file is opened, so damage is not seen.

    Raises
    ------
    UsageError
        If no set has that name.
    """
    record = _record(name)
    if record.bundled:
        return "bundled" if (_bundled_folder() / record.filename).exists() else "broken"
    return "downloaded" if (cache_folder() / record.filename).exists() else "not downloaded"


def verify(name: str) -> Status:
    """Whether a set is here and whole: its file is read and its digest compared.

    Nothing is downloaded or removed.

    Raises
    ------
    UsageError
        If no set has that name.
    """
    record = _record(name)
    try:
        if record.bundled:
            _verified_bundled(record)
            return "bundled"
        path = cache_folder() / record.filename
        if not path.exists():
            return "not downloaded"
        return "downloaded" if _digest(path, record) == record.digest else "broken"
    except (FileError, OSError):
        return "broken"


def describe(name: str) -> Weights:
    """All that is known of a set: its record, completed from its file and the card in it.

    Raises
    ------
    UsageError
        If no set has that name.
    FileError
        If the bundled file is missing or broken.
    """
    record = _record(name)
    if not record.bundled:
        if verify(name) != "downloaded":
            return record
        return replace(record, size=(cache_folder() / record.filename).stat().st_size)

    import torch

    from napari_arssr.models import build, read_card

    path = _verified_bundled(record)
    card = read_card(path)
    with torch.device("meta"):
        parameters = sum(tensor.numel() for tensor in build(card.config).parameters())
    return replace(
        record,
        architecture=f"{card.config.encoder} encoder, {card.config.decoder} decoder",
        parameters=parameters,
        digest=_digest(path, record),
        size=path.stat().st_size,
        licence=card.licence or record.licence,
        paper=card.paper,
        trained_on=card.training_data,
        scores=card.scores,
        bfloat16=card.bfloat16,
    )


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Path:
    """The file behind ``--weights``: a registered name, else an existing file.

    A file that is called like a registered set is reached as ``./name``.

    Raises
    ------
    UsageError
        If it is neither.
    FileError, Cancelled
        As :func:`fetch`.
    """
    text = os.fspath(name_or_path)
    if text in REGISTRY:
        return fetch(text, progress=progress, stop=stop)
    path = Path(text)
    if path.is_file():
        return path
    raise _unknown(text, ", and there is no such file")


def load(
    name_or_path: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Loaded:
    """The network behind ``--weights``, fetched if need be.

    Raises
    ------
    UsageError, FileError, Cancelled
        As :func:`resolve`; FileError also if the file is broken or not an ArSSR network.
    """
    path = resolve(name_or_path, progress=progress, stop=stop)

    from napari_arssr import models

    model, card = models.load(path)
    record = REGISTRY.get(os.fspath(name_or_path))
    if record is None:
        # A network that was trained here has a record of it, and saw what training shows.
        published = card.config.decoder == "published" and not card.training
        normalization: Method = "minmax" if published else "percentile"
        return Loaded(model, card, path.name, normalization, card.bfloat16)
    if not record.bundled:
        card = replace(
            card,
            name=record.name,
            licence=record.licence,
            paper=record.paper,
            training_data=record.trained_on,
            scores=record.scores,
        )
    return Loaded(model, card, record.name, record.normalization, card.bfloat16)


class _NotFetched(Exception):
    """Why a download failed, in a few words."""


def _record(name: str) -> Weights:
    if name not in REGISTRY:
        raise _unknown(name)
    return REGISTRY[name]


def _unknown(name: str, also: str = "") -> UsageError:
    close = difflib.get_close_matches(Path(name).stem.lower(), REGISTRY, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else "."
    return UsageError(f"There are no weights {name!r}{also}; known are {', '.join(REGISTRY)}{hint}")


def _bundled_folder() -> Path:
    return Path(str(files("napari_arssr"))) / "bundled"


def _verified_bundled(record: Weights) -> Path:
    """The bundled file, compared with the SHA-256 that lies beside it."""
    path = _bundled_folder() / record.filename
    try:
        stated = path.with_name(f"{path.name}.sha256").read_text(encoding="ascii").split()[0]
        found = _digest(path, record)
    except (OSError, ValueError, IndexError):
        raise FileError(
            f"{path}: the bundled weights or their checksum are missing; reinstall napari-arssr."
        ) from None
    if found != f"sha256:{stated}":
        raise FileError(
            f"{path}: the bundled weights are damaged ({found} instead of sha256:{stated}); "
            "reinstall napari-arssr."
        )
    return path


def _digest(path: Path, record: Weights) -> str:
    """Digest of a file, by the algorithm of the set it is to be."""
    if record.bundled:
        with path.open("rb") as opened:
            return f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"
    return f"gitblob:{git_blob_id(path)}"


def _compare(path: Path, record: Weights) -> None:
    found = _digest(path, record)
    if found != record.digest:
        raise _NotFetched(
            f"what came is not the published file ({found} instead of {record.digest}) and was "
            "thrown away"
        )


def _cache_error(folder: Path, error: OSError) -> FileError:
    return FileError(
        f"{folder}: downloaded weights cannot be kept there ({error.strerror or error}); make "
        f"room or name another folder in the environment variable {CACHE_VARIABLE}."
    )


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
    url: str, file: IO[bytes], progress: Progress | None, stop: Stop | None, *, allow_http: bool
) -> None:
    """Stream an address into a file.

    Raises
    ------
    _NotFetched
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
    allowed = {"https", "http"} if allow_http else {"https"}

    def refuse_unless_secure(address: str) -> None:
        if urlsplit(address).scheme not in allowed:
            raise _NotFetched(f"{address} is not an https address and was not asked")

    def inspect(response: requests.Response, **_: object) -> None:
        """Called for every answer, and before a redirect is followed."""
        sink.check()
        if response.is_redirect:
            refuse_unless_secure(urljoin(response.url, response.headers["location"]))
            return
        length = response.headers.get("content-length", "")
        if length.isdecimal() and "content-encoding" not in response.headers:
            sink.total = int(length)

    refuse_unless_secure(url)
    downloader = pooch.HTTPDownloader(
        chunk_size=_CHUNK,
        timeout=_TIMEOUT,
        hooks={"response": inspect},
        headers={"Accept-Encoding": "identity"},
    )
    try:
        downloader(url, sink, None)
    except requests.RequestException as error:
        raise _NotFetched(_reason(error, urlsplit(url).hostname or url)) from None


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
