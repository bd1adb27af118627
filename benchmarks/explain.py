"""Measure explanations against planted truth: does the relevance lie where the class was decided?

`python benchmarks/explain.py measure CASE` trains tiny networks on signals, pictures or volumes whose class is that of
one motif at a known place, and measures every method on new examples: one to four minutes on one core for each case.
Results are collected in docs/explain.json, and `python benchmarks/explain.py table` writes them into docs/explain.md.

A motif is a short grating in a soft window; its frequency (in one dimension) or its direction (in more) is the class.
Each example also has a bump, at least as strong as the motif, at another place and in every class. Everything else is
noise.
"""

import json
import math
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from cyclopts import App
from torch import Tensor, nn

from ndvit.explain.methods import Options, relevance
from ndvit.network import create_model
from ndvit.network.committee import Committee
from ndvit.network.encoder_features import EncoderFeatures
from ndvit.network.random_convolutions import RandomConvolutions

CLASSES, TEST, STEPS = 3, 192, 20  # classes, test examples, steps of integrated gradients
SLOW = ("integrated_gradients", "occlusion")
METHODS = ("default", "random", "attention", "rollout", "gradient_rollout", "gradient", "gradient_x_input", *SLOW)
METHODS_OF_FAST = ("default", "random", "contributions", "frozen encoder")
HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs/explain.json"
BEGIN, END = "<!-- benchmarks/explain.py -->", "<!-- end -->"
HEAD = "| method | pointing, by class | smoothed | two motifs | inside | deletion | insertion | passes | randomised |"
app = App(help=__doc__)


@dataclass
class Planted:
    """Examples with planted motifs: x (n, 1, *size), labels (n,), and where the motif is, inside (n, *size)."""

    x: Tensor
    labels: Tensor
    inside: Tensor


def plant(
    n: int, size: tuple[int, ...], width: int, generator: torch.Generator, strength: float = 1.5, second: bool = False
) -> Planted:
    """Noise with one motif and one bump in each example, which do not overlap along the first axis.

    With `second`, the motif of the next class is in the place of the bump.
    """
    dims, labels = len(size), torch.arange(n) % CLASSES
    x = torch.randn(n, *size, generator=generator)
    inside = torch.zeros(n, *size, dtype=torch.bool)
    axes = torch.meshgrid(*[torch.arange(width) + 0.5] * dims, indexing="ij")
    window = torch.stack([torch.sin(math.pi * axis / width) for axis in axes]).prod(0)
    for i, label in enumerate(labels.tolist()):
        place = [int(torch.randint(length - width + 1, (), generator=generator)) for length in size]
        other = list(place)
        while abs(other[0] - place[0]) < width:
            other = [int(torch.randint(length - width + 1, (), generator=generator)) for length in size]
        here, there = ((i, *(slice(p, p + width) for p in corner)) for corner in (place, other))
        inside[here] = True
        phases = 2 * math.pi * torch.rand(2, generator=generator)
        motifs = zip((label, label + 1), phases)
        waves = [torch.cos(2 * math.pi * _along(axes, c % CLASSES) / width + p) for c, p in motifs]
        sign = 1 - 2 * int(torch.randint(2, (), generator=generator))
        x[here] += 2 * strength * window * waves[0]
        x[there] += 2 * strength * window * (waves[1] if second else sign)
    return Planted(x[:, None], labels, inside)


def _along(axes: tuple[Tensor, ...], label: int) -> Tensor:
    """Cycles of the motif of a class within its window."""
    if len(axes) == 1:
        return axes[0] * (3, 5, 8)[label]
    if len(axes) == 2:
        angle = math.pi * label / CLASSES
        return 3 * (axes[0] * math.cos(angle) + axes[1] * math.sin(angle))
    return 2 * axes[label]


@dataclass
class Case:
    """A network and the data that it reads; without fields of a network, the closed form of the preset `fast`."""

    name: str
    size: tuple[int, ...]
    width: int
    network: dict = field(default_factory=dict)
    steps: int = 300
    batch: int = 48
    rate: float = 2e-3


STEM = dict(stem="inception", stem_depths=(1,), stem_width=16, stem_dilations=(1, 2), stem_kernel=5)
CASES = {
    "1-D plain": Case("1-D plain", (256,), 32, dict(patch_size=8)),
    "1-D hybrid": Case(
        "1-D hybrid", (256,), 32, dict(patch_size=2, **STEM, stem_strides=(4,), pooling="stem_tokens"), 150
    ),
    "1-D fast": Case("1-D fast", (256,), 32),
    "2-D plain": Case("2-D plain", (48, 48), 12, dict(patch_size=(6, 6)), 500),
    "2-D hybrid": Case(
        "2-D hybrid", (48, 48), 12, dict(patch_size=(3, 3), **STEM, stem_strides=(2,), pooling="norm_avg"), 300
    ),
    "3-D plain": Case("3-D plain", (20, 20, 20), 8, dict(patch_size=(4, 4, 4)), 300),
}


def build(case: Case, seed: int) -> nn.Module:
    """A new network of a case."""
    torch.manual_seed(seed)
    return create_model(
        "vit_pico", input_size=case.size, in_channels=1, num_classes=CLASSES, embed_dim=48, depth=3, num_heads=3,
        weight_init="balanced", **case.network,
    )  # fmt: skip


def train(case: Case, seed: int) -> nn.Module:
    """Train on new examples in every step."""
    generator = torch.Generator().manual_seed(seed)
    if not case.network:
        return _solved(case, generator)
    network = build(case, seed).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=case.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, case.rate, case.steps, pct_start=0.2)
    for _ in range(case.steps):
        data = plant(case.batch, case.size, case.width, generator)
        loss = nn.functional.cross_entropy(network(data.x), data.labels)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return network.eval()


def _solved(case: Case, generator: torch.Generator) -> Committee:
    """Random convolutions and the frozen encoder, as the preset `fast`."""
    from ndvit.config.recipe import Recipe
    from ndvit.data.examples import Examples
    from ndvit.data.loading import Inputs
    from ndvit.data.preprocess.signals import SignalPreprocess
    from ndvit.tasks import Classification
    from ndvit.training.closed_form import solve_networks
    from ndvit.weights.signal_encoder import signal_encoder

    config, tensors = signal_encoder()
    members = [RandomConvolutions(1, *case.size, 5000, CLASSES), EncoderFeatures(config, 1, *case.size, CLASSES)]
    members[1].encoder.load_state_dict(tensors)
    data = plant(600, case.size, case.width, generator)
    inputs = Inputs(Examples(list(data.x.numpy()), data.labels.numpy()), SignalPreprocess(case.size, (0.0,), (1.0,)))
    solve_networks(members, inputs, Classification(tuple("abc")), Recipe())
    return Committee(members).eval()


def smoothed(values: Tensor, width: int) -> Tensor:
    """The mean over windows of `width` samples along each axis, (n, *size)."""
    pool = (nn.functional.avg_pool1d, nn.functional.avg_pool2d, nn.functional.avg_pool3d)[values.ndim - 2]
    return pool(values[:, None], width, 1, width // 2, count_include_pad=False)[:, 0][
        (slice(None), *(slice(n) for n in values.shape[1:]))
    ]


def points(values: Tensor, inside: Tensor) -> Tensor:
    """Whether the centre of the most relevant samples lies inside, (n,): equal maxima are averaged."""
    hits = []
    for value, there in zip(values, inside):
        best = (value >= value.max()).nonzero()
        near = (best - best[:1]).abs().amax(1) <= 16  # of one token
        centre = best[near].double().mean(0).round().long()
        hits.append(bool(there[tuple(centre.tolist())]))
    return torch.tensor(hits)


def faithfulness(network: nn.Module, data: Planted, values: Tensor, insert: bool) -> float:
    """Mean probability of the class while the most relevant samples are removed, or the only ones kept."""
    order = values.flatten(1).argsort(dim=1, descending=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    rank, found = rank.view_as(values), []
    with torch.no_grad():
        for share in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5):
            chosen = rank < share * order.shape[1]
            x = data.x * (chosen if insert else ~chosen)[:, None]
            probabilities = network(x).softmax(1).gather(1, data.labels[:, None])[:, 0]
            found.append(torch.stack([probabilities[data.labels == c].mean() for c in range(CLASSES)]).mean())
    return float(torch.stack(found).mean())


def seconds(call: Callable[[], object], times: int = 5) -> float:
    """Shortest time of a call: other programs can only lengthen it."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return min(took)


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Mean Spearman correlation of maps, (n, *size) each."""
    ranks = [values.flatten(1).argsort(1).argsort(1).double() for values in (one, other)]
    centred = [rank - rank.mean(1, keepdim=True) for rank in ranks]
    return float(nn.functional.cosine_similarity(*centred).mean())


def measured(network: nn.Module, case: Case, seed: int) -> list[dict]:
    """Rows of the table for one network."""
    data = plant(TEST, case.size, case.width, torch.Generator().manual_seed(100))
    both = plant(TEST, case.size, case.width, torch.Generator().manual_seed(101), second=True)
    with torch.no_grad():
        forward = seconds(lambda: network(data.x), 7)
        right = network(data.x).argmax(1) == data.labels
    print(f"{case.name}, seed {seed}: accuracy {right.float().mean():.3f}", flush=True)
    width, options, rows = max(3, case.width // 4) | 1, Options(steps=STEPS, batch_size=256), []
    for method in METHODS if case.network else METHODS_OF_FAST:
        used, name = network, None if method == "default" else method
        if method in ("contributions", "frozen encoder"):
            used, name = network.members[method == "frozen encoder"], None

        def explained(x, labels, used=used, name=name):
            if name == "random":
                return torch.rand(len(x), *x.shape[2:], generator=torch.Generator().manual_seed(3))
            return relevance(used, x, None, labels, name, options).sum(1)

        start = time.perf_counter()
        values = explained(data.x, data.labels)
        once = time.perf_counter() - start
        took = (once if name in SLOW else seconds(lambda: explained(data.x, data.labels))) / forward
        up = values.relu().flatten(1)
        inside = (up * data.inside.flatten(1)).sum(1) / up.sum(1).clamp(min=1e-30)
        hits, soft = points(values, data.inside), points(smoothed(values, width), data.inside)
        row = {
            "case": case.name,
            "seed": seed,
            "method": method,
            "accuracy": float(right.float().mean()),
            "pointing": by_class(hits[right], data.labels[right]),
            "smoothed": by_class(soft[right], data.labels[right]),
            "inside": float(inside[right].mean()),
            "deletion": faithfulness(network, data, values, False),
            "insertion": faithfulness(network, data, values, True),
            "passes": took,
        }
        if name not in SLOW:
            row["two"] = float(points(explained(both.x, both.labels), both.inside).float().mean())
        if case.network and name not in (*SLOW, "random"):
            untrained = relevance(build(case, seed).eval(), data.x, None, data.labels, name, options).sum(1)
            row["randomised"] = rank_correlation(values, untrained)
        rows.append(row)
        shown = {k: v for k, v in row.items() if k not in ("case", "seed", "method", "accuracy")}
        print(f"  {method:21}", *(f"{k} {_text(v)}" for k, v in shown.items()), flush=True)
    return rows


def by_class(hits: Tensor, labels: Tensor) -> list[float]:
    """The share of hits of each class."""
    return [float(hits[labels == c].float().mean()) for c in range(CLASSES)]


def _text(value: float | list[float]) -> str:
    return " / ".join(f"{v:.2f}" for v in value) if isinstance(value, list) else f"{value:.2f}"


@app.command
def measure(case: str, seeds: int = 3, results: Path = RESULTS) -> None:
    """Train and measure the networks of one case, and put the rows into the results."""
    rows = [row for seed in range(seeds) for row in measured(train(CASES[case], seed), CASES[case], seed)]
    kept = [row for row in json.loads(results.read_text())["rows"] if row["case"] != case] if results.exists() else []
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout
    facts = {"commit": commit.strip(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    facts["machine"] = platform.machine()
    results.write_text(json.dumps({"facts": facts, "rows": kept + rows}, indent=1) + "\n")


@app.command
def table(results: Path = RESULTS, page: Path = HERE.parent / "docs/explain.md") -> None:
    """Write the table between the marks of docs/explain.md."""
    found = json.loads(results.read_text())
    facts, lines = found["facts"], []
    for name in CASES:
        rows = [row for row in found["rows"] if row["case"] == name]
        if not rows:
            continue
        seeds = sorted({row["seed"] for row in rows})
        accuracy = ", ".join(f"{next(row['accuracy'] for row in rows if row['seed'] == seed):.3f}" for seed in seeds)
        size = " x ".join(map(str, CASES[name].size))
        lines += [f"\n**{name}**: {size}, test accuracy {accuracy}\n", HEAD, "|---|" + "---:|" * (HEAD.count("|") - 2)]
        for method in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if row["method"] == method]

            def mean(key, mine=mine):
                return torch.tensor([row[key] for row in mine], dtype=torch.float64).mean(0).tolist()

            keys = ("pointing", "smoothed", "two", "inside", "deletion", "insertion", "passes", "randomised")
            cells = [method, *(_text(mean(key)) if key in mine[0] else "–" for key in keys)]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Commit {facts['commit']}, torch {facts['torch']}, {facts['threads']} thread, {facts['machine']}."]
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    app()
