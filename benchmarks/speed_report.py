"""The report of the bench of speed, made of its rows alone: tables, a picture, and how far the goals are."""

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
        "Answers, as each library is written",
        "The same weights in all but vit-pytorch, whose network is a little smaller (no biases of queries, keys and "
        "values). Logits of the others are within a thousandth of their spread of ours.",
    ),
    "exact": (
        "Answers by the fastest ways with the same numbers",
        "The graphs of timm's network and of ours are written by the same exporter and run with the same options. "
        "torch.compile has frozen weights. `ndvit.compile` measures the ways and takes one.",
    ),
    "by MKL": (
        "Answers where MKL does not lag",
        "On CPUs of AMD with AVX-512, PyTorch multiplies float32 by MKL at half the rate of oneDNN, and ours takes "
        "oneDNN (`ndvit.network.fast`). By MKL it computes here as it does on all other CPUs.",
    ),
    "training by MKL": ("A training step where MKL does not lag", "As above."),
    "training": (
        "A training step",
        "Forward, backward and torch's fused AdamW. Memory is the most that a process takes for network, gradients, "
        "optimiser and activations in five steps, beyond torch and its imports, each party in a process of its own; "
        "and the most that its tensors take at a time, as on a GPU. The first is more, as the C library does not use "
        "again all that was freed.",
    ),
    "dropping": (
        "A training step with drop path 0.2 and patch dropout 0.25",
        "Both leave a quarter of the patches out. Ours also computes no branch of a sample that drop path leaves out, "
        "which is a tenth of them at rates that rise linearly from 0 to 0.2.",
    ),
    "merging": (
        "Fewer tokens: so many merged in each block",
        "Random weights: times alone; what it does to accuracy is below.",
    ),
    "merging a trained model": (
        "Fewer tokens in a trained model",
        "Accuracy on its test set; it was trained without merging.",
    ),
    "bfloat16": (
        "Answers in bfloat16",
        "torch by autocast, OpenVINO by its hint, and timm in float32 beside them; ratios are to timm in bfloat16, and "
        "the matrix product, too, is in bfloat16. For CPUs that have it (AVX-512 BF16, AMX): on others it is no gain.",
    ),
    "training in bfloat16": (
        "A training step in bfloat16",
        "As `--precision bf16-mixed` trains: by autocast, weights and optimiser in float32.",
    ),
    "int8": (
        "8-bit integers and bfloat16 in a trained model",
        "Integers are calibrated on the training pictures. Agreement is the share of test pictures with the same class "
        "as in float32. A file of ImageNet's weights is asked for its classes of pictures that have none of them, "
        "so that its answers are close calls.",
    ),
    "signals": (
        "Answers in one dimension",
        "12 channels of 4,096 samples, patches of 16, ten classes. timm has no such network: ratios are to "
        "vit-pytorch.",
    ),
    "training on signals": ("A training step in one dimension", "As above, with AdamW; ratios are to vit-pytorch."),
    "training of signal_small": (
        "A training step of the default for signals",
        "`signal_small` for 512 samples of one channel, with AdamW; ratios are to ours as it is written. Convolutions "
        "of 32 channels, norms and activations over the whole signal are far from a matrix product's rate.",
    ),
    "start-up": ("Until a program is there", "Ratio: how many times as long as importing torch."),
}

SHORT = (
    "As it is written ours wins so much on AMD's CPUs with AVX-512 alone, where its linear layers take oneDNN instead "
    "of MKL. Elsewhere its matrix products are those of the others, and it wins the last block's unread tokens, and "
    "copies of queries, keys and values: see the tables of answers and training by MKL.",
    "Its memory: outputs of norms are computed again in the backward pass instead of kept. Outputs of GELU, too, would "
    "save twice as much for four hundredths of the time, and are kept.",
    "Drop path and patch dropout: timm leaves as many patches out. Where MKL does not lag, only the branches that drop "
    "path leaves out are won, a tenth of them at rates from 0 to 0.2: one and a half times timm's step is out of reach "
    "there.",
    "Merging in ViT-Ti: finding the pairs costs what few merged tokens win; larger networks win more.",
    "The same class in 8-bit integers: ImageNet's head, asked about hand signs, changes its mind in one picture of "
    "thirty on CPUs with VNNI (of twenty until weights had all 8 bits and attention's projection stayed in float32), "
    "and in one of fifty of 720 cuts of 36 photographs; weights alone in 8 bits already change it in one of 34 and one "
    "of 52. bfloat16 is as fast or faster, and keeps 99 %.",
    "Training by torch.compile, where it was measured: it gains ViT-Ti and ViT-S nothing over ours as it is written.",
)
"""What stands behind the figures, and why goals are missed where they are."""


def table_of(rows: Sequence[Row]) -> list[str]:
    """Markdown: a row a case, a column a party."""
    parties = list(dict.fromkeys(row.party for row in rows))
    cases = list(dict.fromkeys(row.case for row in rows))
    lines = [_line(["network, batch", *parties, "matrix product"]), "|---" + "|---:" * (len(parties) + 1) + "|"]
    for case in cases:
        there = {row.party: row for row in rows if row.case == case}
        exact = [row.ratio for row in there.values() if not _changed(row)]
        best = max(exact, default=0.0)
        cells = [_cell(there[party], best) if party in there else "–" for party in parties]
        ceiling = next(iter(there.values())).more.get("ceiling", 0)
        _, network, batch, device, precision = case
        name = network + f", {batch}" + (f", {device} {precision}" if device != "cpu" else "")
        lines.append(_line([name, *cells, f"{ceiling:,.0f} GFLOP/s"]))
    return lines


def _cell(row: Row, best: float) -> str:
    """Ratio, time with its quartiles, share of the ceiling, and what else was found."""
    ratio = f"{row.ratio:.2f}×"
    parts = [
        f"**{ratio}**" if row.ratio >= best - 1e-9 and not _changed(row) else ratio,
        f"{_ms(row.ms)} ms ({_ms(row.low)}–{_ms(row.high)})",
    ]
    if row.share:
        parts.append(f"{row.share:.2f} of the ceiling")
    if "way" in row.more:
        parts.append(f"took {row.more['way']}")
    if "accuracy" in row.more:
        parts.append(f"accuracy {100 * row.more['accuracy']:.2f} %")
    if "agreement" in row.more:
        parts.append(f"agrees in {100 * row.more['agreement']:.2f} % of {row.more['examples']}")
    if "MB" in row.more:
        parts.append(f"{row.more['MB']:,.0f} MB, tensors {row.more['live']:,.0f}")
    return "<br>".join(parts)


def _changed(row: Row) -> bool:
    """Whether its answers are others than those of the exact ones, which it is no rival of."""
    return any(word in row.party for word in ("merged", "int8", "bfloat16"))


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def with_memory(rows: Sequence[Row]) -> list[Row]:
    """Rows of time, with the memory that was measured apart."""
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
    """Markdown: a row a program."""
    lines = [_line(["program", "seconds (quartiles)", "times torch's import"]), "|---|---:|---:|"]
    for row in rows:
        told = f"{row.ms / 1e3:.2f} ({row.low / 1e3:.2f}–{row.high / 1e3:.2f})"
        lines.append(_line([f"`{row.party}`" if "'" not in row.party else row.party, told, f"{row.ratio:.2f}"]))
    return lines


def draw(rows: Sequence[Row], path: Path) -> None:
    """Ratios to timm: a panel a table, a row a case, a point a party."""
    from matplotlib import style
    from matplotlib.figure import Figure

    wanted = ("forward", "by MKL", "exact", "training", "merging")
    shown = [name for name in wanted if any(row.table == name for row in rows)]
    cases = {name: list(dict.fromkeys(row.case for row in rows if row.table == name)) for name in shown}
    looks = _looks(rows, shown)
    with style.context("default"):
        heights = [len(cases[name]) + 1.2 for name in shown]
        figure = Figure(figsize=(9, 0.42 * sum(heights) + 1.5), layout="constrained", facecolor="white")
        panels = figure.subplots(len(shown), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0]
        for axes, name in zip(panels, shown, strict=True):
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
            there = list(dict.fromkeys(row.party for row in rows if row.table == name and row.party != "timm"))
            marks = [
                axes.plot([], [], linestyle="none", markersize=7, label=party, **looks[party])[0] for party in there
            ]
            axes.legend(handles=marks, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        panels[-1].set_xlabel("times as fast as timm's own code in the same rounds (1: as fast; right is faster)")
        replace_file(path, lambda file: figure.savefig(file, dpi=150, format="png", metadata={"Software": None}))


def _looks(rows: Sequence[Row], tables: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Ours in warm colours, others in cold ones; a mark for each way."""
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
    """Markdown: each goal, what was measured, and whether it is met."""
    return [_line(["goal", "measured", "met"]), "|---|---|---|", *(_line(goal.cells(rows)) for goal in GOALS)]


def write_report(out: Path) -> Path:
    """Write performance.md and performance.png beside the rows."""
    rows = read_rows(out / RESULTS)
    if not rows:
        raise SystemExit(f"{out / RESULTS} has no rows")
    shown = with_memory(rows)
    text = ["# Speed: ours and its peers", ""]
    text += [
        "Medians of calls that took turns in one process, 0.1 s apart, with quartiles in brackets. The ratio is the "
        "median over the rounds of timm's time in a round by that of the party: above 1 it is faster than timm's own "
        "code. A product of two 2048 x 2048 matrices took part in every round, by MKL or by oneDNN, whichever is the "
        "faster here; the ceiling is its rate. Multiply-adds of ours do not count what the last block leaves out, as "
        "only its class token is read. Where a share is above 1, the runtime has a faster product still. The fewer "
        "GFLOP/s, the busier the machine was.",
        "",
    ]
    draw(shown, out / PICTURE)
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
        there = [row for row in shown if row.table == name]
        if there:
            made = start_up_table(there) if name == "start-up" else table_of(there)
            text += ["", f"## {title}", "", about, "", *made]
    text += ["", "## How it was made", "", *_origin(rows)]
    replace_file(out / REPORT, "\n".join(text) + "\n")
    return out / REPORT


def _origin(rows: Sequence[Row]) -> list[str]:
    """Where, with what and by which commands it was measured."""
    machines = dict.fromkeys((row.machine, row.cores, row.threads, row.software) for row in rows)
    lines = [
        f"- On {name}, {cores} cores, {threads} threads; {software}." for name, cores, threads, software in machines
    ]
    cases = {(row.case, row.commit, row.command) for row in rows}
    return lines + commands_of(sorted((commit, command) for _, commit, command in cases), "case")
