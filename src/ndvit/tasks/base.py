"""What a task is: everything that depends on the meaning of the targets.

The network computes outputs and knows nothing of targets; the trainer minimises a loss and knows no task by name. A new
task is one file with a subclass of `Task`: defining it registers its name for options and for model files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from torch import Tensor, nn

from ndvit.config.bounds import counted

if TYPE_CHECKING:
    from ndvit.config import ViTConfig
    from ndvit.config.pretraining import PretrainingOptions
    from ndvit.config.recipe import Recipe
    from ndvit.evaluation.base import Evaluation
    from ndvit.evaluation.calibration import Calibration
    from ndvit.network import VisionTransformer

Probe = Literal["knn", "linear"]
Translate = Callable[[np.ndarray], np.ndarray]

_REGISTRY: dict[str, type[Task]] = {}


class Linear(NamedTuple):
    """A linear map from features to outputs: `features @ weight.T + bias`, with one row of `weight` per output."""

    weight: np.ndarray
    bias: np.ndarray

    def outputs(self, features: np.ndarray) -> np.ndarray:
        """Outputs (n, outputs) of features (n, width)."""
        scores: np.ndarray = features @ self.weight.T + self.bias
        return scores


class Prediction(ABC):
    """The answer for one example. Subclasses are dataclasses with the field `name`."""

    name: str

    @abstractmethod
    def text(self) -> str:
        """The answer in one short line, without the name."""

    @abstractmethod
    def row(self) -> list[tuple[str, Any]]:
        """The answer as (column, value) pairs of a table. The first column is "name"; all predictions have the same."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The answer as plain values for JSON."""


class Task(ABC):
    """Meaning of the targets: their encoding, the loss, the activation, the metrics.

    Targets pass through three forms. *Raw* targets are what a source holds (text, numbers, None for missing).
    `encode` turns them into an array with one row per example, which `Examples.targets` holds. The criterion turns a
    batch of those into the tensor (B, outputs) that is mixed by augmentation and compared with the outputs.

    Attributes:
        name: the name in options and in model files.
        combine: what the members of an ensemble average: their "outputs", or their "probabilities" (softmax).
        learns_from_targets: whether the loss compares outputs with targets, by the task's `criterion`. Otherwise the
            network learns from its inputs alone, by the task's `objective`, and has no outputs (pretraining).
        known_losses: values of `Recipe.loss` that the criterion knows, the default first; empty if it reads none.
        has_temperature: whether outputs may be divided by a temperature.
        may_be_empty: whether an example without a target (None) belongs to none of the classes; otherwise the target is
            missing.
        preset_changes: fields of `Recipe` that replace those of presets, because they do not suit the task.

    Example:
        >>> from ndvit import Classification, Regression, Task
        >>> issubclass(Classification, Task), Regression.name
        (True, 'regression')
    """

    name: ClassVar[str]
    learns_from_targets: ClassVar[bool] = True
    combine: ClassVar[Literal["outputs", "probabilities"]] = "outputs"
    known_losses: ClassVar[tuple[str, ...]] = ()
    has_temperature: ClassVar[bool] = False
    may_be_empty: ClassVar[bool] = False
    preset_changes: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" in cls.__dict__:
            _REGISTRY[cls.name] = cls

    # ------------------------------------------------------------------ targets

    @classmethod
    def read(cls, targets: Sequence[Any], where: str) -> list[Any]:
        """Raw targets of any source in the form that this task compares them in, such as numbers instead of text.

        Raises:
            ValueError: for a target of another kind.
        """
        return list(targets)

    @classmethod
    @abstractmethod
    def from_targets(cls, targets: Mapping[str, Sequence[Any]], where: str, *, to_train: bool = True) -> Task:
        """Derive the task from the raw targets of a source.

        Args:
            targets: raw targets of each split ("train", "val", "test"; a source may lack some).
            where: name of the source in messages.
            to_train: whether a network will be trained on it; the training set must then be sufficient.

        Raises:
            ValueError: for missing or unsuitable targets, with the examples at fault and the remedy.
        """

    @classmethod
    def doubts(cls, targets: Mapping[str, Sequence[Any]]) -> list[str]:
        """What the raw targets of a source may mean instead, one sentence each."""
        return []

    def prepared(self, recipe: Recipe, targets: np.ndarray) -> Task:
        """The task as a recipe trains it on encoded training targets, for example with their mean and deviation.

        Raises:
            ValueError: if the recipe does not suit the task.
        """
        if self.known_losses and recipe.loss is not None and recipe.loss not in self.known_losses:
            raise ValueError(
                f"loss={recipe.loss!r} does not exist for {self.name}: use {' or '.join(self.known_losses)}, or leave "
                "it out"
            )
        return self

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Outputs of the network's head."""

    @property
    def num_kinds(self) -> int:
        """How many kinds of targets there are; the number of examples for each decides what is worth training."""
        return max(1, self.num_outputs)

    @abstractmethod
    def encode(self, targets: Sequence[Any]) -> np.ndarray:
        """Raw targets as an array, (n,) or (n, ...), of integers or floating-point numbers.

        Raises:
            ValueError: for a target that this task does not have.
        """

    def decode(self, targets: np.ndarray) -> list[Any]:
        """Encoded targets as plain values for tables and JSON, one for each example."""
        values: list[Any] = targets.tolist()
        return values

    def strata(self, targets: np.ndarray) -> np.ndarray | None:
        """Integer (n,) that a split keeps in proportion; None splits at random. `targets` are encoded."""
        return None

    def stratum_name(self, stratum: int) -> str:
        """How messages call a stratum."""
        return str(stratum)

    def absent(self, known: np.ndarray, there: np.ndarray) -> list[str]:
        """What the first encoded targets have and the second ones lack, such as classes."""
        return []

    def summary(self, targets: Mapping[str, np.ndarray]) -> list[str]:
        """Lines that describe the encoded targets of each split, for `ndvit train --dry-run`."""
        return [f"{name}: {counted(len(values), 'target')}" for name, values in targets.items()]

    def brief(self, targets: Mapping[str, np.ndarray]) -> str:
        """One line that describes the encoded targets of each split, printed before every training."""
        return ", ".join(f"{name}: {counted(len(values), 'target')}" for name, values in targets.items())

    def align(self, other: Task, where: str) -> tuple[Translate | None, tuple[str, ...]]:
        """How targets of the same kind of task, read from another source, translate to this task's.

        Returns:
            The function from the other's encoded targets to this task's, or None where they are the same; and notes on
            what was assumed.

        Raises:
            ValueError: if they cannot be compared.
        """
        if other != self:
            raise ValueError(f"{where} has other targets than the model was trained on")
        return None, ()

    def match_outputs(self, labels: Sequence[Any], where: str) -> list[int] | None:
        """Where this task's outputs stand among those of a teacher, which are labelled so; None for the same order.

        Raises:
            ValueError: if the teacher lacks an output.
        """
        if len(labels) != self.num_outputs:
            raise ValueError(f"{where} has {len(labels)} outputs, {self.num_outputs} are needed")
        return None

    def kept_outputs(self, other: Task) -> list[int | None] | None:
        """Outputs that a network trained for another task keeps when it is trained for this one.

        Returns:
            For each output of this task, the output of the other with the same meaning, or None for a new one; None
            instead of a list if they share none.
        """
        return None

    def from_teacher(self, outputs: Tensor, teacher: Task) -> Tensor:
        """Outputs (B, outputs) of a teacher of the same kind of task, in this task's terms."""
        return outputs

    def output_names(self) -> list[str]:
        """How messages call the outputs."""
        return [str(i) for i in range(self.num_outputs)]

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain values for the model file; `task_from_dict` reads them. The key "name" is added by the caller."""

    @classmethod
    @abstractmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Task:
        """The task that `to_dict` described.

        Raises:
            ValueError: if the values do not describe one.
        """

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.to_dict() == self.to_dict()

    __hash__ = None  # type: ignore[assignment]  # tasks are compared, never looked up

    # ----------------------------------------------------------------- training

    @abstractmethod
    def criterion(self, recipe: Recipe, targets: Tensor | None = None) -> Criterion:
        """The loss of a training run.

        Args:
            recipe: loss options.
            targets: encoded targets of the training set, for weights that depend on them.
        """

    def objective(self, config: ViTConfig, recipe: Recipe, options: PretrainingOptions) -> Objective | None:
        """The loss of a training without targets; None for a task that learns from targets.

        Args:
            config: config of the network.
            recipe: options of the training.
            options: options of the objective.

        Raises:
            ValueError: if the network or the recipe does not suit the objective.
        """
        return None

    def describe(self, options: PretrainingOptions) -> str:
        """The task in a few words, for the plan of a training; `options` are those of `objective`."""
        return f"{self.name}, {counted(self.num_outputs, 'output')}"

    def example_weights(self, recipe: Recipe, targets: Tensor, population: Tensor) -> Tensor | None:
        """How much each example counts in the loss, (n,); None if all count equally.

        Args:
            recipe: options of the loss.
            targets: encoded targets (n, ...).
            population: encoded targets of all training examples, whose weights have a mean of 1.
        """
        return None

    def metrics(self) -> Metrics:
        """Metrics of a validation set beside its loss."""
        return Metrics()

    def initial_bias(self, recipe: Recipe) -> float | None:
        """Value for the biases of a new head; None keeps the network's own initialisation."""
        return None

    def solve_head(
        self,
        features: np.ndarray,
        targets: np.ndarray,
        recipe: Recipe,
        val: tuple[np.ndarray, np.ndarray] | None = None,
        weights: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> Linear:
        """Fit a linear head to frozen features, for `Recipe.head = "solved"`.

        Args:
            features: (n, width) of the training examples.
            targets: their encoded targets.
            recipe: options of the loss, and the seed.
            val: features and targets to choose the regularisation by; None chooses on the training examples.
            weights: (n,) weights of the training examples; None weighs all equally.
            groups: (n,) integers of the groups of the training examples, which choosing does not divide; None without.

        Raises:
            ValueError: if the task has no such solver.
        """
        raise ValueError(f"a solved head (head='solved') does not exist for {self.name}: train it (head='trained')")

    def solve_ridge(
        self,
        features: Tensor,
        targets: Tensor,
        recipe: Recipe,
        population: Tensor,
        groups: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Ridge:
        """Ridge regression on standardised features, calibrated by leaving one example out.

        Args:
            features: (n, features) of a sample of the training examples, centred.
            targets: encoded targets of the sample.
            recipe: options of the loss.
            population: encoded targets of all training examples.
            groups: (n,) integers of the groups in the sample, which are left out as a whole; None without groups.
            weights: (n,) weights of the examples; None weighs all equally.

        Raises:
            ValueError: if the task has no such solution.
        """
        raise ValueError(
            f"random convolutions and the encoder do not exist for {self.name}: set rocket_features=0 and encoder=False"
        )

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each example (n,), by which the parts of a committee are weighed; outputs (n, outputs).

        Raises:
            ValueError: if the task has none.
        """
        raise ValueError(f"networks of a committee cannot be weighed for {self.name}: set solved_weight")

    def probe(
        self,
        method: Literal["knn", "linear"],
        known: tuple[np.ndarray, np.ndarray],
        features: np.ndarray,
        seed: int = 0,
    ) -> np.ndarray:
        """Answers (n, outputs) for features by a classifier or regressor on the known (features, targets).

        Raises:
            ValueError: if the task has no such probe.
        """
        raise ValueError(f"embeddings cannot be scored for {self.name}")

    # ------------------------------------------------------------------ answers

    def activate(self, outputs: Tensor) -> Tensor:
        """Outputs of the network (B, outputs) -> what a user gets, for example probabilities."""
        return outputs

    def deactivate(self, answers: Tensor) -> Tensor:
        """Outputs (B, outputs) whose activation are these answers, for graphs that end with the activation."""
        return answers

    def calibrate(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Calibration | None:
        """Fit the temperature of outputs (n, outputs) on validation data; None if the task has no temperature.

        `weights` (n,) are those of `example_weights`.
        """
        return None

    def adjusted(self, outputs: Tensor, targets: Tensor) -> Task:
        """The task with what examples that were not trained on decide, such as thresholds; itself if they are too few.

        Args:
            outputs: (n, outputs), divided by the temperature.
            targets: their encoded targets.
        """
        return self

    def decided_by(self, answers: np.ndarray, targets: np.ndarray) -> Task:
        """The task with its decisions, such as thresholds, chosen on answers for examples that were not trained on.

        Args:
            answers: (n, outputs) activated outputs.
            targets: their encoded targets.
        """
        return self

    def out_of_fold(self, answers: np.ndarray, targets: np.ndarray, folds: np.ndarray) -> Task:
        """The task for the answers of a cross-validation: each fold has the decisions that suit the other folds.

        Args:
            answers: (n, outputs) activated outputs of all examples, each by a model that was trained without it.
            targets: their encoded targets.
            folds: (n,) the fold of each example.
        """
        return self

    def of_rows(self, rows: np.ndarray) -> Task:
        """The task for some of the examples that `out_of_fold` was about, by their numbers."""
        return self

    def facts(self) -> dict[str, str]:
        """What `adjusted` decided, by name, for reports."""
        return {}

    @abstractmethod
    def predictions(self, answers: np.ndarray, names: Sequence[str]) -> Sequence[Prediction]:
        """Activated outputs (n, outputs) as one prediction for each example."""

    @abstractmethod
    def evaluate(self, answers: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> Evaluation:
        """Compare activated outputs (n, outputs) with encoded targets."""


class Criterion(nn.Module, ABC):
    """The loss of a task under a recipe. Its buffers are not part of checkpoints (`persistent=False`)."""

    @abstractmethod
    def prepare(self, targets: Tensor) -> Tensor:
        """Encoded targets (B, ...) -> floating point (B, outputs), which mixup and cutmix can average."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of outputs (B, outputs) against prepared targets (B, outputs)."""

    def validation_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of outputs against encoded targets, weighed as in training, without its regularisation."""
        return self.loss(outputs, self.prepare(targets))

    def distillation_loss(self, outputs: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of outputs against the outputs of a teacher; prepared targets may weigh the examples.

        All three are (B, outputs).
        """
        return (outputs - teacher).square().mean()

    def batch_metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Scalar metrics of a training batch, by name; `targets` are prepared."""
        return {}


class Drawn(NamedTuple):
    """Examples before and after what an objective does to them, for the report; in units of the network's input."""

    original: Tensor  # (B, C, *size)
    made: Tensor  # (B, C, *size), a reconstruction or another view
    marked: Tensor | None  # (B, *size) boolean, True where a value was masked; None without masks
    about: str  # a sentence on what is drawn


class Objective(nn.Module, ABC):
    """The loss of a task without targets.

    Its own parameters, such as those of a decoder, are trained beside the network's. They are part of checkpoints, and
    not of model files.

    Attributes:
        metric_names: names of the metrics that `forward` returns.
    """

    metric_names: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def forward(self, network: VisionTransformer, x: Tensor, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch, and scalar metrics by name.

        Args:
            network: what is trained.
            x: augmented inputs (B, C, *size).
            mask: (B, *size) boolean, True where a value was observed; None if all were.
        """

    @abstractmethod
    def show(self, network: VisionTransformer, x: Tensor, mask: Tensor | None) -> Drawn:
        """What the objective does to a batch. The network is in eval mode."""


class Metrics(nn.Module):
    """Metrics of a validation set, accumulated over its batches. The base class has none.

    Attributes:
        prefix: first part of the names of their columns in metrics.csv.
    """

    prefix: ClassVar[str] = "val"

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch of outputs (B, outputs) and encoded targets."""

    def compute(self) -> dict[str, Tensor]:
        """The metrics by name. Start again with the next batch."""
        return {}


class Ridge(NamedTuple):
    """A solution of `Task.solve_ridge`."""

    weight: Tensor
    """(outputs, features), of standardised features."""
    bias: Tensor
    """(outputs,)."""
    facts: dict[str, float]
    """"examples", "loss" and other numbers of leaving one out."""
    left_out: Tensor
    """(n, outputs), the outputs for each example of the solution without it."""


def task_class(name: str | type[Task]) -> type[Task]:
    """The task of this name.

    Raises:
        ValueError: for an unknown name, with the names there are.
    """
    if isinstance(name, type):
        return name
    if name not in _REGISTRY:
        raise ValueError(f"unknown task {name!r}: there are {', '.join(sorted(_REGISTRY))}")
    return _REGISTRY[name]


def task_from_dict(values: Mapping[str, Any]) -> Task:
    """The task that a model file describes: `{"name": ..., **task.to_dict()}`.

    Raises:
        ValueError: if it does not describe one.
    """
    values = dict(values)
    return task_class(values.pop("name", "")).from_dict(values)


def task_to_dict(task: Task) -> dict[str, Any]:
    """What `task_from_dict` reads."""
    return {"name": task.name, **task.to_dict()}
