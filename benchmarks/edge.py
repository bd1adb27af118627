"""Sizes, times and differences of bundles: python benchmarks/edge.py RUN FILES --output FOLDER

FILES is a folder of files with one example each. For weights of 32 and of 16 bits, a bundle is written into --output,
and a line of a table printed: the size of the graph, the largest difference of an answer from `ndvit predict`, how many
classes are the same, and the median seconds in which predict.py reads and answers a file.
"""

import argparse
import runpy
import statistics
import time
from pathlib import Path

import numpy as np

from ndvit.model import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("files", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    model, quiet = load_model(options.run), {"log": lambda line: None}
    paths = sorted(path for path in options.files.iterdir() if path.is_file())
    start = time.perf_counter()
    expected = np.concatenate([np.asarray(model.predict_proba(str(path), device="cpu", **quiet)) for path in paths])
    seconds = (time.perf_counter() - start) / len(paths)
    print(f"{len(paths)} files; predict_proba of ndvit: {seconds:.4f} s a file")
    print("| weights | model.onnx | largest difference | same class | seconds a file |\n|---|---:|---:|---:|---:|")
    for name, more in (("32 bits", {}), ("16 bits", {"fp16": True})):
        target = options.output / name.replace(" ", "-")
        report = model.export_bundle(target, data=str(options.files), force=True, **more, **quiet)
        program = runpy.run_path(str(target / "predict.py"))
        found, times = [], []
        for path in paths:
            start = time.perf_counter()
            (example, *_), rate = program["read"](path)
            found.append(program["answer"](example, rate))
            times.append(time.perf_counter() - start)
        gap, same = np.abs(np.array(found) - expected).max(), np.mean(np.argmax(found, 1) == expected.argmax(1))
        seconds = statistics.median(times)
        print(f"| {name} | {report.size / 1e6:.1f} MB | {gap:.1e} | {100 * same:.1f} % | {seconds:.4f} |", flush=True)


if __name__ == "__main__":
    main()
