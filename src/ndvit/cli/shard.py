from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ndvit.cli.options import ReadingFlags
from ndvit.cli.printing import out


def shard(
    source: str,
    output: Path,
    *,
    task: str = "classification",
    labels: bool = True,
    chunk_size: str = "8MB",
    val_fraction: float = 0.0,
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
    options: Annotated[ReadingFlags | None, Parameter(name="*")] = None,
) -> None:
    """Write a source into shards, for training from a large disk, from S3 or from a web server.

    `ndvit train`, `pretrain`, `evaluate`, `embed` and `predict` then take the folder, or its address (s3://..., gs://...,
    https://...) after it was copied there.

    Args:
        source: Labelled data, as for train.
        output: The folder of the shards, which appears when it is complete.
        task: What the targets are: classification, multilabel or regression.
        labels: Whether there are labels. Without, all examples are the training set, for pretrain and predict.
        chunk_size: Bytes in a chunk, which is what is fetched at once.
        val_fraction: Share of the training examples that become a validation set.
        seed: Seed of the split and of the order in the shards.
        force: Replace existing shards.
        progress: Show progress bars.
        options: How the source is read and split.
    """
    from ndvit.data.sharding import describe, shard

    folder = shard(
        source,
        output,
        task=task,
        labels=labels,
        chunk_size=chunk_size,
        val_fraction=val_fraction,
        seed=seed,
        force=force,
        progress=progress,
        log=out,
        **(options or {}),
    )
    out(describe(folder))
