"""Test examples of a model as files, for the page: a few of the data that its run names, if they are here."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ndvit.data.examples import Examples, Raw, Recording
from ndvit.exporting.comparison import load_test_set
from ndvit.inference.recordings import WholeRecordings

if TYPE_CHECKING:
    from ndvit.serving.models import Loaded, ServedModel

LOG = logging.getLogger("ndvit.serving")
_COUNT = 6
_LARGEST = 2**21  # bytes of a file
_SIDE = 512  # pixels


class ExampleFiles:
    """A few examples of the test set, read at the first request for them. Their names, which are paths, stay here."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._files: list[tuple[dict[str, Any], bytes]] | None = None

    def listed(self, loaded: Loaded) -> list[dict[str, Any]]:
        """Number, file name and target of each example."""
        if self._files is None:
            try:
                self._files = _files(loaded)
            except Exception as error:  # whatever happened to the data since the training, the service works without
                LOG.info("no test examples", extra={"facts": {"model": self._model.name, "reason": str(error)}})
                self._files = []
        return [facts for facts, _ in self._files]

    def content(self, number: int) -> bytes | None:
        """The bytes of an example; None if there is none, or the examples were not listed yet."""
        return self._files[number][1] if self._files and number < len(self._files) else None


def _files(loaded: Loaded) -> list[tuple[dict[str, Any], bytes]]:
    test = load_test_set(loaded.model)
    if test is None or not len(test):
        return []
    whole: Examples | WholeRecordings = test if test.places is None else WholeRecordings(test)
    found: list[tuple[dict[str, Any], bytes]] = []
    for number in _spread(test, len(whole)):
        ending, content = encoded(whole[number])
        if len(content) <= _LARGEST:
            facts = {"number": len(found), "name": f"example-{len(found) + 1}{ending}"}
            found.append(({**facts, "target": _target(loaded, test, number)}, content))
    return found


def _spread(test: Examples, count: int) -> list[int]:
    """Some examples, of different classes where there are any."""
    order = np.random.default_rng(0).permutation(count)
    targets = test.targets
    if test.places is not None or targets is None or targets.dtype.kind not in "iu" or targets.ndim != 1:
        return order[:_COUNT].tolist()
    first = {int(targets[i]): int(i) for i in order[::-1]}
    rest = [int(i) for i in order if int(i) not in first.values()]
    return [*sorted(first.values(), key=lambda i: targets[i]), *rest][:_COUNT]


def _target(loaded: Loaded, test: Examples, number: int) -> str | None:
    if test.targets is None or test.places is not None:
        return None
    value = loaded.task.decode(test.targets[number : number + 1])[0]
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def encoded(raw: Raw) -> tuple[str, bytes]:
    """An example as the content of a file, with its ending: pictures as PNG, recordings as WAV, arrays as .npy."""
    file = io.BytesIO()
    if isinstance(raw, Image.Image):
        small = raw.copy()
        small.thumbnail((_SIDE, _SIDE))
        small.save(file, "PNG")
        return ".png", file.getvalue()
    if isinstance(raw, Recording) and float(raw.rate).is_integer():
        import soundfile

        soundfile.write(file, raw.values.T, int(raw.rate), "FLOAT", format="WAV")
        return ".wav", file.getvalue()
    values = raw.values if isinstance(raw, Recording) else np.asarray(raw)
    np.save(file, values, allow_pickle=False)
    return ".npy", file.getvalue()
