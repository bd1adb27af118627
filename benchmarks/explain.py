"""Measure explanations against planted truth: does the relevance lie where the class was decided?

`python benchmarks/explain.py measure CASE` trains tiny networks on signals, pictures or volumes whose class is that of
one motif at a known place, and measures every method on new examples: one to four minutes on one core for each seed.
`python benchmarks/explain.py depths 6 12` compares the candidates for the default on networks of these depths.
Both skip networks that are in docs/explain.json already, unless `--again`, and `python benchmarks/explain.py table`
writes docs/explain.json into docs/explain.md.
`python benchmarks/explain.py photographs FOLDER WEIGHTS` compares the methods on photographs and weights of ImageNet.

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
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from cyclopts import App
from scipy.stats import rankdata
from torch import Tensor, nn

from ndvit.explain.methods import Options, relevance
from ndvit.network import create_model
from ndvit.network.committee import Committee
from ndvit.network.encoder_features import EncoderFeatures
from ndvit.network.random_convolutions import RandomConvolutions

CLASSES, TEST, STEPS = 3, 192, 20  # classes, test examples, steps of integrated gradients
SLOW = ("integrated_gradients", "occlusion")
ROLLOUTS = ("attention", "rollout", "gradient_rollout", "midpoint_rollout", "midpoint_gradient_rollout")
METHODS = ("default", "random", *ROLLOUTS, "gradient", "gradient_x_input", *SLOW)
SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # of the samples, or patches, that are removed or kept
FEWER = 48  # examples on which slow methods explain an untrained network
SURE, MOSAICS = 0.28, 16  # probability of photographs that are put into mosaics, and number of these
CANDIDATES = ("midpoint_rollout", "midpoint_gradient_rollout", "gradient_rollout")  # for the default
METHODS_OF_FAST = ("default", "random", "contributions", "frozen encoder")
HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs/explain.json"
BEGIN, END = "<!-- benchmarks/explain.py -->", "<!-- end -->"
HEAD = "| method | pointing, by class | smoothed | two motifs | inside | deletion | insertion | passes | randomised |"
PHOTOGRAPHS = "| method | pointing | inside | deletion | insertion | deletion, blurred | insertion, blurred | time |"
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
    if size[0] < 3 * width:
        raise ValueError(f"two windows of {width} do not fit beside each other everywhere in {size[0]} samples")
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
    "2-D deep": Case("2-D deep", (48, 48), 12, dict(patch_size=(6, 6), depth=12), 400, rate=1e-3),
    "3-D plain": Case("3-D plain", (24, 24, 24), 8, dict(patch_size=(4, 4, 4)), 600),
}


def build(case: Case, seed: int) -> nn.Module:
    """A new network of a case."""
    torch.manual_seed(seed)
    return create_model(
        "vit_pico", input_size=case.size, in_channels=1, num_classes=CLASSES, embed_dim=48, num_heads=3,
        weight_init="balanced", **{"depth": 3} | case.network,
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


def _solved(case: Case, generator: torch.Generator, shuffled: bool = False) -> Committee:
    """Random convolutions and the frozen encoder, as the preset `fast`; with `shuffled`, solved for random labels."""
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
    if shuffled:
        data.labels = data.labels[torch.randperm(600, generator=generator)]
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
        for share in SHARES:
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
    """Mean Spearman correlation of maps, (n, *size) each; the samples of a token, which are equal, have one rank."""
    ranks = [torch.from_numpy(rankdata(values.flatten(1).numpy(), axis=1)).double() for values in (one, other)]
    centred = [rank - rank.mean(1, keepdim=True) for rank in ranks]
    return float(nn.functional.cosine_similarity(*centred).mean())


def measured(network: nn.Module, case: Case, seed: int, methods: tuple[str, ...]) -> list[dict]:
    """Rows of the table for one network."""
    data = plant(TEST, case.size, case.width, torch.Generator().manual_seed(100))
    both = plant(TEST, case.size, case.width, torch.Generator().manual_seed(101), second=True)
    with torch.no_grad():
        forward = seconds(lambda: network(data.x), 7)
        right = network(data.x).argmax(1) == data.labels
    print(f"{case.name}, seed {seed}: accuracy {right.float().mean():.3f}", flush=True)
    width, options, rows = max(3, case.width // 4) | 1, Options(steps=STEPS, batch_size=256), []
    generator = torch.Generator().manual_seed(seed + 1000)
    untrained = build(case, seed).eval() if case.network else _solved(case, generator, shuffled=True)
    for method in methods:
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
        if name != "random":
            some = slice(FEWER if name in SLOW else None)
            other = untrained if used is network else untrained.members[used is network.members[1]]
            random = relevance(other, data.x[some], None, data.labels[some], name, options).sum(1)
            row["randomised"] = rank_correlation(values[some], random)
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
def measure(
    case: str, seeds: tuple[int, ...] = (0, 1, 2), slow: bool = True, again: bool = False, results: Path = RESULTS
) -> None:
    """Train and measure the networks of one case, and put the rows into the results.

    Args:
        case: name of the case.
        seeds: one network each.
        slow: whether to measure integrated gradients and occlusion, too, which take most of the time.
        again: whether to replace the rows of networks that the results have already.
        results: file of the results.
    """
    methods = METHODS if CASES[case].network else METHODS_OF_FAST
    if not slow:
        methods = tuple(name for name in methods if name not in SLOW)
    for seed in seeds:
        _add(results, "rows", CASES[case], seed, methods, again)


@app.command
def depths(*depths: int, dims: int = 2, seeds: tuple[int, ...] = (0, 1), again: bool = False, results: Path = RESULTS):
    """Compare the candidates for the default on networks of other depths than those of the cases.

    Args:
        depths: numbers of blocks.
        dims: 1 is signals, 2 pictures.
        seeds: one network each.
        again: whether to replace the rows of networks that the results have already.
        results: file of the results.
    """
    for depth in depths:
        base = CASES[f"{dims}-D plain"]
        case = replace(base, name=f"{dims}-D, {depth} blocks", network=base.network | {"depth": depth})
        if depth >= 8:
            case = replace(case, rate=1e-3)
        for seed in seeds:
            _add(results, "depths", case, seed, CANDIDATES, again)


def _add(results: Path, part: str, case: Case, seed: int, methods: tuple[str, ...], again: bool) -> None:
    """Train and measure one network, and store its rows at once, so that a long bench can be resumed."""

    def stored() -> dict:
        return json.loads(results.read_text()) if results.exists() else {}

    def same(row: dict) -> bool:
        return row["case"] == case.name and row["seed"] == seed

    if not again and any(same(row) for row in stored().get(part, ())):
        print(f"{case.name}, seed {seed}: measured already")
        return
    rows = measured(train(case, seed), case, seed, methods)
    found = stored()
    _store(results, found | {part: [row for row in found.get(part, ()) if not same(row)] + rows})


def _store(results: Path, found: dict) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout
    facts = {"commit": commit.strip(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    facts["machine"] = platform.machine()
    results.write_text(json.dumps(found | {"facts": facts}, indent=1) + "\n")


@app.command
def photographs(folder: Path, weights: str, methods: tuple[str, ...] = METHODS, results: Path = RESULTS) -> None:
    """Compare the methods on photographs by weights of ImageNet, for the most probable class of each.

    Deletion and insertion are measured on the photographs, for 2 to 50 % of the patches, which are replaced by the
    mean or by a blurred copy. Pointing and the share inside are measured on mosaics of four photographs, each of
    which is explained for the class of each photograph (the grid pointing game).
    """
    import numpy as np
    from PIL import Image

    from ndvit.model import load_model

    model = load_model(weights)
    network, preprocess = model.network.eval(), model.preprocess
    pictures = [Image.open(file).convert("RGB") for file in sorted(folder.iterdir())]
    side, grid, patch = network.config.input_size[0], network.config.grid[0], network.config.patch_size[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))

    def square(picture: Image.Image, size: int) -> Tensor:
        edge = min(picture.size)
        left, top = ((n - edge) // 2 for n in picture.size)
        small = picture.crop((left, top, left + edge, top + edge)).resize((size, size), Image.Resampling.BICUBIC)
        return (torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255 - mean) / std

    x, small = (torch.stack([square(one, size) for one in pictures]) for size in (side, side // 2))
    with torch.no_grad():
        sure, classes = network(x).softmax(1).max(1)
    generator = torch.Generator().manual_seed(0)
    chosen = (sure > SURE).nonzero()[:, 0]
    four = [chosen[torch.randperm(len(chosen), generator=generator)[:4]] for _ in range(MOSAICS)]
    mosaics = torch.stack([torch.cat([torch.cat([small[a], small[b]], 2), torch.cat([small[c], small[d]], 2)], 1)
                           for a, b, c, d in four]).repeat_interleave(4, 0)  # fmt: skip
    there = torch.zeros(4, grid, grid)
    for quarter in range(4):
        there[quarter].unflatten(0, (2, -1)).unflatten(2, (2, -1))[quarter // 2, :, quarter % 2] = 1
    there, targets = there.flatten(1).repeat(MOSAICS, 1), classes[torch.cat(four)]
    blurred = nn.functional.avg_pool2d(nn.functional.pad(x, (24,) * 4, mode="reflect"), 49, 1)
    options, rows = Options(steps=STEPS, batch_size=64), []

    def by_patch(images: Tensor, labels: Tensor, method: str) -> Tensor:
        name = None if method == "default" else method
        if method == "random":
            return torch.rand(len(images), grid**2, generator=generator)
        values = [relevance(network, one, None, label, name, options).sum(1, keepdim=True)
                  for one, label in zip(images.split(16), labels.split(16))]  # fmt: skip
        return nn.functional.avg_pool2d(torch.cat(values), patch).flatten(1)

    def kept(values: Tensor, insert: bool, base: Tensor) -> float:
        rank, found = values.argsort(1, descending=True).argsort(1), []
        for share in SHARES:
            mark = (rank < share * grid**2).float().view(-1, 1, grid, grid)
            mark = nn.functional.interpolate(mark if insert else 1 - mark, scale_factor=patch)
            with torch.no_grad():
                answers = network(x * mark + base * (1 - mark)).softmax(1)
            found.append(answers.gather(1, classes[:, None]).mean())
        return float(torch.stack(found).mean())

    for method in methods:
        start = time.perf_counter()
        values = by_patch(x, classes, method)
        took = time.perf_counter() - start
        row = {"method": method, "photographs": len(x), "seconds": took / len(x)}
        for name, base in (("mean", 0 * x), ("blurred", blurred)):
            row |= {f"deletion_{name}": kept(values, False, base), f"insertion_{name}": kept(values, True, base)}
        if method not in SLOW:
            where = by_patch(mosaics, targets, method)
            up = where.relu()
            row["pointing"] = float(there.gather(1, where.argmax(1, keepdim=True)).mean())
            row["inside"] = float(((up * there).sum(1) / up.sum(1).clamp(min=1e-30)).mean())
        rows.append(row)
        print(method, {k: round(v, 3) for k, v in row.items() if k not in ("method", "photographs")}, flush=True)
    found = json.loads(results.read_text())
    kept_rows = [row for row in found.get("photographs", ()) if row["method"] not in methods]
    _store(results, found | {"photographs": kept_rows + rows})


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
        for method in sorted({row["method"] for row in rows}, key=(METHODS + METHODS_OF_FAST[2:]).index):
            mine = [row for row in rows if row["method"] == method]

            def mean(key, mine=mine):
                known = [row[key] for row in mine if key in row]
                return _text(torch.tensor(known, dtype=torch.float64).mean(0).tolist()) if known else "–"

            keys = ("pointing", "smoothed", "two", "inside", "deletion", "insertion", "passes", "randomised")
            cells = [f"{method} ({len(mine)})" if len(mine) < len(seeds) else method, *map(mean, keys)]
            lines.append("| " + " | ".join(cells) + " |")
    lines += _depths(found)
    if rows := found.get("photographs"):
        lines += [f"\n**Photographs**: {rows[0]['photographs']}, and {MOSAICS} mosaics of four\n", PHOTOGRAPHS]
        lines.append("|---|" + "---:|" * (PHOTOGRAPHS.count("|") - 2))
        keys = ("pointing", "inside", "deletion_mean", "insertion_mean", "deletion_blurred", "insertion_blurred")
        for row in rows:
            figures = [_text(row[key]) if key in row else "–" for key in keys]
            cells = [row["method"], *figures, f"{row['seconds']:.2f} s"]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Commit {facts['commit']}, torch {facts['torch']}, {facts['threads']} thread, {facts['machine']}."]
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after, encoding="utf-8")


def _depths(found: dict) -> list[str]:
    """The table of the candidates for the default by depth, with the cases that differ from it in nothing else."""
    named = [(row["case"], row) for row in found.get("depths", ())]
    if not named:
        return []
    same = [(f"{case.name[:3]}, {case.network.get('depth', 3)} blocks", name) for name, case in CASES.items()
            if name in ("1-D plain", "2-D plain", "2-D deep")]  # fmt: skip
    named += [(title, row) for title, name in same for row in found["rows"] if row["case"] == name]
    columns = [f"{name}: {what}" for name in CANDIDATES for what in ("pointing", "two motifs", "deletion")]
    lines = ["\n**By depth**\n", f"| network | test accuracy | {' | '.join(columns)} |"]
    lines.append("|---|" + "---:|" * (1 + len(columns)))
    for title in sorted({title for title, _ in named}, key=lambda title: (title[:3], int(title.split()[1]))):
        cells = []
        for method in CANDIDATES:
            mine = [row for name, row in named if name == title and row["method"] == method]
            if not mine:
                cells += ["–"] * 3
                continue
            cells += [_text(torch.tensor([row[key] for row in mine]).mean(0).tolist()) for key in ("pointing", "two")]
            cells.append(_text(sum(row["deletion"] for row in mine) / len(mine)))
        accuracy = {row["seed"]: row["accuracy"] for name, row in named if name == title}
        lines.append(f"| {title} | {sum(accuracy.values()) / len(accuracy):.3f} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    app()
