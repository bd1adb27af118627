"""The goals of the speed benchmark, and how close its rows are to them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from speed_work import PEER, Row

Case = tuple[str, str, int, str, str]
SHORT = {"vit_tiny": "ViT-Ti", "vit_small": "ViT-S", "vit_base": "ViT-B"}


class Point(NamedTuple):
    """A number and the case in which it was measured."""

    value: float
    where: str


class Goal(NamedTuple):
    """A goal.

    Attributes:
        text: description.
        points: function that selects the numbers from the rows.
        bound: lower bound of each number, or upper bound if `most`.
        unit: unit of the numbers.
        most: whether smaller numbers are better.
    """

    text: str
    points: Callable[[Sequence[Row]], list[Point]]
    bound: float
    unit: str = "×"
    most: bool = False

    def met(self, point: Point) -> bool:
        """Whether a number reaches the bound, after rounding to the two digits of the report."""
        value = round(point.value, 2)
        return value <= self.bound if self.most else value >= self.bound

    def cells(self, rows: Sequence[Row]) -> list[str]:
        """Cells of the table: the goal, the worst and the best number, and whether the goal is met."""
        points = sorted(self.points(rows), reverse=self.most)
        if not points:
            return [self.text, "not measured", "–"]
        ends = [points[0]] if len(points) == 1 else [points[0], points[-1]]
        found = " to ".join(f"{point.value:.2f}{self.unit} ({point.where})" for point in ends)
        good = sum(map(self.met, points))
        met = "yes" if good == len(points) else "no" if good == 0 else f"{good} of {len(points)}"
        return [self.text, found, met]


def short(network: str) -> str:
    """A short name, for example ViT-B/16 for vit_base_patch16_224."""
    name = next((short for long, short in SHORT.items() if network.startswith(long)), network)
    return f"{name}/16" if "patch16" in network and name != network else name


def _cases(rows: Sequence[Row], table: str, batch: int | None = None) -> dict[Case, dict[str, Row]]:
    """Rows of each case on a CPU, by party."""
    found: dict[Case, dict[str, Row]] = {}
    for row in rows:
        if row.table == table and row.device == "cpu" and batch in (None, row.batch):
            found.setdefault(row.case, {})[row.party] = row
    return found


def _where(case: Case) -> str:
    return f"{short(case[1])}, batch {case[2]}"


def against(table: str, rival: str = PEER) -> Callable[[Sequence[Row]], list[Point]]:
    """Select the speed of ours in eager mode, relative to another library."""

    def points(rows: Sequence[Row]) -> list[Point]:
        found = _cases(rows, table)
        return [
            Point(p["ours"].ratio / p[rival].ratio, _where(c)) for c, p in found.items() if {"ours", rival} <= set(p)
        ]

    return points


def fastest(table: str, batch: int, rival: str = PEER, ways: str = "ours") -> Callable[[Sequence[Row]], list[Point]]:
    """Select the speed of the fastest party whose name starts with `ways`, relative to another party."""

    def points(rows: Sequence[Row]) -> list[Point]:
        out = []
        for case, parties in _cases(rows, table, batch).items():
            mine = [row for name, row in parties.items() if name.startswith(ways)]
            if mine and rival in parties:
                best = max(mine, key=lambda row: row.ratio)
                out.append(
                    Point(
                        best.ratio / parties[rival].ratio, f"{_where(case)}, {best.party.partition(', ')[2] or 'eager'}"
                    )
                )
        return out

    return points


def of_ceiling(network: str, batch: int) -> Callable[[Sequence[Row]], list[Point]]:
    """Select the best share of the matrix product's rate among our exact ways."""

    def points(rows: Sequence[Row]) -> list[Point]:
        mine = [r for p in _cases(rows, "exact", batch).values() for n, r in p.items() if n.startswith("ours")]
        shares = [Point(r.share, r.party) for r in mine if r.network == network]
        return [max(shares)] if shares else []

    return points


def memory(kind: str) -> Callable[[Sequence[Row]], list[Point]]:
    """Select our memory divided by timm's: "MB" of the process, or "live" for tensors."""

    def points(rows: Sequence[Row]) -> list[Point]:
        cases = _cases(rows, "memory of training").items()
        both = [(case, p["ours"].more, p[PEER].more) for case, p in cases if {"ours", PEER} <= set(p)]
        return [Point(mine[kind] / theirs[kind], _where(case)) for case, mine, theirs in both]

    return points


def agreement(numbers: str) -> Callable[[Sequence[Row]], list[Point]]:
    """Select the agreement in percent of the fastest way of each model in "int8" or "bfloat16"."""

    def points(rows: Sequence[Row]) -> list[Point]:
        out = []
        for case, parties in _cases(rows, "int8", 8).items():
            mine = [row for row in parties.values() if "agreement" in row.more and f", {numbers} " in row.party]
            if mine:
                best = max(mine, key=lambda row: row.ratio)
                out.append(Point(100 * best.more["agreement"], f"{case[1]}, {best.party}"))
        return out

    return points


def merged(rows: Sequence[Row]) -> list[Point]:
    """The fastest token merging that costs a trained model at most 0.5 percentage points."""
    out = []
    for case, parties in _cases(rows, "merging a trained model").items():
        whole = parties["ours"].more.get("accuracy", 2.0)  # unknown for a model that was not trained on the data
        good = [r for n, r in parties.items() if "merged" in n and r.more.get("accuracy", 0.0) >= whole - 0.005]
        if good:
            best = max(good, key=lambda row: row.ratio)
            out.append(
                Point(best.ratio, f"{case[1]}, {best.party}, {100 * (best.more['accuracy'] - whole):+.2f} points")
            )
    return out


def import_time(rows: Sequence[Row]) -> list[Point]:
    """Seconds for importing ndvit with its network, minus those for importing torch."""
    found = {row.party: row for row in rows if row.table == "start-up"}
    if "ndvit.create_model" not in found:
        return []
    return [
        Point((found[name].ms - found["import torch"].ms) / 1e3, name)
        for name in ("import ndvit", "ndvit.create_model")
    ]


def help_time(rows: Sequence[Row]) -> list[Point]:
    """Seconds for `ndvit --help`."""
    return [Point(row.ms / 1e3, row.party) for row in rows if row.table == "start-up" and row.party == "ndvit --help"]


GOALS = (
    Goal("eager: at least 1.00× timm, for every size and batch size", against("forward"), 1.0),
    *(
        Goal(f"eager: faster than {peer}", against("forward", peer), 1.0)
        for peer in ("transformers", "torchvision", "vit-pytorch")
    ),
    Goal("fastest exact way, batch 1: at least 1.35× timm", fastest("exact", 1), 1.35),
    Goal("fastest exact way, batch 8: at least 1.10× timm", fastest("exact", 8), 1.10),
    Goal("fastest exact way, batch 1: at least timm in ONNX Runtime", fastest("exact", 1, "timm, ONNX Runtime"), 1.0),
    Goal("fastest exact way, batch 8: at least timm in ONNX Runtime", fastest("exact", 8, "timm, ONNX Runtime"), 1.0),
    Goal(
        "ViT-B/16, batch 8: at least 0.9 of the matrix product's rate", of_ceiling("vit_base_patch16_224", 8), 0.9, ""
    ),
    Goal("8-bit integers, batch 8: at least 1.5× timm", fastest("int8", 8, ways="ours, int8"), 1.5),
    Goal("8-bit integers: same class for at least 99 %", agreement("int8"), 99, " %"),
    Goal("bfloat16, batch 8: at least 1.5× timm", fastest("int8", 8, ways="ours, bfloat16"), 1.5),
    Goal("bfloat16: same class for at least 99 %", agreement("bfloat16"), 99, " %"),
    Goal("merged tokens: at least 1.6× timm for at most 0.5 percentage points", merged, 1.6),
    Goal("training step: at least 1.10× timm", against("training"), 1.10),
    Goal("training step, torch.compile: at least 1.10× timm", fastest("training", 8, ways="ours, torch.compile"), 1.10),
    Goal("training step: at most 0.9 of the memory of timm's process", memory("MB"), 0.9, "×", True),
    Goal("training step: at most 0.9 of the memory of timm's tensors", memory("live"), 0.9, "×", True),
    Goal("training step, drop path 0.2 and patch dropout 0.25: at least 1.5× timm", against("dropping"), 1.5),
    Goal("import: at most 0.3 s more than torch", import_time, 0.3, " s", True),
    Goal("`ndvit --help`: at most 0.5 s", help_time, 0.5, " s", True),
)
