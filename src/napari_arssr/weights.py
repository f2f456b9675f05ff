"""Which weights exist, where they come from, what they are good for.

The bundled set lies in the package. The published sets of ArSSR are fetched on request from
their authors' own address at a pinned commit, verified, and kept in a cache folder; their
authors state no licence, so they are never redistributed. Any local file will do in their place.

A published file is verified by its git blob id (:mod:`napari_arssr.download`).
"""

from __future__ import annotations

import difflib
import os
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from napari_arssr import download
from napari_arssr.download import NotFetched, Progress, RemoteFile, Stop, is_whole
from napari_arssr.errors import FileError, UsageError
from napari_arssr.files import sha256_of

if TYPE_CHECKING:
    from napari_arssr.choices import Normalization
    from napari_arssr.models import ArSSR, Card

__all__ = [
    "ARSSR_PAPER",
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
    "load",
    "resolve",
    "status",
    "verify",
]

CACHE_VARIABLE = "NAPARI_ARSSR_CACHE"
BUNDLED = "bundled"

Status = Literal["bundled", "downloaded", "not downloaded", "broken"]

_REPOSITORY = "https://raw.githubusercontent.com/iwuqing/ArSSR"
_COMMIT = "7e10fe0117efda7091d7ecda45c34a7202439642"
ARSSR_PAPER = (
    "Wu et al., An Arbitrary Scale Super-Resolution Approach for 3D MR Images via Implicit "
    "Neural Representation, IEEE JBHI 27(2), 2023, doi:10.1109/JBHI.2022.3223106"
)
_HCP_TEST = "HCP-1200, 222 test volumes, as reported in the paper"


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
    normalization: Normalization
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
    def remote(self) -> RemoteFile:
        """Where the set's file comes from, for a set that is to be downloaded."""
        assert self.digest is not None
        return RemoteFile(self.source, self.filename, self.digest)

    @property
    def approximate_size(self) -> int | None:
        """Bytes: the size if known, else that of the parameters alone in float32."""
        if self.bundled:
            bundled = _bundled_folder() / self.filename
            return bundled.stat().st_size if bundled.is_file() else None
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
    """

    model: ArSSR
    card: Card
    name: str
    normalization: Normalization

    @property
    def bfloat16(self) -> bool:
        """Whether bfloat16 was measured to move results by less than 0.02 dB."""
        return self.card.bfloat16


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
        paper=ARSSR_PAPER,
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
    try:
        remote = replace(record.remote, allow_http=allow_http)
        return download.fetch(remote, folder, progress=progress, stop=stop)
    except NotFetched as failure:
        target = folder / record.filename
        before = "the file in the cache was broken and was removed, and " if failure.removed else ""
        raise FileError(
            f"{record.name}: {before}{record.source} could not be fetched: {failure}; download "
            f"{record.filename} from there by other means and put it at {target}, or name the "
            "file of your own copy."
        ) from None
    except OSError as error:
        raise _cache_error(folder, error) from None


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
        return "downloaded" if is_whole(path, record.remote) else "broken"
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
        digest=f"sha256:{sha256_of(path)}",
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
        usual: Normalization = "minmax" if published else "percentile"
        normalization = card.training.get("normalization", usual)
        return Loaded(model, card, path.name, normalization)
    if not record.bundled:
        card = replace(
            card,
            name=record.name,
            licence=record.licence,
            paper=record.paper,
            training_data=record.trained_on,
            scores=record.scores,
        )
    return Loaded(model, card, record.name, record.normalization)


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
        found = sha256_of(path)
    except (OSError, ValueError, IndexError):
        raise FileError(
            f"{path}: the bundled weights or their checksum are missing; reinstall napari-arssr."
        ) from None
    if found != stated:
        raise FileError(
            f"{path}: the bundled weights are damaged (sha256:{found} instead of {stated}); "
            "reinstall napari-arssr."
        )
    return path


def _cache_error(folder: Path, error: OSError) -> FileError:
    return FileError(
        f"{folder}: downloaded weights cannot be kept there ({error.strerror or error}); make "
        f"room or name another folder in the environment variable {CACHE_VARIABLE}."
    )
