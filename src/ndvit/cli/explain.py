from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ndvit.cli.options import InferenceOptions
from ndvit.cli.printing import out, remark
from ndvit.config.bounds import counted
from ndvit.config.names import Language


def explain(
    run: str,
    files: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    output: Path,
    target: str | None = None,
    method: str | None = None,
    layers: list[int] | None = None,
    heads: list[int] | None = None,
    steps: int = 50,
    occlude: list[int] | None = None,
    bands: int | None = None,
    language: Language = "en",
    force: bool = False,
    options: Annotated[InferenceOptions | None, Parameter(name="*")] = None,
) -> None:
    """Draw which samples, pixels or voxels of examples decided the answers.

    Args:
        run: A run folder, or weights as `info` takes them.
        files: Images, recordings, files of arrays (.npy, .npz, .ts, .tsv), or folders of them.
        output: A page (.html), or a folder for the page, the relevance as .npy files, and a table as JSON.
        target: Name or index of the output that is explained. [default: the highest output of each example]
        method: attention, rollout, gradient_rollout, midpoint_rollout, midpoint_gradient_rollout, gradient,
            gradient_x_input, integrated_gradients, occlusion or contributions. [default: what measures best for the
            network]
        layers: Blocks whose attention counts; negative ones count from the end. [default: last for attention, else all]
        heads: Attention heads that count. [default: all]
        steps: Steps of integrated gradients.
        occlude: Samples along each axis that occlusion replaces at a time. [default: 32 windows]
        bands: Number of octaves of frequency whose relevance is drawn, too. [default: up to 6 for signals, 0 for none]
        language: Language of the page's words.
        force: Replace an existing output.
        options: How files are read, and where the model runs.
    """
    from ndvit import model
    from ndvit.evaluation.words import language as written_in
    from ndvit.evaluation.words import translated
    from ndvit.explain.bands import usual_bands
    from ndvit.explain.explain import reads_signals
    from ndvit.explain.page import write_explanations
    from ndvit.files import refuse_existing

    page = output.suffix.lower() in (".html", ".htm")
    refuse_existing(output, force, kind="file" if page else "folder")
    others: dict[str, Any] = dict(options or {})
    opened = model.load_model(run, ema=others.pop("ema", None))
    if bands is None and reads_signals(opened):
        bands = usual_bands(opened.input_shape[1])
    explanations = opened.explain(
        *files,
        target=int(target) if target is not None and target.isdecimal() and target not in opened.classes else target,
        method=method,  # type: ignore[arg-type]  # checked by explain
        layers=layers,
        heads=heads,
        steps=steps,
        occlude=occlude,
        bands=bands or None,
        log=remark,
        **others,
    )
    with written_in(language):
        write_explanations(explanations, output, f"{translated('What decided')} · {Path(run).name}")
    out(f"{output}: {counted(len(explanations), 'example')} explained")
