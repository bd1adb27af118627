"""Which frequencies of a signal decided: the fall of the output without each band."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

_MOST = 6  # octaves


@dataclass(frozen=True, eq=False)
class Bands:
    """Relevance of frequency bands of one example.

    Attributes:
        edges: (bands + 1,) frequencies, in Hz for recordings and in cycles per sample for plain arrays.
        relevance: (bands,) by how much the output falls when the band is taken out of all channels. Together they do
            not make up the output, because a network is not linear.
    """

    edges: np.ndarray
    relevance: np.ndarray


def octaves(count: int, highest: float) -> list[float]:
    """Edges of bands, each twice as wide as the one below; the lowest begins at 0, the highest ends at `highest`."""
    return [0.0, *(highest / 2 ** (count - 1 - i) for i in range(count))]


def usual_bands(length: int) -> int:
    """Number of octaves of a signal of this length: at most 6, of which none is below the resolution."""
    return max(1, min(_MOST, int(math.log2(max(length, 2) / 2)) + 1))


def band_relevance(
    network: nn.Module, x: Tensor, mask: Tensor | None, targets: Tensor, edges: Sequence[Sequence[float]]
) -> Tensor:
    """By how much the output falls when a band is taken out: (B, bands).

    Args:
        network: in eval mode.
        x: (B, C, L).
        mask: (B, L), or None.
        targets: (B,) indices of outputs.
        edges: of each example, (B, bands + 1), in cycles per sample of x; the last band includes its end.
    """
    limits = torch.tensor(edges, dtype=torch.float64)  # (B, bands + 1)
    limits[:, -1] = limits[:, -1] * (1 + 1e-9) + 1e-9
    frequencies = torch.fft.rfftfreq(x.shape[2], dtype=torch.float64)
    inside = (frequencies >= limits[:, :-1, None]) & (frequencies < limits[:, 1:, None])  # (B, bands, F)
    with torch.no_grad():
        spectrum = torch.fft.rfft(x.double())
        whole = network(x, mask).gather(1, targets[:, None])[:, 0]
        falls = []
        for band in inside.to(x.device).unbind(1):
            without = torch.fft.irfft(spectrum.masked_fill(band[:, None], 0), n=x.shape[2]).to(x.dtype)
            falls.append(whole - network(without, mask).gather(1, targets[:, None])[:, 0])
    return torch.stack(falls, 1)
