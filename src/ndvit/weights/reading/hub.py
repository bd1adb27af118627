"""Find the file of a source of weights: a path, a name of the zoo table, or a repository on the Hugging Face hub.

Every download is checked before it is used, and an incomplete file never has its final name. huggingface_hub and torch
are imported inside the functions.
"""

import hashlib
import http.client
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from ndvit.weights.reading.shards import SIDECARS, is_inside, read_index
from ndvit.weights.reading.zoo import Weights, find_weights, near_weights

_SINGLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"
_OTHER = ".npz", ".pth", ".safetensors"
_HUB = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@\\]+))?(?:@(?P<revision>[^@\s]+))?", re.ASCII)
_SHA256 = re.compile("[0-9a-f]{64}")
_LOGIN = "set HF_TOKEN or run `hf auth login`"


def resolve(source: str | Path) -> tuple[Path, Weights | None]:
    """Find the file of a source of weights, and download it if needed.

    Downloads are kept in the cache of huggingface_hub or of torch.hub. Their sha256 is checked at every use.

    Args:
        source: a file or folder, a name that `list_weights` has, or `hf:owner/name[/FILE][@REVISION]`.

    Returns:
        A local path, and the row of the zoo table if the source is its name. From the hub it is a file, with the
        repository's config.json and preprocessor_config.json beside it; for weights in shards it is their index.

    Raises:
        FileNotFoundError: if there is nothing of that name, here or on the hub.
        ValueError: for a malformed `hf:`, a file with the wrong digest (which is removed), or several candidates.
        OSError: if the download is impossible, forbidden or incomplete.
    """
    text = source.as_posix() if isinstance(source, Path) else source
    if text.startswith("hf:"):
        match = _HUB.fullmatch(text)
        if match is None or (match["file"] and not is_inside(match["file"])):
            raise ValueError(
                f"{text!r} is no address on the hub: write hf:owner/name, hf:owner/name/FILE or hf:owner/name@REVISION"
            )
        return _from_hub(match["repo"], match["file"], match["revision"]), None
    path = Path(source).expanduser()
    if text and path.exists():
        return path, None
    row = find_weights(text)
    if row is None:
        near = near_weights(text)
        tag = f"{text} needs a tag: " if near and near[0].startswith(f"{text}.") else "did you mean "
        hint = f"; {tag}{', '.join(near[:10])}{' ...' if len(near) > 10 else ''}" if near else ""
        others = "hf:owner/name or a name that `ndvit weights` lists"
        raise FileNotFoundError(f"no model at {text}: use a run folder or a .safetensors file, {others}{hint}")
    if row.url is not None:
        return _from_url(row.url, row.sha256), row
    assert row.repo is not None
    cached = _cached(row.repo, row.file, row.revision, row.sha256)
    return cached or _from_hub(row.repo, row.file, row.revision, row.sha256), row


def _from_hub(repo: str, file: str | None, revision: str | None, digest: str | None = None) -> Path:
    files, unreachable = _list_files(repo, revision)
    at = f"{repo}{f' at {revision}' if revision else ''}"
    if unreachable and not any(name.endswith((*_SINGLE, *_OTHER)) for name in files):
        raise ConnectionError(f"the weights of {at} are not in the cache, and {unreachable}")
    file = file or _choose(at, files)
    if file not in files:
        if unreachable:
            raise ConnectionError(f"{file} of {at} is not in the cache, and {unreachable}")
        raise FileNotFoundError(f"{at} has no file {file}; it has {', '.join(files) or 'none'}")
    path, folder = _fetch(repo, file, revision, digest), PurePosixPath(file).parent
    for shard in sorted(set(read_index(path).values())) if file.endswith(".index.json") else ():
        _fetch(repo, str(folder / shard), revision)
    for name in SIDECARS:
        if str(folder / name) in files:
            _fetch(repo, str(folder / name), revision)
    return path


def _list_files(repo: str, revision: str | None) -> tuple[list[str], str]:
    """Names of the files in a repository; or of those in the cache, and the reason why the hub cannot be reached."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        with plain_errors(repo, "listing", revision):
            siblings = HfApi().model_info(repo, revision=revision, timeout=30).siblings
        return [file.rfilename for file in siblings or ()], ""
    except ConnectionError as error:  # a download would retry many times without a network
        try:
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except OSError:
            raise ConnectionError(f"{repo} is not in the cache, and {error}") from error
        return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()], str(error)


def _choose(repo: str, files: list[str]) -> str:
    """The file of a repository that holds the weights."""
    for name in _SINGLE:
        if name in files:
            return name
    found = [name for name in files if name.endswith(_OTHER)]
    if len(found) != 1:
        several = f"several files of weights ({', '.join(found)})" if found else "no file of weights that is known here"
        raise ValueError(f"{repo} has {several}: write hf:owner/name/FILE; it has {', '.join(files) or 'no files'}")
    return found[0]


def _cached(repo: str, file: str | None, revision: str | None, digest: str | None) -> Path | None:
    """The file of a release if it is in the cache: releases do not change, so the hub need not be contacted."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, file or "", revision=revision)
    return _verified(Path(path), digest) if isinstance(path, str) else None


def _fetch(repo: str, file: str, revision: str | None, digest: str | None = None) -> Path:
    from huggingface_hub import hf_hub_download

    with plain_errors(repo, f"downloading {file} of", revision):
        path = Path(hf_hub_download(repo, file, revision=revision))
    return _verified(path, digest)


def _from_url(url: str, digest: str | None) -> Path:
    """A file in the folder of torch.hub and torchvision, so that nothing is downloaded twice."""
    import torch
    from huggingface_hub import constants

    path = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(urlsplit(url).path).name
    if not path.is_file():
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError(f"{path.name} is not in the cache, and HF_HUB_OFFLINE=1 forbids downloading it")
        _download(url, path)
    return _verified(path, digest)


def _download(url: str, path: Path) -> None:
    # torch.hub.download_url_to_file would keep a broken download where the digest is unknown, as for most releases.
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with urlopen(Request(url, headers={"User-Agent": "ndvit"}), timeout=30) as reply, partial.open("wb") as file:
            total = int(reply.headers.get("Content-Length") or 0)
            with tqdm.wrapattr(reply, "read", total=total or None, desc=path.name, disable=None) as counted:
                shutil.copyfileobj(counted, file, 1 << 20)
        if total and partial.stat().st_size != total:
            raise ConnectionError(f"received {partial.stat().st_size:,} of {total:,} bytes")
        os.replace(partial, path)
    except (OSError, http.client.HTTPException) as error:
        if _is_local(error):
            raise
        raise ConnectionError(f"downloading {url} failed: {error}. Try again, or download it to a file") from error
    finally:
        partial.unlink(missing_ok=True)


def _verified(path: Path, digest: str | None) -> Path:
    """The path, if the file has the right sha256; otherwise the file is removed, so that it is downloaded again."""
    # huggingface_hub names files of git LFS by their sha256. Only one link is followed: the blob may be a link, too.
    blob = path.parent / os.readlink(path) if path.is_symlink() else path
    expected = [d for d in (digest, blob.name if _SHA256.fullmatch(blob.name) else None) if d]
    if not expected:
        return path
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    for wanted in expected:
        if not found.startswith(wanted):
            for broken in (blob.resolve(), blob, path):
                broken.unlink(missing_ok=True)
            raise ValueError(
                f"{path.name} has the sha256 {found}, expected {wanted}{'...' if len(wanted) < 64 else ''}: "
                "it was damaged or replaced, and has been removed. Try again to download it"
            )
    return path


def _is_local(error: Exception) -> bool:
    """Whether an error comes from the disk of this machine, and has a clear message already."""
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError)


@contextmanager
def plain_errors(repo: str, doing: str, revision: str | None = None) -> Iterator[None]:
    """Turn errors of huggingface_hub into one line each, with a remedy."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo}"
    # The HTTP library, and so the base classes of its errors, differ between versions of huggingface_hub.
    xet = getattr(errors, "XetDownloadError", OSError)
    kinds: Any = (OSError, RuntimeError, ValueError, xet, *errors.HfHubHTTPError.__bases__)
    try:
        yield
    except errors.HFValidationError as error:
        raise ValueError(f"{repo!r} is no name of a repository: {str(error).splitlines()[0]}") from error
    except errors.GatedRepoError as error:
        raise PermissionError(f"{repo} is gated: accept its licence on {page}, then {_LOGIN}") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(f"there is no {page}, or it is private: check the name, or {_LOGIN}") from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo} has no branch, tag or commit {revision}: see {page}/tree/main") from error
    except errors.OfflineModeIsEnabled as error:
        raise ConnectionError("HF_HUB_OFFLINE=1 forbids contacting the hub") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        hint = f": check the name, or {_LOGIN} with a token that may do this" if status in (401, 403) else ""
        kind = PermissionError if hint else ConnectionError
        detail = f" ({' '.join(error.server_message.split())})" if error.server_message else ""
        raise kind(f"{doing} {page} failed with status {status or 'unknown'}{detail}{hint}") from error
    except kinds as error:
        if _is_local(error):
            raise
        if isinstance(error, ValueError):  # for example a card that the hub rejects
            raise ValueError(" ".join(str(error).split())) from error
        cause = error.__cause__ or error  # the wrapped error has the better message
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        raise ConnectionError(f"{doing} {page} failed: {reason}. Check the connection and try again") from error
