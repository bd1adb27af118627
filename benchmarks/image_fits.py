"""One fit of the image benchmark in its own process: `python image_fits.py JOB.json RESULT.json`.

Only the library that trains is imported, so that memory and time are those of this library.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from image_peers import fit_timm, fit_transformers
from image_work import Fitted, Work, peak_megabytes


def main(job: Path, result: Path) -> None:
    """Run the fit and write its result."""
    work = Work.read(job)
    import torch

    torch.set_num_threads(work.threads)
    fitted = FITS[work.library](work)
    result.write_text(json.dumps(asdict(fitted) | {"megabytes": peak_megabytes()}), encoding="utf-8")


def fit_ours(work: Work) -> Fitted:
    """Train with `ndvit.train`, including the report and all other files."""
    import yaml

    import ndvit

    with tempfile.TemporaryDirectory() as folder:
        run = ndvit.train(
            work.source,
            weights=work.weights,
            seed=work.seed,
            device=work.device,
            workers=work.workers,
            output=Path(folder) / "run",
            progress=False,
            log=lambda line: print(line, file=sys.stderr),
            **work.options,
        )
        settings = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    assert run.evaluation is not None
    steps = 0 if settings.get("head") == "solved" else run.fit.steps
    batch = settings["batch_size"] * settings["accumulate"]
    size = run.model.preprocess.size
    rows, names = run.evaluation.probabilities.tolist(), list(run.evaluation.names)
    return Fitted(rows, names, run.fit.seconds, steps, batch, size)


FITS: dict[str, Callable[[Work], Fitted]] = {
    "ndvit": fit_ours,
    "timm": lambda work: fit_timm(work, **work.options),
    "transformers": lambda work: fit_transformers(work, **work.options),
}

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
