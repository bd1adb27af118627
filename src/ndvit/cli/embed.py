from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ndvit.cli.options import LabelledOptions, Split
from ndvit.cli.printing import out, remark


def embed(
    run: str,
    source: str,
    *,
    output: Path | None = None,
    knn: bool = False,
    linear: bool = False,
    split: Split = "auto",
    seed: int | None = None,
    force: bool = False,
    options: Annotated[LabelledOptions | None, Parameter(name="*")] = None,
) -> None:
    """Write the features before the head of a network, or score them by simple classifiers.

    Args:
        run: A run folder, or weights as `info` takes them.
        source: Labelled data, as for train; or files and folders, as for predict.
        output: A .npz or .parquet file for embeddings, names, labels and splits.
        knn: Classify the test split by the nearest neighbours in the training split.
        linear: Classify the test split by a logistic regression on the training split.
        split: Only these examples; auto is all, with labels or without.
        seed: Seed of the split of a source that has none. [default: that of the model's training, if it was on this
            source; else 0]
        force: Replace an existing output.
        options: How data are read (by default as in the model's training), and where the model runs.
    """
    from ndvit import model

    if output is None and not (knn or linear):
        raise ValueError("no output: give --output FILE.npz (or .parquet), or --knn or --linear to score embeddings")
    if (knn or linear) and split in ("test", "train"):
        raise ValueError(f"--knn and --linear train on one split and test on another: leave --split {split} out")
    embeddings = model.embed(
        run,
        source,
        output=output,
        force=force,
        split="all" if knn or linear else split,
        seed=seed,
        log=remark,
        **(options or {}),
    )
    if output is not None:
        out(f"{output}: {len(embeddings):,} embeddings of {embeddings.vectors.shape[1]} numbers")
    if knn:
        out(f"knn    {embeddings.score('knn').headline()}")
    if linear:
        out(f"linear {embeddings.score('linear', seed or 0).headline()}")
