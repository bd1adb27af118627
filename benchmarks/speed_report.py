"""The report of the speed benchmark, written from its rows: goals, tables and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from signal_report import _line, commands_of
from speed_goals import GOALS, short
from speed_work import RESULTS, Row, read_rows

from ndvit.files import replace_file

REPORT, PICTURE = "performance.md", "performance.png"
ABOUT = {
    "forward": (
        "Prediction, eager",
        "All libraries have the same weights, except vit-pytorch, whose network is slightly smaller (no biases of "
        "queries, keys and values). The logits of the others differ from ours by less than a thousandth of their "
        "standard deviation.",
    ),
    "exact": (
        "Prediction, fastest ways with the same outputs",
        "The graphs of timm's network and of ours are written by the same exporter and run with the same options. "
        "torch.compile has frozen weights. `ndvit.compile` measures the ways and chooses one.",
    ),
    "by MKL": (
        "Prediction with MKL",
        "On AMD CPUs with AVX-512, MKL, which PyTorch uses for float32, has half the speed of oneDNN. Ours uses oneDNN "
        'there (`ndvit.network.fast`). The column "ours, by MKL" is measured without oneDNN, as on all other CPUs.',
    ),
    "training by MKL": ("A training step with MKL", "Columns as in the table above."),
    "training": (
        "A training step",
        "Forward pass, backward pass and torch's fused AdamW. Memory: the peak of the process in five steps, for "
        "network, gradients, optimizer and activations, without torch and its imports; each party has its own "
        'process. "Tensors" is the peak memory of the tensors, as on a GPU. The process needs more, because the C '
        "library does not reuse all freed memory.",
    ),
    "dropping": (
        "A training step with drop path 0.2 and patch dropout 0.25",
        "Both libraries drop a quarter of the patches. Ours also skips the branches that drop path drops: a tenth of "
        "all branches, for rates that rise linearly from 0 to 0.2.",
    ),
    "merging": (
        "Token merging, random weights",
        "The columns contain the number of tokens that each block merges. The table is about time only; the next table "
        "contains accuracies.",
    ),
    "merging a trained model": (
        "Token merging, trained model",
        "Accuracy on the test set. The model was trained without merging.",
    ),
    "bfloat16": (
        "Prediction in bfloat16",
        "torch uses autocast, OpenVINO its precision hint. timm in float32 is included for comparison. Ratios are to "
        "timm in bfloat16, and the matrix product is in bfloat16. bfloat16 is faster only on CPUs with AVX-512 BF16 "
        "or AMX.",
    ),
    "training in bfloat16": (
        "A training step in bfloat16",
        "As with `--precision bf16-mixed`: autocast, with weights and optimizer in float32.",
    ),
    "int8": (
        "8-bit integers and bfloat16 in a trained model",
        "Integers are calibrated on the training images. Agreement is the share of test images with the same class "
        "as in float32. For ImageNet weights, the images show none of ImageNet's classes. The probabilities of their "
        "best classes are then close to each other, so that the class changes easily.",
    ),
    "signals": (
        "Prediction in one dimension",
        "12 channels of 4,096 samples, patches of 16 samples, ten classes. timm has no such network, so ratios are to "
        "vit-pytorch.",
    ),
    "training on signals": ("A training step in one dimension", "As above, with AdamW. Ratios are to vit-pytorch."),
    "training of signal_small": (
        "A training step of the default for signals",
        "`signal_small` for 512 samples of one channel, with AdamW; ratios are to ours in eager mode. Convolutions "
        "with 32 channels, norms and activations over the whole signal are much slower than a matrix product.",
    ),
    "start-up": ("Start-up", "Ratio: time divided by that of importing torch."),
}

SHORT = (
    "Eager mode: ours is much faster than timm only on AMD CPUs with AVX-512, because its linear layers use oneDNN "
    "there instead of MKL. On other CPUs, all libraries have the same matrix products. Ours then saves the unread "
    "tokens of the last block, and copies of queries, keys and values; see the tables with MKL.",
    "Memory: ours recomputes the outputs of norms in the backward pass instead of storing them. Recomputing the "
    "outputs of GELU as well would save twice as much memory and cost 4 % of the time; they are stored.",
    "Drop path and patch dropout: timm drops the same number of patches. If MKL is as fast as oneDNN, ours saves "
    "only the branches that drop path drops: a tenth of them, for rates from 0 to 0.2. 1.5 times the speed of timm "
    "is out of reach there.",
    "Token merging in ViT-Ti: with few merged tokens, the search for pairs costs as much time as the merging saves. "
    "Larger networks save more.",
    "Same class in 8-bit integers: for photographs of hand signs, a network with ImageNet's head changes its class "
    "for one image in 30 on CPUs with VNNI (one in 20 before weights used all 8 bits and the projections of the "
    "attention stayed in float32), and for one in 50 of 720 crops of 36 photographs. With 8-bit weights and float32 "
    "activations it already changes for one in 34 and one in 52. bfloat16 is as fast or faster, and keeps the class "
    "for 99 %.",
    "Training with torch.compile, where it was measured, is not faster than ours in eager mode for ViT-Ti and ViT-S.",
)
"""Explanations of the figures, and reasons for missed goals."""


def table_of(rows: Sequence[Row]) -> list[str]:
    """A Markdown table: one row per case, one column per party."""
    parties = list(dict.fromkeys(row.party for row in rows))
    cases = list(dict.fromkeys(row.case for row in rows))
    lines = [_line(["network, batch", *parties, "matrix product"]), "|---" + "|---:" * (len(parties) + 1) + "|"]
    for case in cases:
        found = {row.party: row for row in rows if row.case == case}
        exact = [row.ratio for row in found.values() if not _changed(row)]
        best = max(exact, default=0.0)
        cells = [_cell(found[party], best) if party in found else "–" for party in parties]
        ceiling = next(iter(found.values())).more.get("ceiling", 0)
        _, network, batch, device, precision = case
        name = network + f", {batch}" + (f", {device} {precision}" if device != "cpu" else "")
        lines.append(_line([name, *cells, f"{ceiling:,.0f} GFLOP/s"]))
    return lines


def _cell(row: Row, best: float) -> str:
    """Ratio, time with quartiles, share of the ceiling, and other results."""
    ratio = f"{row.ratio:.2f}×"
    parts = [
        f"**{ratio}**" if row.ratio >= best - 1e-9 and not _changed(row) else ratio,
        f"{_ms(row.ms)} ms ({_ms(row.low)}–{_ms(row.high)})",
    ]
    if row.share:
        parts.append(f"{row.share:.2f} of the ceiling")
    if "way" in row.more:
        parts.append(f"chose {row.more['way']}")
    if "accuracy" in row.more:
        parts.append(f"accuracy {100 * row.more['accuracy']:.2f} %")
    if "agreement" in row.more:
        parts.append(f"same class for {100 * row.more['agreement']:.2f} % of {row.more['examples']}")
    if "MB" in row.more:
        parts.append(f"{row.more['MB']:,.0f} MB, tensors {row.more['live']:,.0f}")
    return "<br>".join(parts)


def _changed(row: Row) -> bool:
    """Whether the outputs differ from the exact ones, so that the row is not compared with exact ways."""
    return any(word in row.party for word in ("merged", "int8", "bfloat16"))


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def with_memory(rows: Sequence[Row]) -> list[Row]:
    """Rows of times, with the memory that was measured separately."""
    taken = {(row.table, *row.case[1:], row.party): row.more for row in rows if row.table.startswith("memory of ")}
    out = []
    for row in rows:
        if not row.table.startswith("memory of "):
            more = taken.get((f"memory of {row.table}", *row.case[1:], row.party), {})
            out.append(
                Row(**{**vars(row), "more": {**row.more, **{k: v for k, v in more.items() if k in ("MB", "live")}}})
            )
    return out


def start_up_table(rows: Sequence[Row]) -> list[str]:
    """A Markdown table with one row per program."""
    lines = [_line(["program", "seconds (quartiles)", "ratio to importing torch"]), "|---|---:|---:|"]
    for row in rows:
        seconds = f"{row.ms / 1e3:.2f} ({row.low / 1e3:.2f}–{row.high / 1e3:.2f})"
        lines.append(_line([f"`{row.party}`" if "'" not in row.party else row.party, seconds, f"{row.ratio:.2f}"]))
    return lines


def draw(rows: Sequence[Row], path: Path) -> None:
    """Plot ratios to timm: one panel per table, one row per case, one point per party."""
    from matplotlib import style
    from matplotlib.figure import Figure

    wanted = ("forward", "by MKL", "exact", "training", "merging")
    tables = [name for name in wanted if any(row.table == name for row in rows)]
    cases = {name: list(dict.fromkeys(row.case for row in rows if row.table == name)) for name in tables}
    looks = _looks(rows, tables)
    with style.context("default"):
        heights = [len(cases[name]) + 1.2 for name in tables]
        figure = Figure(figsize=(9, 0.42 * sum(heights) + 1.5), layout="constrained", facecolor="white")
        panels = figure.subplots(len(tables), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0]
        for axes, name in zip(panels, tables, strict=True):
            for place, case in enumerate(cases[name]):
                for row in (row for row in rows if row.case == case and row.party != "timm"):
                    axes.plot(row.ratio, place, linestyle="none", markersize=8, **looks[row.party])
            axes.axvline(1, color="#555555", linewidth=1)
            axes.set_yticks(range(len(cases[name])), [f"{short(case[1])}, batch {case[2]}" for case in cases[name]])
            axes.set_ylim(len(cases[name]) - 0.4, -0.6)
            axes.set_title(ABOUT[name][0], loc="left", fontsize=11)
            axes.grid(axis="x", color="#dddddd")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            parties = list(dict.fromkeys(row.party for row in rows if row.table == name and row.party != "timm"))
            marks = [
                axes.plot([], [], linestyle="none", markersize=7, label=party, **looks[party])[0] for party in parties
            ]
            axes.legend(handles=marks, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        panels[-1].set_xlabel("speed relative to timm in the same rounds (right is faster)")
        replace_file(path, lambda file: figure.savefig(file, dpi=150, format="png", metadata={"Software": None}))


def _looks(rows: Sequence[Row], tables: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Warm colours for ours, cold ones for the others; one marker per way."""
    marks = {"": "o", "by MKL": "v", "torch.compile": "^", "ONNX Runtime": "s", "OpenVINO": "D", "ndvit.compile": "*"}
    colours = {"transformers": "#1d4e89", "torchvision": "#0e7490", "vit-pytorch": "#64748b", "timm": "#1d4e89"}
    warm = iter(["#f59e0b", "#ea580c", "#991b1b"])
    looks: dict[str, dict[str, Any]] = {}
    for party in dict.fromkeys(row.party for row in rows if row.table in tables):
        library, _, way = party.partition(", ")
        if way.endswith("merged"):
            looks[party] = {"color": next(warm, "#7f1d1d"), "marker": "P"}
            continue
        looks[party] = {"color": "#c2410c" if library == "ours" else colours[library], "marker": marks.get(way, "o")}
    return looks


def goals_table(rows: Sequence[Row]) -> list[str]:
    """A Markdown table: each goal, the measurement, and whether it is met."""
    return [_line(["goal", "measured", "met"]), "|---|---|---|", *(_line(goal.cells(rows)) for goal in GOALS)]


def write_report(out: Path) -> Path:
    """Write performance.md and performance.png beside the rows."""
    rows = read_rows(out / RESULTS)
    if not rows:
        raise SystemExit(f"{out / RESULTS} has no rows")
    with_peaks = with_memory(rows)
    text = ["# Speed: comparison with other libraries", ""]
    text += [
        "Times are medians, with quartiles in brackets. All parties take turns in one process, with pauses of 0.1 s. "
        "The ratio is the median over the rounds of timm's time divided by the time of the party: above 1 the party "
        "is faster than timm's own code. The product of two 2048 x 2048 matrices is measured in every round, with "
        "MKL or oneDNN, whichever is faster on this CPU. Its rate is the ceiling. A share above 1 means that the "
        "runtime has a faster matrix product. Multiply-adds of ours exclude the tokens that the last block skips, "
        "because only its class token is read. Low GFLOP/s mean that the machine was busy.",
        "",
    ]
    draw(with_peaks, out / PICTURE)
    text += [
        f"![Speed of each party as a ratio to timm]({PICTURE})",
        "",
        "## Goals",
        "",
        *goals_table(rows),
        "",
        *(f"- {why}" for why in SHORT),
    ]
    for name, (title, about) in ABOUT.items():
        chosen = [row for row in with_peaks if row.table == name]
        if chosen:
            made = start_up_table(chosen) if name == "start-up" else table_of(chosen)
            text += ["", f"## {title}", "", about, "", *made]
    text += ["", "## How these figures were made", "", *_origin(rows)]
    replace_file(out / REPORT, "\n".join(text) + "\n")
    return out / REPORT


def _origin(rows: Sequence[Row]) -> list[str]:
    """Machine, versions and commands of the measurements."""
    machines = dict.fromkeys((row.machine, row.cores, row.threads, row.software) for row in rows)
    lines = [f"- {name}, {cores} cores, {threads} threads; {software}." for name, cores, threads, software in machines]
    cases = {(row.case, row.commit, row.command) for row in rows}
    return lines + commands_of(sorted((commit, command) for _, commit, command in cases), "case")
