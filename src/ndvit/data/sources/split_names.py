"""Names of splits, in any spelling: of folders, of arrays, of values in a column, of splits on the hub.

The keywords are those of the imagefolder loader of Hugging Face's `datasets`, with more synonyms.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

_KEYWORDS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "devel", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation", "holdout", "heldout"), "test"),
    **dict.fromkeys(("pred", "predict", "prediction", "predictions", "inference", "submission"), "new"),
    **dict.fromkeys(("unlabelled", "unlabeled", "unlabel", "unsup", "unannotated"), "unlabelled"),
    **dict.fromkeys(("fold", "folds", "split", "shard", "chunk", "cv"), "part"),
}
_NNUNET = {"tr": "train", "ts": "test"}  # after a word of `_PICTURES` or `_COMPANIONS`: imagesTr, labelsTs
_SOUNDS = ("audio", "sound", "sounds", "recording", "recordings", "wav", "wavs", "signal", "signals")
_PICTURES = (
    *("images", "image", "imgs", "img", "pictures", "picture", "pics", "photos", "photo"),
    *("jpg", "jpeg", "png", "tif", "tiff"),
)
_FILLERS = {
    *("set", "sets", "data", "dataset", "datasets", "db", "subset", "samples", "sample", "examples", "example"),
    *("split", "splits", "folder", "dir", "files", "classes", "cls", "raw", "all", "full", "the", "my", "new", "final"),
    *_PICTURES,
    *_SOUNDS,
}
_COMPANIONS = {
    *("mask", "masks", "label", "labels", "annotation", "annotations", "annot", "annots", "gt", "groundtruth"),
    *("segmentation", "segmentations", "seg", "segs", "bbox", "bboxes", "boxes", "contours", "trimaps", "heatmaps"),
}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+")
_SUFFIX = re.compile(rf"(?i)[\s_.-]*[\s_.(-]({'|'.join(sorted(_COMPANIONS, key=len, reverse=True))})[\s_.-]?\d*\)?$")

_CANONICAL = ("train", "training", "test", "testing", "val", "valid", "validation", "dev")


class SplitName(NamedTuple):
    """What a name says about a split.

    Attributes:
        split: "train", "val" or "test"; "unlabelled" or "new" (to predict) for examples without labels; "part" for
            numbered parts, such as folds.
        rest: the words that are not about splits, such as "seg" in seg_train; "" if there are none.
    """

    split: str
    rest: str


def parse_split(name: str) -> SplitName | None:
    """Return what a name says about a split; None if it has no keyword, or keywords of different splits."""
    words = _words(name)
    found, rest = set(), []
    for before, word in zip(["", *words], words):
        if word in _KEYWORDS and not (word == "split" and len(words) > 1):
            found.add(_KEYWORDS[word])
        elif word in _NNUNET and (before in _PICTURES or before in _COMPANIONS):
            found.add(_NNUNET[word])
        elif word not in _FILLERS:
            rest.append(word)
    if found == {"train", "val"}:
        found = {"train"}
    if found == {"part"} and not re.search(r"\d", name):
        return None
    return SplitName(found.pop(), " ".join(rest)) if len(found) == 1 else None


def split_of(name: str) -> str | None:
    """Return the split that a name means: "train", "val" or "test"; None if it has words that mean something else.

    Case, separators, numbers and words such as "set" or "images" are ignored: training_set, val2017, "Test data".
    """
    found = parse_split(name)
    return found.split if found and not found.rest and found.split in ("train", "val", "test") else None


def is_canonical(name: str) -> bool:
    """Whether a name is a usual one of a split, without further words; where several mean the same, it comes first."""
    return name.lower() in _CANONICAL


def are_pictures(name: str) -> bool:
    """Whether a folder name means "pictures" in general, such as images, JPG or photos."""
    words = _words(name)
    return bool(words) and all(word in _FILLERS for word in words) and any(word in _PICTURES for word in words)


def are_companions(name: str) -> bool:
    """Whether a folder name means what goes with pictures, such as masks, labels or gt."""
    words = _words(name)
    return any(word in _COMPANIONS for word in words) and all(word in _COMPANIONS | _FILLERS for word in words)


def companions(stems: Iterable[str]) -> dict[str, str]:
    """Find names of files that go with another one of them: {"a_mask": "a"} for "a" and "a_mask"."""
    known = set(stems)
    found = {}
    for stem in sorted(known):
        base = _SUFFIX.sub("", stem)
        if base != stem and base in known:
            found[stem] = base
    return found


def alike(name: str) -> str:
    """A form of a class name without case, outer spaces and separators; names of one form mean the same."""
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", unicodedata.normalize("NFC", name).casefold().strip())


def _words(name: str) -> list[str]:
    words = " ".join(part for word in _WORD.findall(name) for part in _unglued(word.lower()))
    for two in ("hold out", "held out", "ground truth"):
        words = words.replace(two, two.replace(" ", ""))
    return words.split()


def _unglued(word: str) -> tuple[str, ...]:
    """Cut "trainset" into "train" and "set", and "imgtrain" into "img" and "train"."""
    if word in _KEYWORDS or word in _FILLERS:
        return (word,)
    for place in range(3, len(word) - 1):
        first, second = word[:place], word[place:]
        if (first in _KEYWORDS and second in _FILLERS) or (first in _FILLERS and second in _KEYWORDS):
            return first, second
    return (word,)
