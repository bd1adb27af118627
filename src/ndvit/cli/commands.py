"""The command line: one function a command, flags from the fields of the dataclasses. Nothing imports this module.

torch and everything built on it are imported inside the commands, so that `--help` answers at once.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, get_args

from cyclopts import App, ArgumentCollection, CycloptsError, Group, Parameter, UnknownOptionError
from cyclopts.config import Dict
from docstring_parser import parse_from_object

from ndvit import __version__
from ndvit.config import ViTConfig, list_models, named_config
from ndvit.config.recipe import Recipe

if TYPE_CHECKING:
    from ndvit.evaluation.metrics import Evaluation
    from ndvit.inference.answers import Prediction
    from ndvit.training.run import Run

_DECIDED_ELSEWHERE = {
    "num_classes": "the data",
    "in_channels": "the data",
    "drop_path_rate": "the recipe",
}


def _flags(options: type, tell: bool = False) -> dict[str, Any]:
    """The flags of a dataclass, whose help, with the default to `tell`, is the docstring of each field."""
    docs = _docs(options)
    told = {f.name: f" [default: {f.default}]" if tell and f.default is not None else "" for f in fields(options)}
    return {f.name: Annotated[f.type, Parameter(help=f"{docs[f.name]}{told[f.name]}")] for f in fields(options)}


def _docs(options: type) -> dict[str, str]:
    """The docstring of each field of a dataclass."""
    return {p.arg_name: " ".join((p.description or "").split()) for p in parse_from_object(options).params}


# Only what the user gives overrides a named model or a preset, so these flags have no defaults, as the keys of partial
# dicts; they are built from the fields, so that each is declared in one place.
ModelOptions = TypedDict(  # type: ignore[misc]
    "ModelOptions",
    {name: flag for name, flag in _flags(ViTConfig).items() if name not in _DECIDED_ELSEWHERE},
    total=False,
)
RecipeOptions = TypedDict("RecipeOptions", _flags(Recipe, tell=True), total=False)  # type: ignore[misc]
_MOST_ABSENT = 20  # classes without examples that a table has rows for
_MODEL, _RECIPE = Group("Model", sort_key=2), Group("Recipe", sort_key=3)

app = App(
    name="ndvit",
    version=__version__,
    help="Vision Transformers for signals and images, trained on your own data.",
    default_parameter=Parameter(negative_iterable=(), consume_multiple=True),
    end_of_options_delimiter="--",
)
app.suppress_keyboard_interrupt = app.meta.suppress_keyboard_interrupt = False  # main speaks of interruptions


@app.command
def train(
    source: str | None = None,
    *,
    preset: str = "auto",
    model: str | None = None,
    weights: str | None = None,
    members: int = 1,
    teacher: str | None = None,
    output: Path | None = None,
    force: bool = False,
    resume: Path | None = None,
    test_fraction: float = 0.2,
    skip_bad: bool = False,
    progress: bool = True,
    options: Annotated[ModelOptions | None, Parameter(name="*", group=_MODEL)] = None,
    recipe: Annotated[RecipeOptions | None, Parameter(name="*", group=_RECIPE)] = None,
) -> None:
    """Train a classifier on a source, and leave a run folder with the model and a report.

    Args:
        source: A built-in set (digits, gunpoint, ...), ucr:NAME, hf:owner/name (pictures of the hub), a folder with
            one folder a class, a .csv of paths and labels, or a .ts, .tsv, .npz or .npy file.
        preset: A network and a recipe that belong together; `ndvit presets` lists them. auto is signal for signals,
            finetune for pictures with --weights, small_data for pictures without. Every other flag takes the place of
            the preset's value.
        model: A name that `ndvit models` lists; vit_SIZE, signal_SIZE and compact_SIZE take dimensions
            and patch from the data. [default: the preset's, or the network of the weights]
        weights: Trained weights to begin with: a file, a run folder, a name that `ndvit weights` lists, or
            hf:owner/name.
        members: Networks in an ensemble, trained one after the other from the seeds seed, seed + 1, ...
        teacher: Whom the network learns from beside the labels: minirocket, multirocket, an earlier run, or weights as
            above.
        output: The run folder. [default: a new one under runs/]
        force: Replace an existing run folder.
        resume: Continue the interrupted run in this folder; every other setting is the run's own.
        test_fraction: Share held out for testing where the source has no test set.
        skip_bad: Leave unreadable files out instead of stopping.
        progress: Show progress bars.
        options: Fields of ViTConfig.
        recipe: Fields of Recipe.
    """
    given = {name for name, value in locals().items() if value != signature(train).parameters[name].default}
    from ndvit.training import run as runs

    if resume is not None:
        if given - {"resume", "progress"}:
            raise ValueError("--resume takes every setting from the run's config.yaml: give it alone")
        _finish(runs.resume(resume, progress=progress))
        return
    if source is None:
        raise ValueError("what shall be trained on? Give a SOURCE, for example: ndvit train gunpoint")
    _finish(
        runs.train(
            source,
            preset=preset,
            model=model,
            weights=weights,
            members=members,
            teacher=teacher,
            output=output,
            force=force,
            test_fraction=test_fraction,
            skip_bad=skip_bad,
            progress=progress,
            **(recipe or {}),
            **(options or {}),
        )
    )


@app.command
def evaluate(
    run: str,
    source: str,
    *,
    split: Literal["auto", "test", "train", "all"] = "auto",
    format: Literal["table", "json"] = "table",
    skip_bad: bool = False,
    batch_size: int = 64,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> None:
    """Test a trained model on labelled data.

    Args:
        run: A run folder, weights as `info` takes them, or a .onnx or .xml that `export` wrote.
        source: Labelled data, as for train.
        split: auto is the test set where there is one or where the model was trained on this source; else all.
        format: A table, or JSON with the confusion matrix.
        skip_bad: Leave unreadable files out instead of stopping.
        batch_size: Examples at a time.
        device: Where to compute.
    """
    from ndvit.inference import answers

    result = answers.evaluate(
        run, source, split=split, skip_bad=skip_bad, batch_size=batch_size, device=device, say=_remark
    )
    if format == "json":
        import json

        print(json.dumps(result.to_dict(), indent=1, ensure_ascii=False))
    else:
        _print_evaluation(result)


@app.command
def predict(
    run: str,
    files: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    format: Literal["table", "csv", "json"] = "table",
    skip_bad: bool = False,
    batch_size: int = 64,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> None:
    """Name the class of new examples, with probabilities.

    Args:
        run: A run folder, weights as `info` takes them, or a .onnx or .xml that `export` wrote.
        files: Pictures, recordings, files of arrays (.npy, .npz, .ts, .tsv), or folders of them.
        format: A table of the likeliest classes; csv or json with the probability of every class.
        skip_bad: Leave unreadable files out instead of stopping.
        batch_size: Examples at a time.
        device: Where to compute.
    """
    from ndvit.inference import answers

    predictions = answers.predict(run, *files, skip_bad=skip_bad, batch_size=batch_size, device=device, say=_remark)
    _print_predictions(predictions, format)


@app.command
def embed(
    run: str,
    source: str,
    *,
    output: Path | None = None,
    knn: bool = False,
    linear: bool = False,
    split: Literal["auto", "test", "train", "all"] = "auto",
    test_fraction: float | None = None,
    seed: int | None = None,
    force: bool = False,
    skip_bad: bool = False,
    batch_size: int = 64,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> None:
    """Write what a network makes of examples before its head, or say what it is worth for classification as it is.

    Args:
        run: A run folder, or weights as `info` takes them.
        source: Labelled data, as for train; or files and folders, as for predict.
        output: A .npz or .parquet file for embeddings, names, labels and splits.
        knn: Classify the test split by the nearest neighbours in the training split.
        linear: Classify the test split by a logistic regression on the training split.
        split: Only these examples; auto is all, with labels or without.
        test_fraction: Share of each class that is the test split where the source has none. [default: as the model was
            trained, if on this source; else 0.2]
        seed: Seed of that split. [default: likewise, or 0]
        force: Replace an output that exists.
        skip_bad: Leave unreadable files out instead of stopping.
        batch_size: Examples at a time.
        device: Where to compute.
    """
    from ndvit.inference import embed as embedding

    if output is None and not (knn or linear):
        raise ValueError("where to? Give --output FILE.npz (or .parquet), or --knn or --linear to score the embeddings")
    if (knn or linear) and split in ("test", "train"):
        raise ValueError(f"--knn and --linear learn from one split and test on another: leave --split {split} out")
    made = embedding.embed(
        run,
        source,
        output=output,
        force=force,
        split="all" if knn or linear else split,
        test_fraction=test_fraction,
        seed=seed,
        skip_bad=skip_bad,
        batch_size=batch_size,
        device=device,
        say=_remark,
    )
    if output is not None:
        print(f"{output}: {len(made):,} embeddings of {made.vectors.shape[1]} numbers")
    for how in [name for name, wanted in {"knn": knn, "linear": linear}.items() if wanted]:
        result = made.score(how, seed or 0)  # type: ignore[arg-type]  # one of the two
        low, high = result.accuracy_interval
        right = len(result) - len(result.mistakes)
        print(f"{how:6} accuracy {result.accuracy:.4f}  ({right:,} of {len(result):,}; 95 % {low:.4f} to {high:.4f})")


@app.command
def models() -> None:
    """List the models: name, input, parameters, multiply-adds of one example."""
    from ndvit.network import count_cost

    print(f"{'name':26} {'input':>14} {'parameters':>12} {'GMACs':>9}")
    for name in list_models():
        config = named_config(name)
        parameters, macs = count_cost(config)
        size = "x".join(map(str, (config.in_channels, *config.input_size)))
        print(f"{name:26} {size:>14} {parameters:>12,} {macs / 1e9:>9.3f}")
    print(
        "\nvit_SIZE alone, signal_SIZE and compact_SIZE take their input and patch from the data; 1000 classes are "
        "counted, one multiply-add is one MAC."
    )


@app.command
def presets(name: str | None = None, /) -> None:
    """List the presets: what each is for; or say all that one decides, and where its values are from.

    Args:
        name: Only this one, with its network, its rules, and every value that differs from the default.
    """
    from ndvit.training.presets import AUTO, PRESETS, check_preset

    if name is None:
        print(f"{'auto':13} the default: one of these, by the model and the data; `ndvit presets auto` says how")
        for known, preset in PRESETS.items():
            print(f"{known:13} {preset.about}")
        print("\n`ndvit presets NAME` shows the values of one; every flag of `ndvit train` takes the place of one.")
        return
    check_preset(name)
    if name == "auto":
        print(f"auto: {AUTO}")
        return
    preset = PRESETS[name]
    print(f"{name}: {preset.about}\nsource   {preset.source or 'measured by ndvit'}")
    print(f"network  {preset.model or 'that of the trained weights'}")
    for rule in preset.rules():
        print(f"rule     {rule}")
    docs = _docs(ViTConfig) | _docs(Recipe)
    for field, value in {**preset.network, **preset.recipe}.items():
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        meaning = re.split(r"[.;](?: |$)(?![^(]*\))", docs[field])[0]  # the first sentence
        print(f"  {field:18} {shown:14} {meaning}")
    print("Every other option has its default, see `ndvit train --help`; one that you give takes the preset's place.")


@app.command
def weights(words: Annotated[list[str] | None, Parameter(negative=())] = None, /) -> None:
    """List published weights: name, input, ImageNet-1k top-1 in percent, classes, licence.

    Args:
        words: Only names that contain all of these, for example: dinov2 base
    """
    from ndvit.weights.reading.zoo import find_weights, list_weights

    chosen = [name for name in list_weights() if all(word.lower() in name.lower() for word in words or ())]
    if not chosen:
        wanted = " and ".join(words or ())
        raise ValueError(f"no published weights with {wanted} in their name: `ndvit weights` lists them all")
    width = max(map(len, chosen))
    print(f"{'name':{width}}  {'input':>9}  {'top-1':>5}  {'classes':12}  licence")
    for row in filter(None, map(find_weights, chosen)):
        size, top1 = " x ".join(map(str, row.input_size)), f"{row.top1:.1f}" if row.top1 else "–"
        print(f"{row.name:{width}}  {size:>9}  {top1:>5}  {row.classes or '–':12}  {row.licence}")
    print("\nTop-1 as published, – where unknown. Weights have their makers' licences: read them before use.")


@app.command
def convert(
    source: str,
    output: Path,
    *,
    to: Literal["ndvit", "timm", "transformers", "torchvision"],
    member: int | None = None,
    force: bool = False,
    options: Annotated[ModelOptions | None, Parameter(name="*", group=_MODEL)] = None,
) -> None:
    """Write weights of any layout as ndvit or another library reads them, adapted where that is wanted.

    Args:
        source: A run folder, a file of weights, a name that `ndvit weights` lists, or hf:owner/name.
        output: A .safetensors or .pth file; for timm and transformers also a folder, which gets a config.json, too.
        to: ndvit keeps everything in one .safetensors: config, classes and preprocessing.
        member: The number of one network of an ensemble, from 0; other libraries have no ensembles.
        force: Replace an output that exists.
        options: Fields of ViTConfig: what the weights do not tell, and what they shall be adapted to.
    """
    from ndvit.network.committee import get_member
    from ndvit.weights.convert import export_state_dict, refuse_existing
    from ndvit.weights.file import save_model
    from ndvit.weights.loading import load_model

    refuse_existing(output, force)
    model = load_model(source, **_overrides(options))
    print(model.load_report, file=sys.stderr)
    if member is not None:
        model = get_member(model, member)
    if to != "ndvit":
        export_state_dict(model, to, output, force)
        if model.temperature != 1:
            _remark(
                f"{to} has no place for the temperature {model.temperature:.2f}, which stays behind: divide logits by "
                "it before the softmax for calibrated probabilities"
            )
    elif output.suffix != ".safetensors":
        raise ValueError(f"ndvit's models are .safetensors files, got {output}")
    else:
        save_model(model, output)
    print(f"{output}: {len(model.state_dict())} tensors, to be read by {to}")


@app.command
def export(
    run: str,
    *,
    output: Path | None = None,
    format: Literal["onnx", "openvino", "pt2", "torchscript"] = "onnx",
    int8: bool = False,
    data: str | None = None,
    dynamic_batch: bool = True,
    softmax: bool = False,
    preprocess: Literal["beside", "inside"] = "beside",
    mask: bool | None = None,
    min_agreement: float = 0.98,
    force: bool = False,
) -> None:
    """Write a model for ONNX Runtime, OpenVINO or torch alone, after its answers were compared with the model's.

    Args:
        run: A run folder, or weights as `info` takes them.
        output: A .onnx, .xml (OpenVINO, which has a .bin beside it), .pt2 or .ts file. [default: beside the weights]
        format: onnx, openvino, pt2 (torch.export) or torchscript.
        int8: 8-bit integers, of onnx and openvino; needs --data.
        data: Labelled data as for train, or files as for predict: int8 is calibrated on its training set, and answers
            are compared on its test set. [default: the run's own test set, if at hand; else random inputs]
        dynamic_batch: Take any number of examples at a time; else only one.
        softmax: Answer with probabilities, calibrated ones of a calibrated model; else with logits.
        preprocess: Leave mean and standard deviation beside the graph, to whoever calls it; or put them inside, so that
            it takes raw values: pixels from 0 to 255, signals as they are.
        mask: A second input that tells what was observed, for missing values and padding. [default: for signals whose
            preprocessing pads]
        min_agreement: The least share of examples for which int8 must name the same class as the model.
        force: Replace a file that exists.
    """
    from ndvit.exporting import export as exporting

    report = exporting.export(
        run,
        output,
        format=format,
        int8=int8,
        data=data,
        dynamic_batch=dynamic_batch,
        softmax=softmax,
        preprocess=preprocess,
        mask=mask,
        min_agreement=min_agreement,
        force=force,
    )
    print(report)


@app.command
def push(
    run: str,
    repo: str,
    *,
    private: bool = False,
    licence: str | None = None,
    message: str = "Upload with ndvit",
) -> None:
    """Upload a model and its card to the Hugging Face hub, in one commit.

    Args:
        run: A run folder or a model.safetensors.
        repo: owner/name; made if there is none. Log in with `hf auth login` or HF_TOKEN.
        private: Make a new repository private.
        licence: SPDX identifier for the card, such as mit.
        message: The commit's message.
    """
    from ndvit.weights.publish import push_to_hub

    print(push_to_hub(run, repo, private=private, licence=licence, message=message))


@app.command
def info(source: str, *, options: Annotated[ModelOptions | None, Parameter(name="*", group=_MODEL)] = None) -> None:
    """Say what weights are: where they come from, network, classes, preprocessing, and how each tensor was read.

    Args:
        source: A run folder, a file of weights of any known layout, a name that `ndvit weights` lists, or
            hf:owner/name.
        options: Fields of ViTConfig: what the weights do not tell, and what they would be adapted to.
    """
    from ndvit.network import count_cost
    from ndvit.network.committee import Ensemble
    from ndvit.weights.loading import load_model

    model = load_model(source, **_overrides(options))
    parameters, macs = count_cost(model.config)
    print(model.load_report)
    if isinstance(model, Ensemble):
        parameters, macs = parameters * len(model.members), macs * len(model.members)
        print(f"members  {len(model.members)}, and the mean of their probabilities is the answer")
    print(f"size     {parameters:,} parameters, {macs / 1e9:.3f} GMACs an example")
    names = ", ".join(model.classes[:20]) + (", ..." if len(model.classes) > 20 else "")
    print(f"classes  {len(model.classes)}{': ' + names if names else ': the file names none'}")
    sections = {
        "network": model.config.to_dict(),
        "preprocessing": model.preprocess.to_dict() if model.preprocess else {"none": "the file says nothing of it"},
        "provenance": model.provenance,
    }
    for title, values in sections.items():
        print(f"\n{title}")
        for name, value in values.items():
            print(f"  {name:22} {value}")


@app.meta.default
def _main(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Path | None = None,
    debug: bool = False,
) -> Any:
    """Read settings below the flags, then run a command.

    Args:
        *tokens: The command and its flags.
        config: YAML file of settings, such as a run's config.yaml; flags override it.
        debug: Show the traceback of an error.
    """
    below_flags: tuple[Any, ...] = (_refuse_fractions,)
    if config is not None:
        if not config.is_file():
            raise FileNotFoundError(f"no settings at {config}")
        from ndvit.training.run import read_config

        # under the name of every command: a flat dict would lose settings that are named like one, as weights is
        settings = dict.fromkeys(app, read_config(config))
        below_flags = (Dict(settings, source=str(config)), _refuse_fractions)
    app.config = below_flags
    try:
        return app(tokens, exit_on_error=False, print_error=False)
    finally:
        app.config = ()  # the next command of this process has its own


def _refuse_fractions(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """A fraction where a whole number belongs is an error: cyclopts would round it without a word."""
    for argument in arguments:
        kinds = {argument.hint, *get_args(argument.hint)}
        for token in argument.tokens if int in kinds and float not in kinds else ():
            if re.fullmatch(r"[-+]?\d*\.\d*[1-9]\d*", token.value):
                raise ValueError(f"{argument.name} must be a whole number, got {token.value}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The `ndvit` command. Errors of the user's are one message and exit status 2, an interruption is 130."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app.meta(tokens, exit_on_error=False, print_error=False)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `ndvit predict ... | head`: the reader has seen enough
        sys.stderr.close()
        sys.exit(0)
    except (MemoryError, RuntimeError) as error:
        if "--debug" in tokens or not (isinstance(error, MemoryError) or "memory" in str(error)):
            raise
        print(
            "ndvit: out of memory: use a smaller --batch-size (with --accumulate the effective batch stays), "
            f"--grad-checkpointing or a smaller --input-size ({str(error).splitlines()[0]})",
            file=sys.stderr,
        )
        sys.exit(2)
    except (CycloptsError, ValueError, OSError) as error:
        if "--debug" in tokens:
            raise
        print(f"ndvit: {_reason(error)}", file=sys.stderr)
        sys.exit(2)


def _reason(error: Exception) -> str:
    if isinstance(error, UnknownOptionError) and error.token.keyword:
        name = error.token.keyword.lstrip("-").replace("-", "_")
        if name in _DECIDED_ELSEWHERE:
            return f"{name} follows from {_DECIDED_ELSEWHERE[name]} and cannot be set"
    return str(error)


def _overrides(options: ModelOptions | None) -> dict[str, Any]:
    """Options for `load_model`; one number for a size, a tuple of one here, is the same along every axis."""
    given: dict[str, Any] = dict(options or {})
    size = given.get("input_size", ())
    return given | ({"input_size": size[0]} if len(size) == 1 else {})


def _finish(run: "Run") -> None:
    if run.interrupted:
        sys.exit(130)
    assert run.evaluation is not None


def _remark(line: str) -> None:
    print(line, file=sys.stderr)  # so that csv and json on standard output stay clean


def _print_evaluation(result: "Evaluation") -> None:
    low, high = result.accuracy_interval
    right = len(result) - len(result.mistakes)
    print(f"accuracy           {result.accuracy:.4f}  ({right:,} of {len(result):,})")
    print(f"95 % interval      {low:.4f} to {high:.4f}")
    print(f"balanced accuracy  {result.balanced_accuracy:.4f}")
    print(f"log loss           {result.log_loss:.4f}")
    print(f"ECE                {result.ece:.4f}  (expected calibration error, 15 bins)\n")
    rows = [row for row in result.per_class if row.examples]
    absent = len(result.per_class) - len(rows)
    if absent <= _MOST_ABSENT:
        rows, absent = result.per_class, 0
    width = max(5, *(len(row.name) for row in rows))
    print(f"{'class':{width}}  examples  recall  precision      f1")
    for row in rows:
        numbers = [f"{v:.3f}" if v is not None else "–" for v in (row.recall, row.precision, row.f1)]
        print(f"{row.name:{width}}  {row.examples:>8,}  {numbers[0]:>6}  {numbers[1]:>9}  {numbers[2]:>6}")
    if absent:
        print(f"and {absent:,} classes without examples here")


def _print_predictions(predictions: Sequence["Prediction"], format: str) -> None:
    if format == "json":
        import json

        rows = [{"name": p.name, "class": p.label, "probabilities": p.probabilities} for p in predictions]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    elif format == "csv":
        import csv

        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["name", "class", *(predictions[0].probabilities if predictions else ())])
        for p in predictions:
            writer.writerow([p.name, p.label, *(f"{v:.6g}" for v in p.probabilities.values())])
    else:
        width = max((len(p.name) for p in predictions), default=0)
        for p in predictions:
            best = sorted(p.probabilities.items(), key=lambda item: -item[1])[:3]
            print(f"{p.name:{width}}  " + "  ".join(f"{label} {100 * value:.1f} %" for label, value in best))
