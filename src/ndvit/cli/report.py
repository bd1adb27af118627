from pathlib import Path
from typing import Literal

from ndvit.cli.printing import out
from ndvit.config.names import Language


def report(
    run: Path,
    /,
    *,
    output: Path | None = None,
    figures: Path | None = None,
    language: Language = "en",
    map: Literal["pca", "tsne"] = "pca",
    force: bool = False,
) -> None:
    """Write the report of a run again from what the run stored, without its data; nothing is trained or tested.

    Args:
        run: A run folder, or that of a cross-validation.
        output: The page. [default: report.html in the run folder, which is replaced]
        figures: A folder to write each figure to, as SVG and PDF for a paper.
        language: Language of the page's words.
        map: How the embedding map is made: pca (principal components), or tsne (neighbours stay together).
        force: Replace an existing output.
    """
    from ndvit.evaluation.stored import rewrite_report
    from ndvit.files import refuse_existing

    if output is not None:
        refuse_existing(output, force)
    if figures is not None:
        refuse_existing(figures, force, kind="folder")
    page = run / "report.html" if output is None else output
    saved = rewrite_report(run, page, language, figures, map)
    out(f"{page}: written from the results in {run}")
    if figures is not None:
        out(f"{figures}: {len(saved) // 2:,} figures, each as .svg and .pdf")
