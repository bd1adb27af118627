"""The model card: a README.md for the hub that says what a model is, where it comes from and how it is used."""

import re
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Any

from ndvit.weights.reading.zoo import find_weights

if TYPE_CHECKING:
    from ndvit.network.committee import Model

_LISTED_CLASSES = 50
_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#|~$&!@:])")


def model_card(
    model: "Model", repo_id: str, *, licence: str | None = None, results: dict[str, Any] | None = None
) -> str:
    """The card of a model, as Markdown under a YAML front matter.

    Args:
        model: the model, with its `classes`, `preprocess` and `provenance`.
        repo_id: owner/name on the hub.
        licence: SPDX identifier; none takes that of the weights which the model started from.
        results: a run's results.json.
    """
    import yaml
    from jinja2 import Environment, PackageLoader, StrictUndefined

    told, config, results = model.provenance, model.config, results or {}
    accuracy = results.get("accuracy", told.get("test_accuracy"))
    source, weights = (without_folders(str(told[key])) if told.get(key) else None for key in ("source", "weights"))
    trained = "steps" in told or accuracy is not None
    if not trained and source:  # published weights, maybe adapted, are their own source
        source, weights = None, weights or source
    licence = licence or told.get("licence")
    kind = getattr(model.preprocess, "kind", "image" if len(config.input_size) == 2 else "signal")
    task = "image-classification" if kind == "image" else "time-series-classification"
    front: dict[str, Any] = {"library_name": "ndvit", "tags": ["vision-transformer", task]}
    if licence:
        front["license"] = licence
    if kind == "image":
        front["pipeline_tag"] = task
    if accuracy is not None:
        front["metrics"] = ["accuracy"]
        data = {"name": one_line(source or "arrays"), "type": re.sub(r"\W+", "-", source or "arrays").strip("-")}
        result = {"task": {"type": task}, "dataset": data, "metrics": [{"type": "accuracy", "value": accuracy}]}
        front["model-index"] = [{"name": repo_id.rpartition("/")[2], "results": [result]}]
    environment = Environment(loader=PackageLoader("ndvit.weights", ""), undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"plain": plain, "by": lambda size: " x ".join(map(str, size))}
    text = environment.get_template("card.md.jinja").render(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True),
        repo=repo_id,
        kind=kind,
        config=config,
        parameters=sum(p.numel() for p in model.parameters()),
        classes=model.classes if len(model.classes) <= _LISTED_CLASSES else (),
        count=config.num_classes,
        preprocess=model.preprocess.to_dict() if model.preprocess is not None else {},
        source=source,
        trained=trained,
        weights=weights,
        told=told,
        accuracy=accuracy,
        examples=results.get("examples"),
        interval=results.get("accuracy_interval_95"),
    )
    return text.rstrip() + "\n"


def without_folders(text: str) -> str:
    """The last part of a path, so that folders of this machine are not told; names that only look like paths stay."""
    if text.startswith(("hf:", "ucr:")) or find_weights(text) is not None or not re.search(r"[/\\]", text):
        return text
    return PureWindowsPath(text).name  # which knows both separators


def one_line(text: str) -> str:
    """Text without line breaks and other signs that do not print, of at most 100 characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= 100 else f"{line[:99]}…"


def plain(value: Any) -> str:
    """A value as one line of Markdown that shows its characters and means nothing more."""
    if isinstance(value, float):
        value = f"{value:.6g}"
    elif isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return _MARKUP.sub(r"\\\1", one_line(str(value)))
