"""Every knob of a training run in one frozen dataclass. Nothing here imports torch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from ndvit.config import check_field_names, unwrap_numbers

Optimizer = Literal["adamw", "sgd", "lamb"]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Tracker = Literal["none", "tensorboard", "wandb"]
Distillation = Literal["hard", "soft"]
Policy = Literal["none", "randaugment", "trivialaugment", "3-augment"]
Loss = Literal["softmax", "sigmoid"]
Head = Literal["trained", "solved"]

DEFAULT_STEPS = 1000
SOLVED_BY = frozenset({"seed", "head", "batch_size", "class_weight", "val_fraction", "device", "workers"})
"""Fields of `Recipe` that mean something where the head is solved; all others are of learning by steps."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained.

    A run has a fixed number of optimiser steps, given as `steps` or as `epochs` (passes over the training set): small
    data sets differ a hundredfold in size, and it is steps that a transformer needs. Everything random in step i is a
    function of (seed, i) alone, so a resumed run repeats the unbroken one.

    Raises:
        ValueError: for a value that makes no sense, saying what is expected.
    """

    seed: int = 0
    """Seed of the initial weights, the order of examples, augmentation and dropout."""
    steps: int | None = None
    """Optimiser steps; 1,000 if neither steps nor epochs is given."""
    epochs: int | None = None
    """Passes over the training set, instead of steps."""
    batch_size: int = 32
    """Examples in one forward pass."""
    accumulate: int = 1
    """Forward passes in one optimiser step; the effective batch is batch_size times this."""
    optimizer: Optimizer = "adamw"
    """adamw (fused where torch can), sgd with Nesterov momentum .9, or lamb (steps in proportion to the weights)."""
    learning_rate: float | None = None
    """Peak learning rate, reached after warm-up; none means 0.016 / sqrt(embed_dim): .002 at 64, .0006 at 768; and a
    tenth of it for a network that begins with trained weights."""
    weight_decay: float = 0.05
    """Decoupled weight decay; never on norms, biases, scales, tokens and positions."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's two decay rates."""
    layer_decay: float | None = None
    """Factor on the learning rate for each block further from the head (BEiT, MAE fine-tuning)."""
    freeze: int | None = None
    """Blocks from the input on that stay as they are, with patches, tokens, positions and stem; 0 is those alone, the
    depth leaves the final norm and the heads to learn."""
    lora: int | None = None
    """Rank of low-rank adapters (LoRA, by the peft library) of every linear layer in the blocks: they learn in place of
    all but the heads, and are merged into the weights at the end."""
    head: Head = "trained"
    """trained by gradients with all else, or solved (a linear probe: nothing else learns, and the head is a logistic
    regression over the features of the examples as they are, computed once)."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises linearly from 0."""
    min_learning_rate: float = 0.01
    """Where the cosine ends, as a share of the peak."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    loss: Loss = "softmax"
    """Cross-entropy over the classes together (softmax), or of each class by itself (sigmoid, as AugReg and DeiT III;
    new heads then begin with AugReg's bias, which gives each class 1 / classes)."""
    label_smoothing: float = 0.1
    """Share of each target spread evenly over the classes."""
    mixup: float = 0.2
    """Alpha of mixup's Beta distribution; 0 switches it off. With cutmix on, too, each batch draws one of the two."""
    cutmix: float = 0.0
    """Alpha of cutmix's Beta distribution, for boxes in any number of dimensions; 0 switches it off."""
    mix_prob: float = 0.5
    """Share of batches that are mixed."""
    crop: float = 0.85
    """Smallest share of an example that random crop-and-resize keeps, of its length, area or volume; 1 is off."""
    warp: float = 0.0
    """Window warping: a fifth of each axis, anywhere, is played up to exp(warp) times faster or slower; 0 is off."""
    crop_prob: float = 1.0
    """Share of examples that are cropped and warped; the others stay as they are, which is how they will be tested."""
    flip: float = 0.0
    """Probability of mirroring an example along its last axis. Off: left and right often mean something."""
    policy: Policy = "none"
    """How pictures are distorted: randaugment, trivialaugment, or 3-augment (grey, solarised or blurred; DeiT III)."""
    operations: int = 2
    """How many distortions randaugment does to a picture."""
    magnitude: int = 9
    """How strong randaugment's are, from 0 to 10."""
    jitter: float = 0.0
    """Brightness, contrast and saturation of pictures are multiplied by up to 1 +- jitter."""
    erase: float = 0.0
    """Probability that a box of an example, a fiftieth to a third of it, is replaced by noise (random erasing)."""
    repeats: int = 1
    """Times that each training example of a pass is shown, one after the other, each time varied anew (DeiT has 3)."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on the standardised input."""
    scale: float = 0.0
    """Standard deviation of the logarithm of a random factor on each example, the same for all its channels."""
    channel_drop: float = 0.0
    """Probability that a channel of an example is replaced by its mean; one channel always stays."""
    class_weight: Literal["balanced"] | tuple[float, ...] | None = None
    """Weights of the classes in the loss: balanced (inverse to their numbers of training examples, as scikit-learn), or
    one number a class in the order of the classes; they are scaled to a mean of 1 over the training examples."""
    stem_loss: float = 0.3
    """Weight of the loss of a network's auxiliary head over its stem, where it has one (stem_head)."""
    distillation: Distillation = "hard"
    """How a teacher is followed, where there is one: its decisions (hard) or its probabilities (soft)."""
    distillation_weight: float = 0.5
    """Share of the teacher's loss in the whole; the labels have the rest."""
    temperature: float = 3.0
    """Divides the logits of student and teacher in soft distillation: the higher, the more the unlikely classes say."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block, written into the model's config for this run."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, which the run then keeps; none leaves it out."""
    early_stop: int | None = None
    """Stop after this many validations without a lower loss, and keep the best weights. Needs validation data."""
    val_fraction: float | None = None
    """Share of the training set held out for validation; none means a tenth from 2,000 examples on, nothing below."""
    val_every: int | None = None
    """Steps between validations and between checkpoints; none means 20 of each over the run."""
    precision: Precision = "auto"
    """auto is bf16-mixed on a GPU that has it, else 32-true. CPUs with AVX-512 BF16 or AMX train large networks about
    twice as fast in bf16-mixed."""
    device: Device = "auto"
    """Where to train."""
    workers: int | None = None
    """Processes that read files; none means none for data in memory, else up to 4."""
    compile: bool = False
    """Run the network through torch.compile."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    tracker: Tracker = "none"
    """Log to TensorBoard or Weights & Biases beside metrics.csv."""

    def __post_init__(self) -> None:
        unwrap_numbers(self)
        for name in ("betas", "class_weight"):
            if isinstance(getattr(self, name), list):  # as YAML has it
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"give steps or epochs, not both (got steps={self.steps}, epochs={self.epochs})")
        lengths = ("steps", "epochs", "batch_size", "accumulate", "early_stop", "val_every")
        for name in (*lengths, "operations", "repeats", "lora"):
            self._check(name, whole=True, low=1)
        self._check("magnitude", whole=True, low=0, high=10)
        for name in ("seed", "workers", "freeze"):
            self._check(name, whole=True, low=0)
        for name in ("weight_decay", "grad_clip", "mixup", "cutmix", "warp", "noise", "scale", "stem_loss", "jitter"):
            self._check(name, low=0)
        for name in ("label_smoothing", "warmup", "channel_drop", "drop_path_rate", "ema_decay", "val_fraction"):
            self._check(name, low=0, below=1)
        for name in ("min_learning_rate", "mix_prob", "crop_prob", "flip", "erase", "distillation_weight"):
            self._check(name, low=0, high=1)
        for name in ("learning_rate", "temperature"):
            self._check(name, above=0)
        for name in ("crop", "layer_decay"):
            self._check(name, above=0, high=1)
        if (
            not isinstance(self.betas, tuple)
            or len(self.betas) != 2
            or not all(isinstance(b, int | float) and 0 <= b < 1 for b in self.betas)
        ):
            raise ValueError(f"betas must be two numbers of at least 0 and below 1, got {self.betas!r}")
        self._check_class_weight()
        for name in ("compile", "grad_checkpointing"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        choices = {
            "optimizer": Optimizer,
            "distillation": Distillation,
            "policy": Policy,
            "loss": Loss,
            "head": Head,
            "precision": Precision,
            "device": Device,
            "tracker": Tracker,
        }
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}; got {getattr(self, name)!r}")
        self._check_head()

    def _check(
        self,
        name: str,
        *,
        whole: bool = False,
        low: float = -math.inf,
        above: float = -math.inf,
        high: float = math.inf,
        below: float = math.inf,
    ) -> None:
        value = getattr(self, name)
        if value is None:
            if type(self).__dataclass_fields__[name].default is None:
                return
        elif (
            isinstance(value, int if whole else (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
            and low <= value <= high
            and above < value < below
        ):
            return
        limits = [
            f"{word} {limit:g}"
            for word, limit in (("at least", low), ("above", above), ("at most", high), ("below", below))
            if math.isfinite(limit)
        ]
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{name} must be {kind}{', ' * bool(limits)}{' and '.join(limits)}; got {value!r}")

    def _check_head(self) -> None:
        idle = [f.name for f in fields(self) if f.name not in SOLVED_BY and getattr(self, f.name) != f.default]
        if self.head == "solved" and idle:
            raise ValueError(
                f"a solved head (head='solved', as in preset linear_probe) takes no steps, and {', '.join(idle)} would "
                f"do nothing: leave {'it' if len(idle) == 1 else 'them'} out, or learn by steps with --head trained "
                "(head='trained')"
            )

    def _check_class_weight(self) -> None:
        given = self.class_weight
        if given is None or (isinstance(given, str) and given == "balanced"):
            return
        numbers = given if isinstance(given, tuple) else ()
        sound = [isinstance(w, int | float) and not isinstance(w, bool) and 0 <= w < math.inf for w in numbers]
        if not numbers or not all(sound) or not any(numbers):
            raise ValueError(
                "class_weight must be balanced, or one number of at least 0 for each class, not all of them 0; "
                f"got {given!r}"
            )
        object.__setattr__(self, "class_weight", tuple(map(float, numbers)))  # YAML knows no numbers of numpy

    def peak_learning_rate(self, embed_dim: int, pretrained: bool = False) -> float:
        """The peak for a network of this width: wider ones take smaller steps ("Attention Is All You Need")."""
        usual = (0.0016 if pretrained else 0.016) * embed_dim**-0.5
        return usual if self.learning_rate is None else self.learning_rate

    def total_steps(self, examples: int) -> int:
        """Optimiser steps of a run over this many training examples."""
        if self.epochs is not None:
            return math.ceil(self.epochs * examples / (self.batch_size * self.accumulate))
        return self.steps or DEFAULT_STEPS

    def to_dict(self) -> dict[str, Any]:
        """A plain dict, ready for YAML or JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe that `to_dict` described; missing fields take their defaults, unknown ones are a ValueError."""
        check_field_names(cls, values)
        return cls(**values)
