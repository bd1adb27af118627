"""Files of weights from a path, the table of published weights or the Hugging Face hub.

Whatever is downloaded is checked before it is used, and no half file ever stands under a final name. huggingface_hub
and torch are imported inside the functions.
"""

import hashlib
import http.client
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from ndvit.weights.reading.zoo import Weights, find_weights, near_weights

_SINGLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"
_OTHER = ".npz", ".pth", ".safetensors"
_SETTINGS = "config.json", "preprocessor_config.json"
_HUB = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@\\]+))?(?:@(?P<revision>[^@\s]+))?", re.ASCII)
_SHA256 = re.compile("[0-9a-f]{64}")
_LOGIN = "set HF_TOKEN or run `hf auth login`"


def resolve(source: str | Path) -> tuple[Path, Weights | None]:
    """Find the file that a source of weights means; download it where it is not here yet.

    The source is a file or folder, a name that `list_weights` has, or `hf:owner/name[/FILE][@REVISION]`. Downloads lie
    in huggingface_hub's cache or torch.hub's, and every use of them begins with checking their sha256.

    Returns:
        A local path, and the row of the table if it was asked for one. What comes from the hub is a file, with the
        repository's config.json and preprocessor_config.json beside it if there are such; for weights in several
        shards it is their index.

    Raises:
        FileNotFoundError: if nothing goes by that name, here or on the hub.
        ValueError: for a malformed `hf:`, a file with the wrong digest (which is removed), or several candidates.
        OSError: if the download is impossible, forbidden or breaks off, saying which.
    """
    text = source.as_posix() if isinstance(source, Path) else source
    if text.startswith("hf:"):
        match = _HUB.fullmatch(text)
        if match is None or (match["file"] and not _is_inside(match["file"])):
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
        raise FileNotFoundError(f"no model at {text}: give a run folder or a .safetensors file, {others}{hint}")
    if row.url is not None:
        return _from_url(row.url, row.sha256), row
    assert row.repo is not None
    return _cached(row.repo, row.file, row.sha256) or _from_hub(row.repo, row.file, None, row.sha256), row


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
    for shard in _shards(path) if file.endswith(".index.json") else ():
        _fetch(repo, str(folder / shard), revision)
    for name in _SETTINGS:
        if str(folder / name) in files:
            _fetch(repo, str(folder / name), revision)
    return path


def _list_files(repo: str, revision: str | None) -> tuple[list[str], str]:
    """Names of a repository's files, or of those in the cache and why the hub could not be asked."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        with plain_errors(repo, "asking for", revision):
            siblings = HfApi().model_info(repo, revision=revision, timeout=30).siblings
        return [file.rfilename for file in siblings or ()], ""
    except ConnectionError as error:  # before downloading, which would try again and again without a network
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


def _shards(index: Path) -> list[str]:
    """The files that an index names; they lie beside it, and nowhere else."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{index} is no index of weights in shards: it has no weight_map of file names") from error
    for name in names:
        if not _is_inside(name) or "/" in name:
            raise ValueError(f"{index} names the shard {name!r}: only plain file names beside the index are read")
    return names


def _is_inside(path: str) -> bool:
    """Whether a path in a repository stays in it; what Windows would take for a separator or a drive counts, too."""
    return not {"", ".", ".."} & set(path.split("/")) and PureWindowsPath(path).as_posix() == path and ":" not in path


def _cached(repo: str, file: str | None, digest: str | None) -> Path | None:
    """The file of a row if it was downloaded before: a release does not change, so nobody needs to be asked."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, file or "")
    return _verified(Path(path), digest) if isinstance(path, str) else None


def _fetch(repo: str, file: str, revision: str | None, digest: str | None = None) -> Path:
    from huggingface_hub import hf_hub_download

    with plain_errors(repo, f"downloading {file} of", revision):
        path = Path(hf_hub_download(repo, file, revision=revision))
    return _verified(path, digest)


def _from_url(url: str, digest: str | None) -> Path:
    """A file in the folder that torch.hub and torchvision use as well, so that nothing is downloaded twice."""
    import torch
    from huggingface_hub import constants

    path = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(urlsplit(url).path).name
    if not path.is_file():
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError(f"{path.name} is not in the cache, and HF_HUB_OFFLINE=1 forbids downloading it")
        _download(url, path)
    return _verified(path, digest)


def _download(url: str, path: Path) -> None:
    # torch.hub.download_url_to_file would keep a download that broke off if it knows no digest, as of most releases
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with urlopen(Request(url, headers={"User-Agent": "ndvit"}), timeout=30) as reply, partial.open("wb") as file:
            total = int(reply.headers.get("Content-Length") or 0)
            with tqdm(desc=path.name, total=total or None, unit="B", unit_scale=True, disable=None) as bar:
                while block := reply.read(1 << 20):
                    bar.update(file.write(block))
        if total and partial.stat().st_size != total:
            raise ConnectionError(f"{partial.stat().st_size:,} of {total:,} bytes came")
        os.replace(partial, path)
    except (OSError, http.client.HTTPException) as error:
        if _is_local(error):
            raise
        raise ConnectionError(f"downloading {url} failed: {error}. Try again, or download it to a file") from error
    finally:
        partial.unlink(missing_ok=True)


def _verified(path: Path, digest: str | None) -> Path:
    """The path again, if the file has its digest; else the file is removed, so that the next try downloads afresh."""
    # huggingface_hub names what git LFS keeps by its sha256. One step only: that may itself link to a shared file.
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
                "it was damaged or replaced, and has been removed. Try again to download it afresh"
            )
    return path


def _is_local(error: Exception) -> bool:
    """Whether an error is of this machine's disk, and plain already."""
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError)


@contextmanager
def plain_errors(repo: str, doing: str, revision: str | None = None) -> Iterator[None]:
    """Errors of huggingface_hub as one line each that says how to mend them."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo}"
    # the bases are those of the HTTP library in use, which differs between versions: requests, httpx, httpx2
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
        raise ConnectionError("HF_HUB_OFFLINE=1 forbids asking the hub") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        hint = f": check the name, or {_LOGIN} with a token that may do this" if status in (401, 403) else ""
        kind = PermissionError if hint else ConnectionError
        said = f" ({' '.join(error.server_message.split())})" if error.server_message else ""
        raise kind(f"{doing} {page} failed with status {status or 'unknown'}{said}{hint}") from error
    except kinds as error:
        if _is_local(error):
            raise
        if isinstance(error, ValueError):  # such as a card that the hub finds fault with
            raise ValueError(" ".join(str(error).split())) from error
        cause = error.__cause__ or error  # what these wrap says more than they do
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        raise ConnectionError(f"{doing} {page} failed: {reason}. Check the connection and try again") from error
