"""The decision whether and how a network reads signals as spectrograms."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ndvit.config.presets import PRESETS
from ndvit.config.recipe import Recipe
from ndvit.config.spectrogram import FOR_CHANNELS, SPECTROGRAM_FIELDS, BandsAs, SpectrogramOptions
from ndvit.data.examples import Examples, Source
from ndvit.data.preprocess.spectrograms import SpectrogramPreprocess
from ndvit.data.sources.files import Excerpt, header_of, medium
from ndvit.training.closed_form import MOST_EXAMPLES
from ndvit.weights.file import Checkpoint

SILENCE = 30.0
"""Decibels below the loudest place of a sound file that count as silence, by default."""
SPEEDS = (0.9, 1.1)
"""Speeds of copies of sounds beside their own, by default."""


def choose_spectrogram(
    data: Source,
    recipe: Recipe,
    preset: str,
    model: str | None,
    checkpoint: Checkpoint | None,
    new: bool,
    by_steps: bool = False,
) -> tuple[Source, dict[str, Any], tuple[str, ...]]:
    """Decide whether the signals of a source are read as spectrograms, and with which options.

    Trained weights keep the spectrogram that they were trained on. Without an option and without trained weights of
    signals, training reads sound files as spectrograms, because that is better for speakers that the network has not
    heard; pretraining reads waveforms.

    Args:
        data: the source.
        recipe: has the options.
        preset: name of a preset, or "auto".
        model: name of the network; None if the preset or the weights have it.
        checkpoint: trained weights; None without.
        new: whether a new training begins; one that goes on has all options.
        by_steps: whether the request has a teacher or options that only training by steps reads.

    Returns:
        The source with the options of its spectrogram, fields of the recipe to store, and notes.

    Raises:
        ValueError: for a spectrogram of anything but signals of one axis.
    """
    own = SpectrogramOptions(**{name: getattr(recipe, name) for name in SPECTROGRAM_FIELDS})
    past = None if checkpoint is None else checkpoint.preprocess
    if isinstance(past, SpectrogramPreprocess) and own.spectrogram != "off":
        kept = past.options().to_dict()
        own = SpectrogramOptions(**{k: v if v is not None else kept[k] for k, v in own.to_dict().items()})
    usual = new and are_sounds(data.train) and (checkpoint is None or len(checkpoint.config.input_size) == 2)
    kind = own.spectrogram or ("mel" if usual else "off")
    if own.spectrogram is None and preset == "spectrogram" and data.kind == "signal" and data.dims == 1:
        kind = "linear" if header_of(data.train.items[0]).rate is None else "mel"
    if kind == "off":
        idle = [name for name, value in own.to_dict().items() if value is not None and name != "spectrogram"]
        if idle:
            raise ValueError(
                f"{' and '.join(idle)} would do nothing without a spectrogram: set --spectrogram mel or linear "
                f"(spectrogram=), or leave {'it' if len(idle) == 1 else 'them'} out"
            )
        return data, {}, ()
    if data.kind != "signal" or data.dims != 1:
        what = "pictures" if data.kind == "image" else f"arrays of {data.dims} axes"
        raise ValueError(
            f"spectrogram={kind!r} is for signals of one axis, and {data.name} holds {what}: leave --spectrogram out"
        )
    solved = usual and checkpoint is None and preset == "auto" and not by_steps and len(data.train) <= MOST_EXAMPLES
    bands_as = own.bands_as or ("channels" if solved and model is None else _usual_bands(preset, model, checkpoint))
    options = replace(own, spectrogram=kind, bands_as=bands_as)
    notes: tuple[str, ...] = ()
    if own.spectrogram is None and past is None and usual:
        notes = (
            "sound files are read as mel spectrograms, with which a network knows new speakers and machines better: "
            "--spectrogram off (spectrogram='off') reads their waveforms",
        )
    if own.silence is None and past is None and new and are_sounds(data.train):
        options = replace(options, silence=SILENCE)
        notes += (
            f"silence at both ends of the sounds ({SILENCE:g} dB below their loudest place) is cut off, and their "
            "durations are made equal: --silence 0 (silence=0) keeps both",
        )
    if own.speeds is None and past is None and new and _varies_by_speaker(data, options):
        options = replace(options, speeds=SPEEDS)
    elif set(own.speeds or ()) - {1} and (bands_as != "channels" or header_of(data.train.items[0]).rate is None):
        raise ValueError(
            "speeds are for recordings with a sample rate and networks that are solved in closed form, which read "
            "bands as channels: leave --speeds out, or set --preset fast"
        )
    return replace(data, spectrogram=options), options.to_dict(), notes


def _varies_by_speaker(data: Source, options: SpectrogramOptions) -> bool:
    """Whether the examples are classes of sounds whose duration does not matter, so that their speed may not, either.

    Whether it does not, leaving examples out decides, see `solve_networks`.
    """
    return bool(options.silence and options.bands_as == "channels" and are_sounds(data.train) and data.classes)


def are_sounds(examples: Examples) -> bool:
    """Whether the examples are sound files, or windows of them."""
    if not len(examples) or examples.streamed:
        return False
    item = examples.items[0]
    path = item.path if isinstance(item, Excerpt) else item
    return isinstance(path, str | Path) and medium(path) == "sound files"


def _usual_bands(preset: str, model: str | None, checkpoint: Checkpoint | None) -> BandsAs:
    """How the bands are read by a network that is already chosen, or else by the one that is best."""
    if checkpoint is not None:
        return "picture" if len(checkpoint.config.input_size) == 2 else "channels"
    if model is not None:
        return "channels" if model.startswith(FOR_CHANNELS) else "picture"
    if preset == "auto":
        return "picture"
    network = PRESETS[preset].model or ""
    return "channels" if network.startswith(FOR_CHANNELS) else "picture"
