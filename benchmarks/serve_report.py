"""The table of docs/serving.md from the results of serve.py."""

from typing import Any


def table(results: dict[str, Any]) -> str:
    """Markdown: one row for each bar."""
    rows = ["| | bar | DeiT-Tiny, 224 x 224 | signal network |", "|---|---|---|---|"]
    cases = ("deit_tiny 224", "signal")

    def row(what: str, bar: str, cell: Any) -> None:
        cells = []
        for case in cases:
            try:
                cells.append(cell(case))
            except (KeyError, TypeError):
                cells.append("–")
        rows.append(f"| {what} | {bar} | {' | '.join(cells)} |")

    def rates(case: str, kind: str) -> tuple[float, int]:
        times = {int(size): seconds for size, seconds in results["offline"][case][kind].items()}
        best = max(times, key=lambda size: size / times[size])
        return best / times[best], best

    row("runtime", "", lambda case: results["load"][case]["way"])
    for kind, words in (("network", "the network alone"), ("whole", "with reading, one thread")):
        row(
            f"offline: {words}, best batch",
            "",
            lambda case, kind=kind: "{:,.1f}/s at {}".format(*rates(case, kind)),
        )
    row(
        "offline: the network alone, several batches at one time",
        "",
        lambda case: "{1:,.1f}/s at {0}".format(*max(results["offline"][case]["streams"].items(), key=lambda p: p[1])),
    )
    for key, words in (("64", "files or JSON"), ("64 protocol", "tensors")):
        row(
            f"64 clients, {words}: answers a second",
            "0.9 of offline",
            lambda case, key=key: (
                f"{results['load'][case][key]['per_second']:,.1f}/s, "
                f"{results['load'][case][key]['per_second'] / rates(case, 'network')[0]:.2f} of the network, "
                f"{results['load'][case][key]['per_second'] / rates(case, 'whole')[0]:.2f} of reading and network"
            ),
        )
        row(
            f"64 clients, {words}: p99",
            "3 batches",
            lambda case, key=key: (
                f"{1e3 * results['load'][case][key]['p99']:,.0f} ms, "
                f"{results['load'][case][key]['p99'] / results['offline'][case]['network']['32']:.1f} batches of 32"
            ),
        )
    row(
        "1 client: p50 beside the network's time",
        "5 ms",
        lambda case: (
            f"{1e3 * (results['load'][case]['one']['p50'] - results['offline'][case]['network']['1']):.1f} ms "
            f"of {1e3 * results['load'][case]['one']['p50']:.1f}"
        ),
    )
    row(
        "640 clients without pause: answered, refused, broken",
        "no crash",
        lambda case: "{answered:,.0f}, {refused:,.0f}, {broken:,.0f}".format(**results["load"][case]["overload"]),
    )
    row(
        "memory in the first and last quarter of it",
        "flat",
        lambda case: " and ".join(
            f"{results['load'][case]['overload'][f'memory_{part}_quarter'] / 2**20:,.0f} MiB"
            for part in ("first", "last")
        ),
    )
    for part in ("reload", "sigterm", "fuzz"):
        if part in results:
            rows.append(f"\n{part}: " + ", ".join(f"{key}: {value}" for key, value in sorted(results[part].items())))
    for case, found in results.get("peers", {}).items():
        rows += ["", f"| {case} | 64 clients | p99 | 1 client, p50 |", "|---|---|---|---|"]
        for peer, values in found.items():
            if isinstance(values, str):
                rows.append(f"| {peer} | {values} | | |")
            else:
                many, one = values["64"], values["one"]
                times = f"{1e3 * many['p99']:,.0f} ms | {1e3 * one['p50']:,.1f} ms"
                rows.append(f"| {peer} | {many['per_second']:,.1f}/s | {times} |")
    return "\n".join(rows)
