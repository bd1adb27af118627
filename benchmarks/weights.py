"""Compare outputs of loaded weights with those of the libraries that wrote the files.

`python benchmarks/weights.py` builds a small checkpoint of every kind (tests/checkpoints.py) and writes a table of the
largest differences. With `--data FOLDER` it also compares a published DeiT-Tiny on photographs, with preprocessing.
"""

import csv
import importlib.util
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import ndvit._torchvision  # noqa: F401

# isort: split
import timm
import torch
import transformers
from cyclopts import App
from PIL import Image
from safetensors.torch import load_file
from tqdm import tqdm

from ndvit import load_model
from ndvit.weights.reading.files import read_tensors

UNCHECKED = (
    "Published files other than DeiT-Tiny: Google's .npz, torchvision's .pth, the .pth of the original releases, and "
    "the safetensors of the hub. Names and shapes of the small checkpoints follow the code that writes these files.",
    "The forward pass in JAX. The reference for Google's files is the definition in float64, and timm's loader.",
    "The epsilon of Flax's GroupNorm in the stems of the hybrids (1e-6, its documented default). No file contains it.",
    "The original code of DeiT, MAE, DINOv2 and DINOv3. Their files are made from timm's ports by renaming tensors.",
    "The code of the article. Its files are compared with the description in the article.",
    "Whether a release was trained with the epsilon, activation and number of heads that are usual for its layout. If "
    "neither a config.json nor the table of published weights contains them, the load report lists them as assumed.",
    "Axial RoPE-ViTs of timm with absolute positions (vit_*_rope_ape_*). They have the same tensors as a DeiT-III, "
    "so a file without config.json is read as a DeiT-III.",
)
app = App(help=__doc__)


def load_cases() -> ModuleType:
    """Import the table of small checkpoints from the tests."""
    tests = Path(__file__).resolve().parents[1] / "tests"
    sys.path.insert(0, str(tests))
    spec = importlib.util.spec_from_file_location("checkpoints", tests / "checkpoints.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["checkpoints"] = module
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def compare(name: str, case: Any, seed: int) -> dict[str, Any]:
    """Build one checkpoint, load it, and compare the outputs for three random inputs."""
    with tempfile.TemporaryDirectory() as folder:
        sample = case(Path(folder), seed)
        tensors = len(read_tensors(sample.path).tensors)
        start = time.perf_counter()
        model = load_model(sample.path, **sample.overrides)
        seconds = time.perf_counter() - start
        x = torch.randn(3, *sample.shape, generator=torch.Generator().manual_seed(seed))
        expected = sample.reference(x)
        difference = float((model(x) - expected).abs().max())
    return {
        "kind": model.load_report.kind,
        "variant": name,
        "container": sample.container,
        "reference": sample.library,
        "tensors": tensors,
        "largest difference": difference,
        "largest value": float(expected.abs().max()),
        "seconds to load": seconds,
        "agrees": model.load_report.kind == sample.kind and difference < sample.tolerance,
    }


@torch.no_grad()
def compare_published(data: Path) -> list[str]:
    """Compare the DeiT-Tiny in `data` on photographs: with both preprocessings, at a larger size, and for signals."""
    torch.set_num_threads(1)
    file = data / "weights" / "deit_tiny_patch16_224.safetensors"
    pictures = sorted((data / "images" / "signdigits").glob("*/*.JPG"))
    pictures = pictures[:: len(pictures) // 20][:20]
    lines = []

    theirs = timm.create_model("deit_tiny_patch16_224").eval()
    theirs.load_state_dict(load_file(file))
    ours = load_model(file)
    for crop in (0.875, 0.9):  # DeiT's own evaluation, and timm's default
        model = load_model(file, preprocess={"crop_fraction": crop})
        settings = timm.data.resolve_model_data_config(theirs) | {"crop_pct": crop}
        transform = timm.data.create_transform(**settings)
        images = [Image.open(path).convert("RGB") for path in tqdm(pictures, desc=f"images with crop {crop}")]
        x, y = (torch.stack([prepare(image) for image in images]) for prepare in (model.preprocess, transform))
        a, b = model(x), theirs(y)
        lines.append(
            f"- 224 pixels, crop {crop}, {len(images)} photographs: inputs differ by {float((x - y).abs().max()):.1e}, "
            f"logits by {float((a - b).abs().max()):.1e} (largest logit {float(b.abs().max()):.1f}), same top-1 class "
            f"for {int((a.argmax(1) == b.argmax(1)).sum())} of {len(images)}"
        )

    large = timm.create_model("deit_tiny_patch16_224", img_size=384).eval()
    filtered = timm.models.vision_transformer.checkpoint_filter_fn(load_file(file), large)
    large.load_state_dict(filtered)
    model = load_model(file, input_size=384)
    x = torch.stack([model.preprocess(image) for image in images])
    a, b = model(x), large(x)
    change = float((model.network.pos_embed - large.pos_embed).abs().max())
    lines.append(
        f"- 384 pixels: resampled positions differ by {change:.1e}, "
        f"logits by {float((a - b).abs().max()):.1e} (largest logit {float(b.abs().max()):.1f}), same top-1 class for "
        f"{int((a.argmax(1) == b.argmax(1)).sum())} of {len(images)}"
    )
    signals = load_model(file, input_size=(1024,))
    out = signals(torch.randn(2, 3, 1024, generator=torch.Generator().manual_seed(0)))
    finite = bool(out.isfinite().all())
    lines.append(f"- signals of 3 x 1024: shape of the outputs {tuple(out.shape)}, finite: {finite}")
    for title, loaded in (("224 pixels", ours), ("384 pixels", model), ("signals of 3 x 1024", signals)):
        assert loaded.load_report is not None
        report = replace(loaded.load_report, source=f"FOLDER/{file.relative_to(data)}")  # no path of this machine
        lines += ["", f"Load report for {title}:", "", *(f"    {line}" for line in str(report).split("\n"))]
    return lines


def to_markdown(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table; the largest difference of each row is in scientific notation."""
    formats = {"largest difference": "{:.1e}", "largest value": "{:.2f}", "seconds to load": "{:.3f}"}
    titles = [title for title in rows[0] if title != "agrees"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in rows:
        lines.append("| " + " | ".join(formats.get(title, "{}").format(row[title]) for title in titles) + " |")
    return lines


@app.default
def main(*, data: Path | None = None, output: Path | None = None, seed: int = 0) -> None:
    """Compare every kind of checkpoint and print the table.

    Args:
        data: folder with weights/deit_tiny_patch16_224.safetensors and images/signdigits.
        output: folder for weights_checked.csv and weights_checked.md; by default nothing is written.
        seed: seed of parameters and inputs.
    """
    if data is not None and not (data / "weights" / "deit_tiny_patch16_224.safetensors").is_file():
        raise SystemExit(f"--data {data}: expected weights/deit_tiny_patch16_224.safetensors in this folder")
    cases = load_cases().CASES
    transformers.utils.logging.disable_progress_bar()  # progress bars of every file
    transformers.utils.logging.set_verbosity_error()
    bar = tqdm(cases.items(), desc="checkpoints", disable=None)
    rows = [compare(name, case, seed) for name, case in bar]
    text = [
        "# Weights of other libraries: comparison of outputs",
        "",
        "Small checkpoints of every layout are built by the library that writes the layout. Their random weights are",
        "large enough that every tensor affects the outputs. ndvit loads them, and the outputs of both libraries are",
        "compared in float32 on a CPU. Written by `python benchmarks/weights.py --data FOLDER --output docs`",
        f"(torch {torch.__version__}, seed {seed}).",
        "",
        "| layout | checkpoints | largest difference | largest output |",
        "|---|---|---|---|",
    ]
    for kind in sorted({row["kind"] for row in rows}):
        group = [row for row in rows if row["kind"] == kind]
        worst, largest = max(row["largest difference"] for row in group), max(row["largest value"] for row in group)
        text.append(f"| {kind} | {len(group)} | {worst:.1e} | {largest:.1f} |")
    if data is not None:
        text += ["", "## Published DeiT-Tiny", "", *compare_published(data)]
    text += ["", "## Not checked", "", *(f"- {line}" for line in UNCHECKED)]
    text += ["", "## Every checkpoint", "", *to_markdown(rows)]
    print("\n".join(text))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "weights_checked.md").write_text("\n".join(text) + "\n")
        with (output / "weights_checked.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        print(f"\nwritten: {output / 'weights_checked.md'} and {output / 'weights_checked.csv'}")
    bad = [row["variant"] for row in rows if not row["agrees"]]
    if bad:
        raise SystemExit(f"the outputs of {len(bad)} checkpoints differ: {', '.join(bad)}")


if __name__ == "__main__":
    app()
