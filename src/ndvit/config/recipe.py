"""The recipe of a training run: groups of fields, the rules between fields, and what follows from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, Predicate, doc

from ndvit.config.bounds import BatchSize, Cap, Count, NonNegative, Options, Positive, Rate, Seed, Share, Whole
from ndvit.config.spectrogram import SPECTROGRAM_FIELDS, SpectrogramOptions

Optimizer = Literal["adamw", "sgd", "lamb"]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Strategy = Literal["auto", "ddp", "fsdp"]
Tracker = Literal["none", "tensorboard", "wandb"]
Distillation = Literal["hard", "soft"]
Policy = Literal["none", "randaugment", "trivialaugment", "3-augment"]
Loss = Literal["softmax", "sigmoid", "l2", "huber", "quantile"]
Resize = Literal["crop", "pad", "squash"]
Head = Literal["trained", "solved"]
PositiveShare = Annotated[float, Gt(0), Le(1)]
Betas = Annotated[tuple[Rate, Rate], doc("two numbers of at least 0 and below 1")]
ClassWeight = Annotated[
    Literal["balanced"] | Annotated[tuple[NonNegative, ...], Predicate(any)] | None,
    doc("balanced, or one number of at least 0 for each class, not all of them 0"),
]

DEFAULT_STEPS = 1000
CHECKPOINTS = 20  # checkpoints over a run
VALIDATION_SHARE = 0.1  # most cost of all validations, as a share of that of the training steps
PASSES = 3  # cost of a training step in forward passes
SOLVED_BY = SPECTROGRAM_FIELDS | frozenset(
    {"seed", "head", "batch_size", "class_weight", "interval", "val_fraction", "device", "workers", "resize"}
)
"""Fields of `Recipe` that apply to a solved head; all others concern training by steps."""


@dataclass(frozen=True, kw_only=True)
class DurationOptions(Options):
    """Duration and batches."""

    seed: Seed = 0
    """Seed of the initial weights, the order of examples, augmentation and dropout."""
    steps: Count | None = None
    """Optimizer steps; 1,000 if neither steps nor epochs is set."""
    epochs: Count | None = None
    """Passes over the training set, instead of steps."""
    batch_size: BatchSize = 32
    """Examples in one forward pass of each device."""
    accumulate: Count = 1
    """Forward passes of each device in one optimizer step; the effective batch is batch_size times this and the number
    of devices."""
    repeats: Annotated[int, Ge(1), Cap(1000)] = 1
    """Copies of each training example in a pass, one after the other, each with its own augmentation (DeiT uses 3)."""


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(Options):
    """Optimizer and schedule."""

    optimizer: Optimizer = "adamw"
    """adamw, sgd with Nesterov momentum .9, or lamb (steps proportional to the weights)."""
    learning_rate: Positive | None = None
    """Peak learning rate, reached after warm-up; the default is 0.016 / sqrt(embed_dim), and a tenth for trained
    weights."""
    weight_decay: NonNegative = 0.05
    """Decoupled weight decay; never on norms, biases, scales, tokens and positions."""
    betas: Betas = (0.9, 0.999)
    """Adam's two decay rates."""
    layer_decay: PositiveShare | None = None
    """Factor on the learning rate for each block further from the head (BEiT, MAE fine-tuning)."""
    warmup: Rate = 0.1
    """Share of the steps over which the learning rate rises linearly from 0."""
    min_learning_rate: Share = 0.01
    """End of the cosine schedule, as a share of the peak."""
    grad_clip: NonNegative = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""


@dataclass(frozen=True, kw_only=True)
class AdaptationOptions(Options):
    """Adaptation of trained weights."""

    freeze: Whole | None = None
    """Number of blocks, from the input on, that are not trained, together with patches, tokens, positions and stem; 0
    freezes only the latter, the depth leaves the final norm and the heads to train."""
    lora: Count | None = None
    """Rank of low-rank adapters (LoRA, by the peft library) of every linear layer in the blocks: they are trained
    instead of all weights but the heads, and are merged into the weights at the end."""
    head: Head = "trained"
    """trained by gradients with everything else, or solved (a linear probe: only the head is fitted, by a logistic
    regression on features that are computed once, without augmentation)."""


@dataclass(frozen=True, kw_only=True)
class LossOptions(Options):
    """Loss and targets."""

    loss: Loss | None = None
    """Classification: cross-entropy over all classes (softmax, the default), or of each class by itself (sigmoid, as
    AugReg and DeiT III; new heads then start with AugReg's bias, which gives each class a probability of 1 / classes).
    Several labels: sigmoid. Regression: squared errors (l2, the default), squared errors up to one standard deviation
    of the targets and absolute ones beyond (huber), or the quantiles of the interval and the median (quantile)."""
    label_smoothing: Rate = 0.1
    """Share of each target spread evenly over the classes; of several labels, over 0 and 1 by the share of the training
    examples that have the label."""
    class_weight: ClassWeight = None
    """Weights of the examples in the loss by their class: balanced (inverse to the numbers of training examples of the
    classes, as scikit-learn), or one number per class in the order of the classes; they are scaled to a mean of 1 over
    the training examples. Probabilities are then those of data with the weighted shares of the classes. Of several
    labels, weights of the examples that have the label against those that have not."""
    interval: Annotated[float, Gt(0), Lt(1)] = 0.9
    """Regression: share of new targets that the interval of a prediction should contain."""
    stem_loss: NonNegative = 0.3
    """Weight of the loss of the auxiliary head over the stem (stem_head), if the network has one."""


@dataclass(frozen=True, kw_only=True)
class InputOptions(Options):
    """Input."""

    resize: Resize | None = None
    """Images of another aspect than the input: crop cuts the longer side, pad keeps the whole image and fills the rest
    with the mean colour, squash changes the aspect. The default is that of trained weights, else crop."""


@dataclass(frozen=True, kw_only=True)
class AugmentationOptions(Options):
    """Augmentation."""

    mixup: NonNegative = 0.2
    """Alpha of mixup's Beta distribution; 0 switches it off. If cutmix is on, too, each batch draws one of the two."""
    cutmix: NonNegative = 0.0
    """Alpha of cutmix's Beta distribution, for boxes in any number of dimensions; 0 switches it off."""
    mix_prob: Share = 0.5
    """Share of batches that are mixed."""
    crop: PositiveShare = 0.85
    """Smallest share of an example that random crop-and-resize keeps, of its length, area or volume; 1 is off."""
    warp: NonNegative = 0.0
    """Window warping: a random fifth of each axis is played up to exp(warp) times faster or slower; 0 is off."""
    crop_prob: Share = 1.0
    """Share of examples that are cropped and warped; the others are used in full, as in testing."""
    flip: Share = 0.0
    """Probability of mirroring an example along its last axis. Off by default: left and right often have a meaning."""
    policy: Policy = "none"
    """Distortion of images: randaugment, trivialaugment, or 3-augment (grey, solarised or blurred; DeiT III)."""
    operations: Annotated[int, Ge(1), Cap(100)] = 2
    """Number of distortions that randaugment applies to an image."""
    magnitude: Annotated[int, Ge(0), Le(10)] = 9
    """Strength of randaugment's distortions, from 0 to 10."""
    jitter: NonNegative = 0.0
    """Brightness, contrast and saturation of images are multiplied by up to 1 +- jitter."""
    erase: Share = 0.0
    """Probability that a box of an example, a fiftieth to a third of it, is replaced by noise (random erasing)."""
    noise: NonNegative = 0.0
    """Standard deviation of Gaussian noise on the standardised input."""
    scale: NonNegative = 0.0
    """Standard deviation of the logarithm of a random factor on each example, the same for all its channels."""
    channel_drop: Rate = 0.0
    """Probability that a channel of an example is replaced by its mean; at least one channel is kept."""
    mask_time: Rate = 0.0
    """Largest share of the last axis, such as time, that is replaced by the mean in each example (SpecAugment)."""
    mask_bands: Rate = 0.0
    """Largest share of the bands of a spectrogram that is replaced by the mean in each example, likewise."""


@dataclass(frozen=True, kw_only=True)
class DistillationOptions(Options):
    """Distillation."""

    distillation: Distillation = "hard"
    """Target from the teacher, if there is one: its most probable class (hard) or its probabilities (soft)."""
    distillation_weight: Share = 0.5
    """Share of the teacher's loss in the total; the rest is the loss of the labels."""
    temperature: Positive = 3.0
    """Divides the logits of student and teacher in soft distillation; higher values weigh unlikely classes more."""


@dataclass(frozen=True, kw_only=True)
class SelectionOptions(Options):
    """Validation and choice of weights."""

    ema_decay: Rate | None = None
    """Decay of an exponential moving average of the weights, which the run then keeps; by default there is none."""
    early_stop: Count | None = None
    """Stop after this many validations without a lower loss, and keep the best weights. Needs validation data."""
    val_fraction: Rate | None = None
    """Share of the training set held out for validation; the default is 0.1 from 2,000 examples on, else 0."""
    final_share: Share = 0.0
    """Further steps at the end, as a share of the steps before (with early_stop, of those that were done), on all
    training examples including those held out, with 0.3 of the learning rate. They begin when validation has chosen
    weights, temperature and thresholds."""
    val_every: Count | None = None
    """Steps between validations and between checkpoints; the default gives 20 of each over the run, and fewer
    validations if they would take more than a tenth of the time, but not with early_stop."""


@dataclass(frozen=True, kw_only=True)
class HardwareOptions(Options):
    """Hardware and logging."""

    precision: Precision = "auto"
    """auto is bf16-mixed on a GPU that supports it, else 32-true. CPUs with AVX-512 BF16 or AMX train large networks
    about twice as fast in bf16-mixed."""
    device: Device = "auto"
    """Device of the training."""
    devices: Annotated[int, Ge(1), Cap(1024)] | Literal["auto"] | None = None
    """Devices on each node that train together, one process each; auto is all GPUs of this machine. The default is one,
    or as many processes as torchrun or SLURM have started."""
    nodes: Annotated[int, Ge(1), Cap(100_000)] | None = None
    """Machines that train together; torchrun or srun starts the command on each of them. The default is one, or as many
    as those have started."""
    strategy: Strategy = "auto"
    """How several devices share the work. ddp: each has the whole network and a part of the batch; fsdp: each also has
    a part of the weights, gradients and optimizer state, for networks that do not fit one device. auto is ddp."""
    device_timeout: Positive = 1800.0
    """Seconds that a device waits for the others before it gives up."""
    workers: Annotated[int, Ge(0), Cap(256)] | None = None
    """Processes that read files; the default is 0 for data in memory, else up to 4."""
    compile: bool = False
    """Run the network through torch.compile."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    tracker: Tracker = "none"
    """Log to TensorBoard or Weights & Biases in addition to metrics.csv."""


@dataclass(frozen=True, kw_only=True)
class Recipe(
    HardwareOptions,
    SelectionOptions,
    DistillationOptions,
    AugmentationOptions,
    SpectrogramOptions,
    InputOptions,
    LossOptions,
    AdaptationOptions,
    OptimizerOptions,
    DurationOptions,
):
    """How a model is trained.

    A run has a fixed number of optimizer steps, set as `steps` or as `epochs` (passes over the training set). The
    default is a number of steps, because small data sets differ a hundredfold in size while a transformer needs about
    the same number of steps. Everything random in step i is a function of (seed, i) alone, so a resumed run gives the
    same result as an uninterrupted one.

    Raises:
        ValueError: for a value out of bounds or a combination without a meaning, with what is expected.

    Example:
        >>> from ndvit import Recipe
        >>> recipe = Recipe(steps=200, batch_size=16, mixup=0.2)
        >>> recipe.steps, recipe.optimizer
        (200, 'adamw')
        >>> Recipe(mixup=-1)
        Traceback (most recent call last):
        ...
        ValueError: mixup must be ...
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"give steps or epochs, not both (got steps={self.steps}, epochs={self.epochs})")
        if isinstance(self.class_weight, tuple):
            object.__setattr__(self, "class_weight", tuple(map(float, self.class_weight)))
        if self.head == "solved":
            refuse_if_solved(
                [f.name for f in fields(self) if f.name not in SOLVED_BY and getattr(self, f.name) != f.default]
            )

    @property
    def replicas(self) -> int:
        """Devices that train together on all nodes."""
        devices = self.devices if isinstance(self.devices, int) else 1
        return devices * (self.nodes or 1)

    @property
    def step_examples(self) -> int:
        """Examples in one optimizer step on all devices, the effective batch."""
        return self.batch_size * self.accumulate * self.replicas

    def peak_learning_rate(self, embed_dim: int, pretrained: bool = False) -> float:
        """Peak for a network of this width: wider ones take smaller steps ("Attention Is All You Need")."""
        usual = (0.0016 if pretrained else 0.016) * embed_dim**-0.5
        return usual if self.learning_rate is None else self.learning_rate

    def total_steps(self, examples: int) -> int:
        """Optimizer steps of a run over this many training examples."""
        if self.epochs is not None:
            return math.ceil(self.epochs * examples / self.step_examples)
        return self.steps or DEFAULT_STEPS

    def checkpoint_interval(self, steps: int) -> int:
        """Optimizer steps between checkpoints of a run of this many steps."""
        return min(steps, self.val_every or math.ceil(steps / CHECKPOINTS))

    def validation_interval(self, steps: int, examples: int) -> int:
        """Optimizer steps between validations with this many examples, in a run of this many steps.

        Without `val_every`, there are as many validations as checkpoints, or as few as keep them to a tenth of the cost
        of the training steps, at least one. It counts forward passes of examples, of which a training step has as many
        as its forward pass and twice as many again for the backward pass; so the interval depends on no clock, and a
        resumed run validates at the same steps. Early stopping counts validations, so it keeps all of them.
        """
        usual = self.checkpoint_interval(steps)
        cost = PASSES * steps * self.step_examples
        most = max(1, int(VALIDATION_SHARE * cost / max(examples, 1)))
        if self.val_every or self.early_stop or most >= math.ceil(steps / usual):
            return usual
        least = math.ceil(steps / most)
        # An interval that divides the steps ends with a validation of the trained network.
        return next((every for every in range(least, 2 * least) if steps % every == 0), least)


def refuse_if_solved(idle: Sequence[str]) -> None:
    """Raise a ValueError if there are options that have no effect on a solved head."""
    if idle:
        raise ValueError(
            f"a solved head (head='solved', as in preset linear_probe) takes no steps, and {', '.join(idle)} would do "
            f"nothing: leave {'it' if len(idle) == 1 else 'them'} out, or train by steps with --head trained "
            "(head='trained')"
        )
