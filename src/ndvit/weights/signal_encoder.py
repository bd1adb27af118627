"""The encoder of signals that ndvit ships: its config and tensors, trained on synthetic signals alone.

`benchmarks/pretrain_signals.py` made it; the header of the file has its recipe and its licence.
"""

from pathlib import Path

from torch import Tensor

from ndvit.config import ViTConfig
from ndvit.weights.file import checkpoint_from_header
from ndvit.weights.reading.files import read_tensors

FILE = Path(__file__).with_name("signal_encoder.safetensors")


def signal_encoder() -> tuple[ViTConfig, dict[str, Tensor]]:
    """Config of the encoder, a `VisionTransformer` of one channel, and its tensors in float32."""
    file = read_tensors(FILE)  # in bfloat16, which halves the size of the package
    checkpoint = checkpoint_from_header(FILE, file.header, file.tensors)
    return checkpoint.config, {name: tensor.float() for name, tensor in file.tensors.items()}
