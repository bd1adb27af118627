"""JSON files beside weights, and the index that lists the shards of weights. No torch is needed to read them."""

import json
from pathlib import Path, PureWindowsPath
from typing import Any

SIDECARS = ("config.json", "preprocessor_config.json")
_JSON_BYTES, _INDEX_BYTES = 5_000_000, 50_000_000


def read_json(path: Path, limit: int = _JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: if the file is larger than `limit` bytes, damaged, or holds another value.
    """
    if path.stat().st_size > limit:
        raise ValueError(f"{path.stat().st_size:,} bytes, at most {limit:,} are read")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("its values nest too deep") from error
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value


def read_index(path: Path) -> dict[str, str]:
    """The file of each tensor, from an index {"weight_map": {tensor: file}}.

    Raises:
        ValueError: if it is no index, or names a file outside its folder.
    """
    try:
        places = read_json(path, _INDEX_BYTES).get("weight_map")
    except ValueError as error:
        raise ValueError(f"{path} begins like JSON but cannot be read as JSON ({error})") from error
    if not (isinstance(places, dict) and places and all(isinstance(shard, str) for shard in places.values())):
        raise ValueError(f"{path} is JSON without a weight_map, so neither weights nor an index of shards")
    for shard in places.values():
        if not is_inside(shard) or "/" in shard:
            raise ValueError(f"{path}: shard {shard!r} is outside the folder of the index; refused")
    return places


def is_inside(path: str) -> bool:
    """Whether a relative path stays in its folder, also on Windows with its other separator and its drives."""
    parts = {"", ".", ".."} & set(path.split("/"))
    return not parts and PureWindowsPath(path).as_posix() == path and ":" not in path and "\0" not in path
