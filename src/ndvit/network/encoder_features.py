"""Features of signals by a frozen encoder, a Vision Transformer of one channel that was pretrained on other signals."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ndvit.config import ViTConfig
from ndvit.network.solved import SolvedNetwork, exactly
from ndvit.network.vit import VisionTransformer

WINDOWS = ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0))
"""The parts of a signal that are read at any length: the whole and its halves."""
MOST_CHANNELS = 8  # that are read one by one; of more channels, as many principal components are read
_FEWEST_LENGTHS, _MOST_LENGTHS = 1.5, 16  # of the encoder's input in a signal that is also read in local windows
_CHUNK = 256  # signals in a forward pass of the encoder, whose activations then stay in the cache
_MOST_PLACES = 2**22  # samples that are read at once of signals of different lengths
_FLOOR = 1e-6
_NO_VARIANCE = 1e-20  # as a root has no gradient at 0
_NO_SPREAD = 1e-12  # of features
_ROUNDING = 1e-6  # of float32, relative to the values


class EncoderFeatures(SolvedNetwork):
    """Features of a frozen encoder, and a linear head that is solved in closed form: (B, C, L) -> (B, outputs).

    Each channel is read by itself. Its windows (the observed part of the signal, and each half of it) are resampled to
    the encoder's input, linear and antialiased, and standardised. For the features of a window see `token_features`.

    Resampling removes the detail of long signals. So they are also read in local windows, see `window_starts`, whose
    features are pooled: mean, standard deviation and maximum over the windows.

    Args:
        config: of the encoder: one channel of one axis, with a class token.
        channels: channels of the signal.
        length: samples of the signal.
        outputs: outputs of the head.
        local: whether long signals are read in local windows as well; models of earlier versions do not.

    Raises:
        ValueError: if the encoder reads something else than one channel of one axis, or has no class token.
    """

    mix: Tensor

    def __init__(self, config: ViTConfig, channels: int, length: int, outputs: int, local: bool = True) -> None:
        if (config.in_channels, len(config.input_size), config.class_token) != (1, 1, True):
            raise ValueError(
                "an encoder of signals reads 1 channel of 1 axis and has a class token, got "
                f"in_channels={config.in_channels}, input_size={config.input_size}, class_token={config.class_token}"
            )
        read, size = min(channels, MOST_CHANNELS), config.input_size[0]
        self.starts, self.shortening = window_starts(length, size) if local else ((), 1)
        pooled = 3 if self.starts else 0
        super().__init__(read * (len(WINDOWS) + pooled) * 3 * config.depth * config.embed_dim, outputs)
        self.channels, self.length = channels, length
        self.num_views = read * (len(WINDOWS) + len(self.starts))  # that the encoder reads of an example
        self.encoder = VisionTransformer(config)
        self.encoder.requires_grad_(False)
        self.register_buffer("mix", torch.eye(read, channels))

    @property
    def parts(self) -> list[Tensor]:
        """Features of the whole signal, of its halves, and of its local windows.

        A common solution leans on the views that tell most about the training examples. Where these are few, the mean
        of three solutions often errs less.
        """
        kinds = [1, len(WINDOWS) - 1, *([3] if self.starts else [])]
        places = torch.arange(self.num_features).view(len(self.mix), sum(kinds), -1)  # (read, views, F)
        return [part.flatten() for part in places.split(kinds, 1)]

    @torch.no_grad()
    def init_weights(self) -> None:
        """Reset everything that `draw` chooses and training solves; the encoder keeps its weights."""
        self.mix.copy_(torch.eye(*self.mix.shape))
        self.reset_head()

    @property
    def token_length(self) -> int:
        """Samples of a whole signal that a token of the encoder covers, at least 1."""
        config = self.encoder.config
        return max(1, round(self.length * config.token_size[0] / config.input_size[0]))

    def draw(self, x: Tensor, mask: Tensor | None, generator: torch.Generator) -> None:
        """Choose the mixes of more channels than are read one by one: the principal components of the examples."""
        if self.channels > len(self.mix):
            values = x.double().transpose(0, 1).flatten(1)  # (C, B L)
            if mask is not None:
                values = values * mask.flatten()
            vectors = torch.linalg.eigh(values @ values.mT).eigenvectors.mT.flip(0)[: len(self.mix)]
            largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))  # positive, whatever the solver returned
            self.mix.copy_(vectors * largest.sign())

    def features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features (B, F) of signals (B, C, L); mask (B, L) is True where a value was observed.

        They have a gradient if the signals do, which explanations use; the encoder's weights need none.
        """
        rows = max(1, len(x))
        if mask is not None:  # each signal has places of its own
            size = self.encoder.config.input_size[0]
            rows = max(1, _MOST_PLACES // (len(WINDOWS) * size * taps(x.shape[2], size)))
        masks = [None] * len(x) if mask is None else mask.split(rows)
        with exactly(x):
            views = torch.cat([self.views(*part) for part in zip(x.to(self.mix).split(rows), masks)])
            read = [token_features(self.encoder, part) for part in views.split(_CHUNK)]
            return self.joined(torch.cat(read), mask)

    def plain_features(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`features` of all examples at once, without contexts, as an exported graph computes them."""
        return self.joined(token_features(self.encoder, self.views(x, mask)), mask)

    def views(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the encoder reads of signals (B, C, L): (B num_views, 1, size), standardised."""
        if self.channels > len(self.mix):
            x = self.mix @ x  # (B, read, L)
        size = self.encoder.config.input_size[0]
        start, stop = observed_range(x, mask)  # (1,) or (B,)
        first, last = (torch.stack([start + share * (stop - start) for share in ends], 1) for ends in zip(*WINDOWS))
        views = torch.cat([resampled(x, first, last, size), *self.local_windows(x)], 2)  # (B, read, windows, size)
        mean = views.mean(3, keepdim=True)
        centred = views - mean
        spread = centred.square().mean(3, keepdim=True).clamp(min=_NO_VARIANCE).sqrt()
        # else the window is constant, and rounding errors would be enlarged
        varies = spread > 2 * _NO_VARIANCE**0.5 + _ROUNDING * mean.abs()
        views = centred * varies / (spread + _FLOOR)
        return views.flatten(0, 2)[:, None]

    def local_windows(self, x: Tensor) -> list[Tensor]:
        """The local windows of signals (B, C, L): each (B, C, 1, size)."""
        if not self.starts:
            return []
        short = x if self.shortening == 1 else F.avg_pool1d(x, self.shortening)
        return [short[:, :, None, start : start + self.encoder.config.input_size[0]] for start in self.starts]

    def joined(self, read: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features (B, F) of examples from those of their views (B num_views, F of a view).

        A local window counts if at least half of it was observed, or as much as of any other window of the signal.
        """
        views = read.unflatten(0, (-1, len(self.mix), self.num_views // len(self.mix)))  # (B, read, views, F)
        if not self.starts:
            return views.flatten(1)
        local = views[:, :, len(WINDOWS) :]
        if mask is None:
            mean, largest = local.mean(2, keepdim=True), local.amax(2, keepdim=True)
            variance = (local - mean).square().mean(2, keepdim=True)
        else:
            share = torch.cat(self.local_windows(mask[:, None].to(read)), 2).mean(3, keepdim=True)  # (B, 1, n, 1)
            counts = (share >= share.amax(2, keepdim=True).clamp(max=0.5)).to(read)
            weight = counts / counts.sum(2, keepdim=True)
            mean = (local * weight).sum(2, keepdim=True)
            variance = ((local - mean).square() * weight).sum(2, keepdim=True)
            largest = local.masked_fill(counts == 0, -torch.inf).amax(2, keepdim=True)
        spread = variance.clamp(min=_NO_SPREAD).sqrt()
        return torch.cat([views[:, :, : len(WINDOWS)], mean, spread, largest], 2).flatten(1)


def window_starts(length: int, size: int) -> tuple[tuple[int, ...], int]:
    """Where the local windows of a signal of this many samples start, and by what factor it is shortened before.

    Windows of `size` samples overlap by about a half. A signal below one and a half of this size has none. One beyond
    sixteen is shortened, by means of neighbouring samples, so that their number stays bounded.
    """
    shortening = math.ceil(length / (_MOST_LENGTHS * size))
    short = length // shortening
    if short < _FEWEST_LENGTHS * size:
        return (), 1
    count = 2 * round(short / size) - 1
    return tuple(round(i * (short - size) / (count - 1)) for i in range(count)), shortening


def token_features(encoder: VisionTransformer, x: Tensor) -> Tensor:
    """Class token, and mean and maximum of the patch tokens, after every block and the last norm.

    (B, 1, L) -> (B, depth 3 D). The last block alone reads less: it is the most specialised for pretraining.
    """
    blocks = encoder.stages(x, blocks=range(encoder.config.depth)).blocks
    made = []
    for tokens in map(encoder.norm, blocks.values()):  # (B, T, D)
        patches = tokens[:, encoder.num_prefix_tokens :]
        made += [tokens[:, 0], patches.mean(1), patches.amax(1)]
    return torch.cat(made, 1)


def observed_range(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """First observed sample, and the one after the last: (B,) each, or (1,) if all samples were observed."""
    length = x.shape[-1]
    if mask is None:
        return x.new_zeros(1), x.new_full((1,), length)
    places = torch.arange(length, device=x.device)
    first = torch.where(mask, places, length - 2).amin(1)
    last = torch.where(mask, places, 0).amax(1)
    return first.to(x), torch.maximum(last + 1, first + 2).to(x)  # at least two samples


def resampled(x: Tensor, start: Tensor, stop: Tensor, size: int) -> Tensor:
    """Resample windows of each signal, linear and antialiased: (B, C, L) -> (B, C, windows, size).

    As `F.interpolate(mode="linear", antialias=True)` of each window, if it existed for parts of different lengths.

    Args:
        x: (B, C, L).
        start: (B, windows) or (1, windows), the first sample of each window; it may lie between samples.
        stop: likewise, one after the last sample.
        size: samples of the result.
    """
    # In float32, places would be rounded by each runtime in another way, which differences of few samples amplify.
    places, weight = resampling(start.double(), stop.double(), x.shape[2], size)
    shape = places.shape[1:]
    places = places.flatten(1)[:, None].expand(x.shape[0], x.shape[1], -1)
    return (x.gather(2, places).unflatten(2, shape) * weight.to(x)[:, None]).sum(4)


def taps(length: int, size: int) -> int:
    """The most samples that one sample of a resampled window consists of."""
    return 2 * math.ceil(max(1.0, length / size))


def resampling(start: Tensor, stop: Tensor, length: int, size: int) -> tuple[Tensor, Tensor]:
    """Which samples a resampled window consists of, and with which weights: each (B, windows, size, taps).

    The windows are the samples from `start` to `stop`, both (B, windows), of signals of this length.
    """
    step = (stop - start)[:, :, None] / size  # samples of the signal per sample of the result
    centres = start[:, :, None] + (torch.arange(size, device=start.device) + 0.5) * step - 0.5  # (B, windows, size)
    reach = step.clamp(min=1)
    nearby = torch.arange(taps(length, size), device=start.device, dtype=start.dtype)
    places = (centres - reach).floor()[..., None] + 1 + nearby  # all samples nearer than the reach
    distance = (places - centres[..., None]).abs() / reach[..., None]
    inside = (places >= (start - 0.5)[..., None, None]) & (places < (stop - 0.5)[..., None, None])
    weight = (1 - distance).clamp(min=0) * inside
    return places.clamp(0, length - 1).long(), weight / weight.sum(3, keepdim=True)
