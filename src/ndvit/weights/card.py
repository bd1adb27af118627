"""The model card: a README.md for the Hugging Face hub with the facts about a model."""

import re
from pathlib import PureWindowsPath
from typing import Any

from ndvit.parts import ModelParts, is_result
from ndvit.weights.reading.zoo import find_weights
from ndvit.weights.structure import configs_in, inputs_of, outputs_of, structure_of, summary, times

_MOST_CLASSES = 50
_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#|~$&!@:])")


def model_card(
    model: ModelParts, repo_id: str, *, licence: str | None = None, results: dict[str, Any] | None = None
) -> str:
    """The card of a model, as Markdown with a YAML front matter.

    Args:
        model: the model.
        repo_id: owner/name on the hub.
        licence: SPDX identifier; by default that of the weights which training started from.
        results: the contents of a run's results.json.
    """
    from huggingface_hub import EvalResult, ModelCardData
    from jinja2 import Environment, PackageLoader, StrictUndefined

    facts, results = model.provenance, results or {}
    accuracy = results.get("accuracy", facts.get("test_accuracy"))
    source, weights = (without_folders(str(facts[key])) if facts.get(key) else None for key in ("source", "weights"))
    trained = "steps" in facts or accuracy is not None
    if not trained and source:  # published weights, perhaps adapted, are their own source
        source, weights = None, weights or source
    structure = structure_of(model.network)
    channels, size = inputs_of(structure)
    kind = getattr(model.preprocess, "kind", "image" if len(size) == 2 else "signal")
    name = "classification" if model.task is None else model.task.name
    task = f"{'image' if kind == 'image' else 'time-series'}-{name}"
    evaluated: dict[str, Any] = {}
    found = {} if accuracy is None else {"accuracy": accuracy}
    found = found or {fact.removeprefix("test_"): value for fact, value in facts.items() if is_result(fact)}
    if found:
        data = source or "arrays"
        named = re.sub(r"\W+", "-", data).strip("-"), one_line(data)
        measured = [EvalResult(task, *named, metric, value) for metric, value in found.items()]
        evaluated = {"metrics": list(found), "model_name": repo_id.rpartition("/")[2], "eval_results": measured}
    front = ModelCardData(
        library_name="ndvit",
        tags=["vision-transformer", task],
        license=licence or facts.get("licence"),
        pipeline_tag=task if task == "image-classification" else None,
        **evaluated,
    )
    environment = Environment(loader=PackageLoader("ndvit.weights", ""), undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"plain": plain, "by": times}
    classes = getattr(model.task, "classes", ())
    text = environment.get_template("card.md.jinja").render(
        front=front.to_yaml(),
        repo=repo_id,
        kind=kind,
        channels=channels,
        size=size,
        config=next(iter(configs_in(structure)), None),
        network=summary(structure),
        parameters=sum(p.numel() for p in model.network.parameters()),
        classes=classes if len(classes) <= _MOST_CLASSES else (),
        outputs=f"{outputs_of(structure)} {'classes' if name == 'classification' else 'outputs'}",
        preprocess=model.preprocess.to_dict() if model.preprocess is not None else {},
        source=source,
        trained=trained,
        weights=weights,
        facts=facts,
        accuracy=accuracy,
        found={} if accuracy is not None else found,
        chooses=name == "classification",
        examples=results.get("examples"),
        interval=results.get("accuracy_interval_95"),
    )
    return text.rstrip() + "\n"


def without_folders(text: str) -> str:
    """The last part of a path, so that no folder of this machine is published; other names stay unchanged."""
    if text.startswith(("hf:", "ucr:")) or find_weights(text) is not None or not re.search(r"[/\\]", text):
        return text
    return PureWindowsPath(text).name  # splits at both separators


def one_line(text: str) -> str:
    """Text without line breaks and other characters that do not print, of at most 100 characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= 100 else f"{line[:99]}…"


def plain(value: Any) -> str:
    """A value as one line of Markdown without markup: every special character is escaped."""
    if isinstance(value, float):
        value = f"{value:.6g}"
    elif isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return _MARKUP.sub(r"\\\1", one_line(str(value)))
