"""The models that the signal benchmark compares, and the variants of its ablation: two tables."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from signal_peers import Body, PeerClassifier, as_source, inceptiontime, our_stem, preset_recipe, resnet

from ndvit import ViTClassifier

MEMBERS = 5  # fits of `ours` in the ensemble `ours-ensemble`


class Setting(NamedTuple):
    """Arguments for making a model: seed, threads, number of steps (0 for the default), and the training data."""

    seed: int
    threads: int
    trial: int
    X: np.ndarray
    y: np.ndarray


Make = Callable[[Setting], Any]


@dataclass(frozen=True)
class Model:
    """A row of the table of models.

    Attributes:
        about: description in the report.
        make: function that makes a classifier with `fit`, `predict_proba` and `classes_`; None for models that are
            derived from fits of `ours`.
        random: whether the seed changes the result.
    """

    about: str
    make: Make | None
    random: bool = True


def ours(
    preset: str = "auto",
    *,
    times: float = 1,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Make:
    """Make a ViTClassifier from a preset with some options changed; `times` multiplies the steps of the preset."""

    def make(setting: Setting) -> ViTClassifier:
        steps = (setting.trial or None) if preset != "fast" else None  # it takes no steps
        if times != 1:
            steps = steps or preset_recipe(preset, as_source(setting.X, setting.y)).total_steps(len(setting.X))
            steps = max(1, round(times * steps))
        return ViTClassifier(
            preset=preset,
            steps=steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            options=options or None,
            random_state=setting.seed,
            device="cpu",  # like all other models
        )

    return make


def network(**options: Any) -> Make:
    """Make the network of the preset `signal` alone, trained on all examples, with some options changed."""
    return ours("signal", rocket_features=0, encoder=False, val_fraction=0.0, **options)


def peer(body: Body, width: int = 128) -> Make:
    """Make a convolutional network with `width` features, trained with the recipe of `ours`."""
    return lambda setting: PeerClassifier(body, width, setting.seed, setting.trial or None)


def minirocket(setting: Setting) -> Any:
    from aeon.classification.convolution_based import MiniRocketClassifier

    return MiniRocketClassifier(n_jobs=setting.threads, random_state=setting.seed)


def multirocket_hydra(setting: Setting) -> Any:
    from aeon.classification.convolution_based import MultiRocketHydraClassifier

    return MultiRocketHydraClassifier(n_jobs=setting.threads, random_state=setting.seed)


def quant(setting: Setting) -> Any:
    from aeon.classification.interval_based import QUANTClassifier

    return QUANTClassifier(random_state=setting.seed)


def nearest_neighbour(setting: Setting) -> Any:
    from aeon.classification.distance_based import KNeighborsTimeSeriesClassifier

    return KNeighborsTimeSeriesClassifier(distance="dtw", distance_params={"window": 0.1}, n_jobs=setting.threads)


MODELS = {
    "ours": Model("`ViTClassifier()`, the default: random convolutions, frozen encoder, and one network as far as "
                  "held-out examples show that it helps; no network below ten examples a class", ours()),
    "ours-fast": Model("`ViTClassifier(preset='fast')`: random convolutions and frozen encoder, solved in closed form",
                       ours("fast")),
    "ours-ensemble": Model(
        f"mean probabilities of `ours` with seeds 0 to {MEMBERS - 1}, which equals `members={MEMBERS}`; its seconds "
        "are the sum over these fits",
        None,
    ),
    "hybrid": Model("the network of `ours` alone, trained on all examples: convolutional stem and transformer",
                    network()),
    "features-alone": Model("the random convolutions of `ours-fast` alone", ours("fast", encoder=False)),
    "encoder-alone": Model("the frozen encoder of `ours-fast` alone", ours("fast", rocket_features=0)),
    "plain-vit": Model("`ViTClassifier(preset='basic')`: the Vision Transformer as published, in one dimension",
                       ours("basic")),
    "stem-alone": Model("the stem of `ours` as a CNN, without transformer and random convolutions, trained with the "
                        "recipe of `ours`",
                        peer(our_stem, 96)),
    "resnet": Model("the ResNet of Wang et al. (2017), with the recipe of `ours`", peer(resnet)),
    "inceptiontime": Model("one network of InceptionTime (Ismail Fawaz et al., 2020), with the recipe of `ours`",
                           peer(inceptiontime)),
    "minirocket": Model("aeon's MiniRocketClassifier with its defaults", minirocket),
    "multirocket-hydra": Model("aeon's MultiRocketHydraClassifier with its defaults", multirocket_hydra),
    "quant": Model("aeon's QUANTClassifier with its defaults", quant),
    "1nn-dtw": Model("aeon's nearest neighbour with DTW, in a window of a tenth of the length", nearest_neighbour,
                     random=False),
}  # fmt: skip
ABLATIONS = {
    "without-stem": Model("no convolutional stem: patches of the signal, a head over the tokens, no auxiliary head",
                          network(stem="none", pooling="token_avg", stem_head=False)),
    "tokens-alone": Model("head over the tokens only, without the features of the stem", network(pooling="token_avg")),
    "without-crop-warp": Model("no random slicing and no window warping", network(crop=1.0, warp=0.0)),
    "without-whole": Model("every training example sliced and warped, instead of half of them", network(crop_prob=1.0)),
    "without-scale": Model("no random scaling", network(scale=0.0)),
    "without-noise": Model("no noise", network(noise=0.0)),
    "without-smoothing": Model("no label smoothing", network(label_smoothing=0.0)),
    "large-batches": Model("batches of 32 for any size of the training set", network(batch_size=32)),
    "without-mixup": Model("no mixup", network(mixup=0.0)),
    "without-head-norm": Model("no BatchNorm before the head", network(head_norm="none")),
    "without-stem-head": Model("no auxiliary head over the stem", network(stem_head=False)),
    "without-overlap": Model("adjacent instead of overlapping patches (no change if a patch is one sample)",
                             network(patch_overlap=False)),
    "with-relative-bias": Model("ConvTran's relative positions added to the learned ones", network(relative_bias=True)),
    "with-residual": Model("Wang's residual units in the stem instead of dilated convolutions",
                           network(stem="residual", stem_depths=(1, 1, 1))),
    "with-rope": Model("rotary positions instead of learned ones", network(pos_embed="rope")),
    "slow": Model("a third of the learning rate", network(learning_rate=1e-3)),
    "twice-the-steps": Model("twice the steps", network(times=2)),
    "half-the-steps": Model("half the steps", network(times=0.5)),
}  # fmt: skip
KNOWN = MODELS | ABLATIONS
