"""Make torchvision importable where its compiled operators cannot be loaded.

PyPI's Linux build of torchvision is compiled against CUDA. Beside a CPU-only torch its operators do not load, and
`import torchvision` (lightning and timm do it too) then dies because a Python file registers shapes for two operators
that do not exist. ndvit reads pictures with PIL and transforms them in Python, and needs none of the operators:
declaring the two names, without an implementation, is enough. Where the operators do load, nothing is declared.
"""

import importlib.util
from pathlib import Path

import torch

_MISSING = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a Library's definitions live only as long as the object


def make_importable() -> None:
    """Declare torchvision's operator names if, and only if, its compiled library cannot be loaded."""
    spec = importlib.util.find_spec("torchvision")
    if _declared or spec is None or spec.origin is None:
        return
    compiled = next(Path(spec.origin).parent.glob("_C*.so"), None)
    if compiled is None:  # macOS and Windows wheels are built for the CPU and load as they are
        return
    try:
        torch.ops.load_library(str(compiled))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for schema in _MISSING:
            library.define(schema)
        _declared.append(library)


make_importable()
