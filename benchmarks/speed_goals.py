"""What the bench of speed aims at, and how near its rows come."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from speed_work import PEER, Row

Case = tuple[str, str, int, str, str]
SHORT = {"vit_tiny": "ViT-Ti", "vit_small": "ViT-S", "vit_base": "ViT-B"}


class Point(NamedTuple):
    """A number, and where it was measured."""

    value: float
    where: str


class Goal(NamedTuple):
    """What was aimed at.

    Attributes:
        text: in words.
        points: the numbers of the rows that it is about.
        bound: what each should be at least; or at most, where `most`.
        unit: behind a number.
        most: less is better.
    """

    text: str
    points: Callable[[Sequence[Row]], list[Point]]
    bound: float
    unit: str = "×"
    most: bool = False

    def met(self, point: Point) -> bool:
        """Whether a number is good enough, at the two digits that are shown."""
        value = round(point.value, 2)
        return value <= self.bound if self.most else value >= self.bound

    def cells(self, rows: Sequence[Row]) -> list[str]:
        """The goal, what was measured from the worst to the best, and whether it is met."""
        points = sorted(self.points(rows), reverse=self.most)
        if not points:
            return [self.text, "not measured", "–"]
        ends = [points[0]] if len(points) == 1 else [points[0], points[-1]]
        told = " to ".join(f"{point.value:.2f}{self.unit} ({point.where})" for point in ends)
        good = sum(map(self.met, points))
        met = "yes" if good == len(points) else "no" if good == 0 else f"{good} of {len(points)}"
        return [self.text, told, met]


def short(network: str) -> str:
    """ViT-B/16 of vit_base_patch16_224."""
    name = next((short for long, short in SHORT.items() if network.startswith(long)), network)
    return f"{name}/16" if "patch16" in network and name != network else name


def _cases(rows: Sequence[Row], table: str, batch: int | None = None) -> dict[Case, dict[str, Row]]:
    """By case on a CPU: the rows of its parties."""
    found: dict[Case, dict[str, Row]] = {}
    for row in rows:
        if row.table == table and row.device == "cpu" and batch in (None, row.batch):
            found.setdefault(row.case, {})[row.party] = row
    return found


def _where(case: Case) -> str:
    return f"{short(case[1])}, batch {case[2]}"


def against(table: str, rival: str = PEER) -> Callable[[Sequence[Row]], list[Point]]:
    """How many times as fast as a rival ours is, as it is written."""

    def points(rows: Sequence[Row]) -> list[Point]:
        found = _cases(rows, table)
        return [
            Point(p["ours"].ratio / p[rival].ratio, _where(c)) for c, p in found.items() if {"ours", rival} <= set(p)
        ]

    return points


def fastest(table: str, batch: int, rival: str = PEER, ways: str = "ours") -> Callable[[Sequence[Row]], list[Point]]:
    """How many times as fast as a rival the fastest of the parties is whose names begin so."""

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
    """The best share of the matrix product's rate that any exact way of ours reaches."""

    def points(rows: Sequence[Row]) -> list[Point]:
        mine = [r for p in _cases(rows, "exact", batch).values() for n, r in p.items() if n.startswith("ours")]
        shares = [Point(r.share, r.party) for r in mine if r.network == network]
        return [max(shares)] if shares else []

    return points


def memory(kind: str) -> Callable[[Sequence[Row]], list[Point]]:
    """Ours by timm's: "MB" of the process, or "live" tensors."""

    def points(rows: Sequence[Row]) -> list[Point]:
        cases = _cases(rows, "memory of training").items()
        both = [(case, p["ours"].more, p[PEER].more) for case, p in cases if {"ours", PEER} <= set(p)]
        return [Point(mine[kind] / theirs[kind], _where(case)) for case, mine, theirs in both]

    return points


def agreement(numbers: str) -> Callable[[Sequence[Row]], list[Point]]:
    """Of the fastest way of each model in "int8" or "bfloat16", in percent."""

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
    """The fastest merging that costs a trained model half a point at most."""
    out = []
    for case, parties in _cases(rows, "merging a trained model").items():
        whole = parties["ours"].more.get("accuracy", 2.0)  # not known of a model that was not trained on the data
        good = [r for n, r in parties.items() if "merged" in n and r.more.get("accuracy", 0.0) >= whole - 0.005]
        if good:
            best = max(good, key=lambda row: row.ratio)
            out.append(
                Point(best.ratio, f"{case[1]}, {best.party}, {100 * (best.more['accuracy'] - whole):+.2f} points")
            )
    return out


def import_time(rows: Sequence[Row]) -> list[Point]:
    """Seconds of `import ndvit` with its network, beyond those of torch."""
    found = {row.party: row for row in rows if row.table == "start-up"}
    if "ndvit.create_model" not in found:
        return []
    return [
        Point((found[name].ms - found["import torch"].ms) / 1e3, name)
        for name in ("import ndvit", "ndvit.create_model")
    ]


def help_time(rows: Sequence[Row]) -> list[Point]:
    """Seconds of `ndvit --help`."""
    return [Point(row.ms / 1e3, row.party) for row in rows if row.table == "start-up" and row.party == "ndvit --help"]


GOALS = (
    Goal("as it is written: at least 1.00× timm, every size and batch", against("forward"), 1.0),
    *(
        Goal(f"as it is written: faster than {peer}", against("forward", peer), 1.0)
        for peer in ("transformers", "torchvision", "vit-pytorch")
    ),
    Goal("fastest exact way at batch 1: at least 1.35× timm", fastest("exact", 1), 1.35),
    Goal("fastest exact way at batch 8: at least 1.10× timm", fastest("exact", 8), 1.10),
    Goal("and at least ONNX Runtime's of timm's graph, batch 1", fastest("exact", 1, "timm, ONNX Runtime"), 1.0),
    Goal("and at least ONNX Runtime's of timm's graph, batch 8", fastest("exact", 8, "timm, ONNX Runtime"), 1.0),
    Goal(
        "ViT-B/16 at batch 8: at least 0.9 of the matrix product's rate", of_ceiling("vit_base_patch16_224", 8), 0.9, ""
    ),
    Goal("8-bit integers, batch 8: at least 1.5× timm", fastest("int8", 8, ways="ours, int8"), 1.5),
    Goal("8-bit integers: the same class in at least 99 %", agreement("int8"), 99, " %"),
    Goal("the same of bfloat16, batch 8: at least 1.5× timm", fastest("int8", 8, ways="ours, bfloat16"), 1.5),
    Goal("bfloat16: the same class in at least 99 %", agreement("bfloat16"), 99, " %"),
    Goal("merged tokens: at least 1.6× timm for half a point at most", merged, 1.6),
    Goal("training step: at least 1.10× timm", against("training"), 1.10),
    Goal(
        "training step by torch.compile: at least 1.10× timm", fastest("training", 8, ways="ours, torch.compile"), 1.10
    ),
    Goal("training step: at most 0.9 of the memory that timm's process takes", memory("MB"), 0.9, "×", True),
    Goal("training step: at most 0.9 of what timm's tensors take", memory("live"), 0.9, "×", True),
    Goal("training step, drop path 0.2 and patch dropout 0.25: at least 1.5× timm", against("dropping"), 1.5),
    Goal("import: at most 0.3 s more than torch's", import_time, 0.3, " s", True),
    Goal("`ndvit --help`: at most 0.5 s", help_time, 0.5, " s", True),
)
