"""Flags that are generated from the fields of option classes."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from inspect import get_annotations, getdoc, signature
from typing import Annotated, Any, Literal, TypedDict, get_type_hints

from cyclopts import Group, Parameter
from docstring_parser import parse_from_object

from ndvit.config import Recipe, SolvedOptions, ViTConfig
from ndvit.config.bounds import Options
from ndvit.config.options import DERIVED
from ndvit.config.pretraining import IDLE, UNSPLIT, PretrainingOptions
from ndvit.config.reading import FileOptions, ReadingOptions
from ndvit.config.recipe import Device
from ndvit.config.serving import ServingOptions

Split = Literal["auto", "test", "train", "all"]


class _InferenceOptions(TypedDict, total=False):
    """Flags of the commands that run a trained model."""

    batch_size: Annotated[int, Parameter(help="Examples in one forward pass. [default: 64]")]
    device: Annotated[Device, Parameter(help="Device of the computation. [default: auto]")]
    progress: Annotated[bool, Parameter(help="Show progress bars. [default: True]")]
    ema: Annotated[bool, Parameter(help="Averaged weights of a file with several. [default: as its program evaluates]")]


_LEARNER = Group.create_ordered("Task, preset, network and weights")


def _learner(text: str) -> Parameter:
    return Parameter(help=text, group=_LEARNER)


class _LearnerFlags(TypedDict, total=False):
    """Flags of the commands that train a model on targets."""

    task: Annotated[
        str,
        _learner(
            "What the model learns: classification, multilabel (several labels for each example), or regression (one "
            "or several numbers). [default: classification]"
        ),
    ]
    preset: Annotated[
        str,
        _learner(
            "A network and a recipe that belong together; `ndvit presets` lists them. auto is signal for signals, "
            "finetune for images with --weights, small_data for images without. Flags override the preset's values. "
            "[default: auto]"
        ),
    ]
    model: Annotated[
        str | None,
        _learner(
            "A name that `ndvit models` lists; vit_SIZE, signal_SIZE and compact_SIZE take dimensions and patch from "
            "the data. [default: the preset's, or the network of the weights]"
        ),
    ]
    weights: Annotated[
        str | None,
        _learner(
            "Trained weights to start from: a file, a run folder, a name that `ndvit weights` lists, or "
            "hf:owner/name. FILE#PREFIX is the network under this prefix of a file with several."
        ),
    ]
    ema: Annotated[
        bool | None,
        _learner(
            "Of several copies of a network in a file of weights, the averaged one (a teacher, a moving average), or "
            "the other one. [default: what the program that wrote the file evaluates]"
        ),
    ]
    members: Annotated[
        int,
        _learner(
            "Networks in an ensemble, trained one after the other from the seeds seed, seed + 1, ... [default: 1]"
        ),
    ]
    teacher: Annotated[
        str | None,
        _learner("Teacher for distillation: minirocket, multirocket, an earlier run, or weights as above."),
    ]


def option_groups(options: type[Options]) -> list[type[Options]]:
    """The classes whose fields make up `options`, in the order of the fields."""
    return [cls for cls in reversed(options.__mro__) if issubclass(cls, Options) and get_annotations(cls)]


def field_docs(options: type[Options]) -> dict[str, str]:
    """The docstring of each field."""
    return {
        field.arg_name: " ".join((field.description or "").split())
        for group in option_groups(options)
        for field in parse_from_object(group).params
    }


def _flags(options: type[Options], panel: str, defaults: bool = False) -> dict[str, Any]:
    """One flag per field, in one help panel per group.

    The flags are keys of partial dicts without defaults, because only the user's values override a model or a preset.

    Args:
        options: a class of options.
        panel: beginning of the title of each panel.
        defaults: whether the help texts end with the defaults of the class.
    """
    docs, hints = field_docs(options), get_type_hints(options)
    default = {f.name: f" [default: {f.default}]" for f in fields(options) if defaults and f.default is not None}
    flags: dict[str, Any] = {}
    for group in option_groups(options):
        title = Group.create_ordered(panel + str(getdoc(group)).rstrip("."))
        for name in get_annotations(group).keys() - DERIVED:
            help_text = docs[name] + default.get(name, "")
            flags[name] = Annotated[hints[name], Parameter(help=help_text, group=title)]
    return {f.name: flags[f.name] for f in fields(options) if f.name in flags}


_READING = _flags(ReadingOptions, "")
_INFERENCE = _InferenceOptions.__annotations__
InferenceOptions = TypedDict(  # type: ignore[misc]
    "InferenceOptions", _flags(FileOptions, "") | _INFERENCE, total=False
)
ReadingFlags = TypedDict("ReadingFlags", _flags(ReadingOptions, "", defaults=True), total=False)  # type: ignore[misc]
LabelledOptions = TypedDict("LabelledOptions", _READING | _INFERENCE, total=False)  # type: ignore[misc]
_NETWORK = _flags(ViTConfig, "Network: ") | _flags(SolvedOptions, "Network: ")
NetworkOptions = TypedDict("NetworkOptions", _NETWORK, total=False)  # type: ignore[misc]
_TRAINING = _flags(ReadingOptions, "", defaults=True) | _NETWORK | _flags(Recipe, "Recipe: ", defaults=True)
_TARGETED = _LearnerFlags.__annotations__ | _TRAINING
TrainingOptions = TypedDict("TrainingOptions", _TARGETED, total=False)  # type: ignore[misc]
ValidationOptions = TypedDict(  # type: ignore[misc]
    "ValidationOptions",
    {name: flag for name, flag in _TARGETED.items() if name not in ("test_fraction", "split_file")},
    total=False,
)
_PRETRAINING = {k: flag for k, flag in _TRAINING.items() if k not in (*IDLE, *UNSPLIT)}
PretrainingFlags = TypedDict(  # type: ignore[misc]
    "PretrainingFlags", _PRETRAINING | _flags(PretrainingOptions, "Pretraining: ", defaults=True), total=False
)
ServingFlags = TypedDict("ServingFlags", _flags(ServingOptions, "Service: ", defaults=True), total=False)  # type: ignore[misc]


def changed_arguments(command: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a command that are not its defaults, with those of `options` beside the others."""
    default = {name: parameter.default for name, parameter in signature(command).parameters.items()}
    own = {name: value for name, value in values.items() if name != "options" and value != default[name]}
    return own | (values.get("options") or {})


def overrides(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options as `load_model` takes them: a size of one number, here a tuple of one, applies to every axis."""
    values = dict(options or {})
    size = values.get("input_size", ())
    return values | ({"input_size": size[0]} if len(size) == 1 else {})
