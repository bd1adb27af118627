"""Weights of other libraries, loaded here and compared with those libraries' own answers.

`python benchmarks/weights.py` builds a small checkpoint of every kind (tests/checkpoints.py) and tabulates the largest
difference. With `--data FOLDER` a published DeiT-Tiny is compared on photographs, too, preprocessing included.
"""

import csv
import importlib.util
import sys
import tempfile
import time
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
from ndvit.weights.reading.files import read_checkpoint

UNCHECKED = (
    "the published bytes of any release but DeiT-Tiny's: Google's .npz, torchvision's .pth, facebook's .pth, the hub's "
    "safetensors. Names and shapes follow the lists of tensors read from the code that writes them",
    "JAX's own forward pass: Google's numbers are computed from the definition (float64) and by timm's loader",
    "Flax's GroupNorm epsilon in the hybrids' stems (1e-6, its documented default): no file tells it",
    "the original code of DeiT, MAE, DINOv2 and DINOv3: their files are made from timm's ports by renaming",
    "the article's own code: its files are compared with its description",
    "whether a release was trained with the epsilon, activation and heads that are usual for its layout; where no "
    "config.json or row of the table tells them, the report of loading says that they were assumed",
    "axial RoPE-ViTs of timm with absolute positions (vit_*_rope_ape_*): their tensors are those of a DeiT-III, and a "
    "file of them without config.json is read as one",
)
app = App(help=__doc__)


def load_cases() -> ModuleType:
    """The table of small checkpoints, imported from the tests by path."""
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
    """Build one checkpoint, load it, and compare answers to three random inputs."""
    with tempfile.TemporaryDirectory() as folder:
        sample = case(Path(folder), seed)
        tensors = len(read_checkpoint(sample.path).tensors)
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
    """The DeiT-Tiny under `data`, on photographs: through both preprocessings, larger, and as a network for signals."""
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
        images = [Image.open(path).convert("RGB") for path in tqdm(pictures, desc=f"pictures at crop {crop}")]
        x, y = (torch.stack([prepare(image) for image in images]) for prepare in (model.preprocess, transform))
        a, b = model(x), theirs(y)
        lines.append(
            f"224, crop {crop}, {len(images)} photographs: inputs differ by {float((x - y).abs().max()):.1e}, logits "
            f"by {float((a - b).abs().max()):.1e} of {float(b.abs().max()):.1f}, top-1 agrees on "
            f"{int((a.argmax(1) == b.argmax(1)).sum())} of {len(images)}"
        )

    large = timm.create_model("deit_tiny_patch16_224", img_size=384).eval()
    filtered = timm.models.vision_transformer.checkpoint_filter_fn(load_file(file), large)
    large.load_state_dict(filtered)
    model = load_model(file, input_size=384)
    x = torch.stack([model.preprocess(image) for image in images])
    a, b = model(x), large(x)
    lines.append(
        f"384: resampled positions differ by {float((model.pos_embed - large.pos_embed).abs().max()):.1e}, "
        f"logits by {float((a - b).abs().max()):.1e} of {float(b.abs().max()):.1f}, top-1 agrees on "
        f"{int((a.argmax(1) == b.argmax(1)).sum())} of {len(images)}"
    )
    signals = load_model(file, input_size=(1024,))
    out = signals(torch.randn(2, 3, 1024, generator=torch.Generator().manual_seed(0)))
    lines.append(
        f"as a network for signals of 3 x 1024: outputs {tuple(out.shape)}, finite: {bool(out.isfinite().all())}"
    )
    for title, network in (("224", ours), ("384", model), ("3 x 1024", signals)):
        lines += [
            "",
            f"Report of loading at {title}:",
            "",
            *(f"    {line}" for line in str(network.load_report).split("\n")),
        ]
    return lines


def to_markdown(rows: list[dict[str, Any]]) -> list[str]:
    """A table with the largest difference of each row in scientific notation."""
    shown = {"largest difference": "{:.1e}", "largest value": "{:.2f}", "seconds to load": "{:.3f}"}
    titles = [title for title in rows[0] if title != "agrees"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in rows:
        lines.append("| " + " | ".join(shown.get(title, "{}").format(row[title]) for title in titles) + " |")
    return lines


@app.default
def main(*, data: Path | None = None, output: Path | None = None, seed: int = 0) -> None:
    """Compare every kind of checkpoint and print the table.

    Args:
        data: folder with weights/deit_tiny_patch16_224.safetensors and images/signdigits.
        output: folder for weights.csv and weights.md; nothing is written without it.
        seed: of parameters and inputs.
    """
    if data is not None and not (data / "weights" / "deit_tiny_patch16_224.safetensors").is_file():
        raise SystemExit(f"{data} has no weights/deit_tiny_patch16_224.safetensors")
    cases = load_cases().CASES
    transformers.utils.logging.disable_progress_bar()  # of every file it writes
    transformers.utils.logging.set_verbosity_error()
    bar = tqdm(cases.items(), desc="checkpoints", disable=None)
    rows = [compare(name, case, seed) for name, case in bar]
    text = [
        "# Weights of other libraries",
        "",
        "Small checkpoints of every layout, built by the library that writes it, with weights that make every tensor",
        "count: loaded here, run here and there in float32 on a CPU, and compared. Written by",
        f"`python benchmarks/weights.py --data FOLDER --output docs` (torch {torch.__version__}, seed {seed}).",
        "",
        "| kind | checkpoints | largest difference | of answers up to |",
        "|---|---|---|---|",
    ]
    for kind in sorted({row["kind"] for row in rows}):
        group = [row for row in rows if row["kind"] == kind]
        worst, largest = max(row["largest difference"] for row in group), max(row["largest value"] for row in group)
        text.append(f"| {kind} | {len(group)} | {worst:.1e} | {largest:.1f} |")
    if data is not None:
        text += ["", "## Published DeiT-Tiny", "", *compare_published(data)]
    text += ["", "## What could not be checked here", "", *(f"- {line}" for line in UNCHECKED)]
    text += ["", "## Every checkpoint", "", *to_markdown(rows)]
    print("\n".join(text))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "weights.md").write_text("\n".join(text) + "\n")
        with (output / "weights.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        print(f"\nwritten: {output / 'weights.md'} and {output / 'weights.csv'}")
    bad = [row["variant"] for row in rows if not row["agrees"]]
    if bad:
        raise SystemExit(f"{len(bad)} checkpoints do not agree: {', '.join(bad)}")


if __name__ == "__main__":
    app()
