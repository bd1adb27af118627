"""Draw the rooms of src/ndvit and the direction of imports: `python docs/architecture.py` writes architecture.svg.

The rooms and their floors come from rooms.txt.
"""

import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).resolve().parent
COLOURS = {
    "config": "#fdf3d8", "network": "#e3eefb", "model": "#fbe3d6", "data": "#e2f3e6", "tasks": "#efe6f8",
    "training": "#fbe3d6", "weights": "#e3eefb",
}  # fmt: skip
WIDTH, HEIGHT, GAP = 10.0, 0.78, 0.22


def read_rooms(path: Path = HERE / "rooms.txt") -> list[tuple[int, str, str]]:
    """The lines of rooms.txt as (floor, room, contents)."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    parts = [line.split(maxsplit=2) for line in lines]
    return [(int(floor), room, contents) for floor, room, contents in parts]


def draw(path: Path) -> None:
    """Write the drawing: one row per floor, the lowest at the bottom."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    floors: dict[int, list[tuple[str, str]]] = {}
    for floor, room, contents in read_rooms():
        floors.setdefault(floor, []).append((room, contents))
    matplotlib.rcParams["svg.hashsalt"] = "ndvit"  # the same file each time
    figure = Figure(figsize=(9.5, len(floors) * 0.72 + 0.6), facecolor="white")
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    for row, (_, rooms) in enumerate(sorted(floors.items())):
        width = (WIDTH - GAP * (len(rooms) - 1)) / len(rooms)
        for column, (room, contents) in enumerate(rooms):
            x, y = column * (width + GAP), row * (HEIGHT + GAP)
            colour = COLOURS.get(room, "#f1f1ef")
            box = FancyBboxPatch((x + 0.05, y + 0.05), width - 0.1, HEIGHT - 0.1, boxstyle="round,pad=0.05",
                                 facecolor=colour, edgecolor="#8a8a84", linewidth=1)  # fmt: skip
            axes.add_patch(box)
            lines = textwrap.wrap(contents, 36) if len(rooms) > 1 else [contents]
            axes.text(x + 0.2, y + HEIGHT / 2, room, va="center", fontsize=11, family="monospace", weight="bold")
            axes.text(x + 1.95, y + HEIGHT / 2, "\n".join(lines), va="center", fontsize=9.5, color="#333333")
    top = len(floors) * (HEIGHT + GAP) - GAP
    axes.annotate("", (WIDTH + 0.35, 0), (WIDTH + 0.35, top), arrowprops={"arrowstyle": "-|>", "color": "#555555"})
    axes.text(WIDTH + 0.55, top / 2, "imports", rotation=-90, va="center", fontsize=11, color="#555555")
    axes.set_xlim(-0.1, WIDTH + 1)
    axes.set_ylim(-0.15, top + 0.15)
    axes.axis("off")
    figure.savefig(path, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "architecture.svg")
