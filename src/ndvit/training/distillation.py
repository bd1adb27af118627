"""Learning from a teacher: the losses, and everything that can teach, asked about a batch as the student sees it."""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndvit.config.recipe import Recipe
from ndvit.data.loading import Inputs
from ndvit.data.preprocess.base import Preprocess
from ndvit.data.preprocess.signals import linear
from ndvit.network import VisionTransformer
from ndvit.weights.loading import load_model

_LEAST = 1e-3  # of a probability whose logarithm is taken: a classifier that says 0 would be infinitely sure
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as `ImagePreprocess` makes grey of colour


def distillation_loss(logits: Tensor, teacher: Tensor, recipe: Recipe) -> Tensor:
    """How far a student is from its teacher ("Training data-efficient image transformers & distillation", 2021).

    Hard: cross-entropy against what the teacher decides. Soft: T^2 KL(teacher || student) of both softmaxes at the
    recipe's temperature T, the factor making up for gradients that fall with 1 / T^2 (Hinton et al., 2015).

    Args:
        logits: the student's (B, classes).
        teacher: the teacher's (B, classes).
        recipe: says which of the two, and the temperature.
    """
    if recipe.distillation == "hard":
        return F.cross_entropy(logits, teacher.argmax(1))
    student, target = ((z / recipe.temperature).log_softmax(1) for z in (logits, teacher))
    return recipe.temperature**2 * F.kl_div(student, target, reduction="batchmean", log_target=True)


class Teacher(ABC):
    """Whoever a student learns from: called with a batch as the student's network sees it, answers with logits.

    It is no module on purpose: a task that holds one saves, trains and averages its student alone.
    """

    @abstractmethod
    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Logits (B, classes) in the student's order, without gradient, on the device of x.

        Args:
            x: (B, C, *size), standardised by the student's preprocessing, augmented and mixed.
            mask: (B, *size), True where a value was observed; None where all were.
        """

    def __deepcopy__(self, memo: Any) -> "Teacher":
        """The teacher itself: a moving average copies its task whole, and needs no second teacher."""
        return self


def make_teacher(teacher: Any, student: VisionTransformer, train_inputs: Inputs, recipe: Recipe) -> Teacher:
    """A teacher of whatever can teach, tried on a few training examples at once.

    Args:
        teacher: one of these.
            A `Teacher`, as it is.
            A torch module whose forward takes x, and a mask if it has an argument of that name, and returns logits in
            the student's order of classes. It sees what the student sees.
            A module with `classes` and `preprocess`: a loaded network, or what `load_model` takes (an earlier run, a
            file, a published name). It sees what its own preprocessing would have made, and classes meet by name.
            A scikit-learn or aeon classifier of arrays (n, channels, *size) of what the student sees. A copy of it is
            fitted on all training examples if it is not fitted yet; else classes meet by name.
            "minirocket", "multirocket" or "multirocket-hydra": that classifier of aeon's, for signals.
        student: with `classes` and `preprocess`.
        train_inputs: the training examples as the student sees them, before augmentation.
        recipe: its seed is that of classifiers that have none.

    Raises:
        ValueError: if it cannot teach this student, saying why and how to mend it.
    """
    name = f"teacher {str(teacher) if isinstance(teacher, str | Path) else type(teacher).__name__}"
    if isinstance(teacher, str) and teacher.lower() in _ROCKETS:
        teacher = _rocket(teacher.lower(), len(student.config.input_size))
    elif isinstance(teacher, str | Path):
        teacher = load_model(teacher)
    elif isinstance(getattr(teacher, "model_", None), nn.Module):  # our own estimator: its network knows more
        teacher = teacher.model_
    if isinstance(teacher, nn.Module):
        made: Teacher = NetworkTeacher(teacher, student, name)
    elif hasattr(teacher, "fit") and (hasattr(teacher, "predict_proba") or hasattr(teacher, "decision_function")):
        made = ClassifierTeacher(teacher, student, train_inputs, recipe.seed, name)
    elif isinstance(teacher, Teacher):
        made = teacher
    else:
        raise ValueError(
            f"{name} cannot teach: give a torch module, a run or a file of weights, a classifier with fit and "
            f"predict_proba or decision_function, or one of {', '.join(_ROCKETS)}"
        )
    _try(made, student, train_inputs, name)
    return made


def _try(teacher: Teacher, student: VisionTransformer, train_inputs: Inputs, name: str) -> None:
    """Raise a ValueError unless the teacher answers a few examples with one finite logit for each class."""
    batch = train_inputs.__getitems__(range(min(len(train_inputs), 4)))
    try:
        logits = teacher(batch.x, batch.mask)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name} fails on a batch of shape {tuple(batch.x.shape)}: {error}") from error
    expected = len(batch.x), student.config.num_classes
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected or not logits.is_floating_point():
        got = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{name} must answer {len(batch.x)} examples with logits of shape {expected}; got {got}")
    if not logits.isfinite().all():
        raise ValueError(f"{name} answers with logits that are NaN or infinite: it is damaged, or sees unusual input")


class NetworkTeacher(Teacher):
    """A torch module, put into eval mode; on another device than the student's a copy of it teaches."""

    def __init__(self, module: nn.Module, student: VisionTransformer, name: str) -> None:
        self.module = module.eval()
        self.takes_mask = "mask" in inspect.signature(module.forward).parameters
        self.view: _View | None = None
        self.columns: list[int] | None = None
        if untrained := getattr(module, "untrained", ()):
            raise ValueError(
                f"{name} has {len(untrained)} newly initialised tensors ({untrained[0]}, ...), so it has nothing to "
                "teach: train it first"
            )
        classes, preprocess = getattr(module, "classes", ()), getattr(module, "preprocess", None)
        if classes and preprocess is not None:
            if student.preprocess is None:
                raise ValueError(f"{name} has a preprocessing and the student none: set the student's preprocess")
            self.view = _View(student.preprocess, preprocess, name)
            self.columns = _columns(classes, _names(student), name)

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """As `Teacher` says."""
        if any(parameter.device != x.device for parameter in self.module.parameters()):
            self.module = copy.deepcopy(self.module).to(x.device)  # the user's own stays where it is
        with torch.no_grad():
            if self.view is not None:
                x, mask = self.view(x, mask)
            logits = self.module(x, mask) if self.takes_mask else self.module(x)
        return logits if self.columns is None else logits[:, self.columns]


class ClassifierTeacher(Teacher):
    """A classifier of arrays (n, channels, *size); masks are unknown to it, and gaps are seen as they were filled."""

    def __init__(self, classifier: Any, student: VisionTransformer, train_inputs: Inputs, seed: int, name: str) -> None:
        names = _names(student)
        if not len(getattr(classifier, "classes_", ())):
            classifier = copy.deepcopy(classifier)  # the user's own stays unfitted
            unseeded = {k: seed for k, v in classifier.get_params().items() if k.endswith("random_state") and v is None}
            classifier.set_params(**unseeded)  # else a run that is resumed would have another teacher
            batch = train_inputs.__getitems__(range(len(train_inputs)))
            assert batch.labels is not None
            try:
                with _same_threads():
                    classifier.fit(batch.x.numpy(), np.array(names)[batch.labels.numpy()])
            except (ValueError, TypeError) as error:
                shape = tuple(batch.x.shape)
                raise ValueError(f"{name} cannot be fitted to arrays of shape {shape}: {error}") from error
        self.classifier = classifier
        self.columns = _columns(classifier.classes_, names, name)

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """As `Teacher` says."""
        with _same_threads():
            scores = _scores(self.classifier, x.detach().float().cpu().numpy())
        return torch.from_numpy(scores[:, self.columns]).to(x.device, torch.float32)


class _View:
    """A batch as one preprocessing made it -> as another would have made it of the same examples.

    A channel that was never observed in an example holds the mean of the first, where the other would have put its own:
    masks do not tell channels apart.
    """

    def __init__(self, given: Any, wanted: Any, name: str) -> None:
        self.given, self.wanted = given, wanted
        if given.kind != wanted.kind or len(given.size) != len(wanted.size):
            raise ValueError(f"{name} reads {_said(wanted)}, the student {_said(given)}: it cannot teach this student")
        self.pictures = given.kind == "image"
        if given.channels != wanted.channels and not self.pictures:
            raise ValueError(f"{name} reads {wanted.channels} channels, the student {given.channels}")
        rates = {getattr(p, "sample_rate", None) for p in (given, wanted)} - {None}
        if len(rates) > 1:
            raise ValueError(f"{name} hears {_said(wanted)}, the student {_said(given)}: resample the recordings first")
        # a shorter example ends in missing values for both, or is stretched for either
        self.pads = getattr(given, "resize", None) == getattr(wanted, "resize", None) == "pad"

    def __call__(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = self._standardised(x)
        if mask is not None:  # a line in which nothing was observed holds the mean: 0, whoever standardises
            x = x * mask.any(-1, keepdim=True)[:, None]
        if tuple(x.shape[2:]) == self.wanted.size:
            return x, mask
        if self.pictures:
            size = list(self.wanted.size)
            return F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False), mask
        for axis, length in enumerate(self.wanted.size, start=2):
            if x.shape[axis] != length:
                x, mask = self._fitted(x, mask, axis, length)
        return x, mask

    def _standardised(self, x: Tensor) -> Tensor:
        """Undo one standardisation and do the other, in one multiplication where the channels are the same."""
        a, b = self.given, self.wanted
        moments = (torch.tensor(values, dtype=torch.float64) for values in (a.mean, a.std, b.mean, b.std))
        old_mean, old_std, mean, std = moments

        def for_each(values: Tensor) -> Tensor:
            return values.to(x.dtype).to(x.device).view(-1, *[1] * (x.ndim - 2))

        if a.channels == b.channels:
            return x * for_each(old_std / std) + for_each((old_mean - mean) / std)
        x = x * for_each(old_std) + for_each(old_mean)
        grey = x if a.channels == 1 else (x * for_each(torch.tensor(_LUMA))).sum(1, keepdim=True)
        return (grey - for_each(mean)) / for_each(std)  # grey is repeated for each of three means

    def _fitted(self, x: Tensor, mask: Tensor | None, axis: int, length: int) -> tuple[Tensor, Tensor | None]:
        """One axis at another length, as `SignalPreprocess` would have it."""
        old = x.shape[axis]
        seen = x.new_ones(len(x), *x.shape[2:]) if mask is None else mask.to(x.dtype)
        if self.pads and old < length:
            places = torch.arange(length, device=x.device)
            x = x.index_select(axis, places.clamp(max=old - 1))
            if axis < x.ndim - 1:  # whole lines of padding hold the mean
                x = x * (places < old).view(-1, *[1] * (x.ndim - 1 - axis))
            padding = [0, 0] * (x.ndim - 1 - axis) + [0, length - old]
            return x, F.pad(seen, padding) > 0
        stretched = _along(x, axis, length, linear)
        observed = _along(seen, axis - 1, length, F.adaptive_max_pool1d)
        if self.pads and mask is not None:  # what is longer because of padding alone loses the padding
            tail = seen.narrow(axis - 1, length, old - length).flatten(1).amax(1) == 0  # (B,)
            short = tail.view(-1, *[1] * (x.ndim - 1))
            stretched = torch.where(short, x.narrow(axis, 0, length), stretched)
            observed = torch.where(short[:, 0], seen.narrow(axis - 1, 0, length), observed)
        return stretched, None if mask is None else observed > 0


def _along(x: Tensor, axis: int, length: int, change: Any) -> Tensor:
    """Change the length of one axis by a function of (1, lines, old length)."""
    last = x.movedim(axis, -1)
    return change(last.reshape(1, -1, last.shape[-1]), length).reshape(*last.shape[:-1], length).movedim(-1, axis)


def _said(preprocess: Preprocess) -> str:
    rate = getattr(preprocess, "sample_rate", None)
    axes = f"{len(preprocess.size)} {'axis' if len(preprocess.size) == 1 else 'axes'}"
    return f"{preprocess.kind}s of {axes}{f' at {rate:g} Hz' if rate else ''}"


def _names(student: VisionTransformer) -> tuple[str, ...]:
    """What the student's outputs are called; their numbers where nobody named them."""
    return student.classes or tuple(map(str, range(student.config.num_classes)))


def _columns(theirs: Sequence[Any], ours: Sequence[str], name: str) -> list[int]:
    """Where each of our classes stands among theirs, by name, or by value where those are numbers (1.0 is 1)."""
    for spelled in (str, _by_value):
        index = {spelled(label): i for i, label in enumerate(theirs)}
        missing = [label for label in ours if spelled(label) not in index]
        if not missing:
            return [index[spelled(label)] for label in ours]
    few = [", ".join(map(str, labels[:10])) + ", ..." * (len(labels) > 10) for labels in (missing, list(theirs))]
    raise ValueError(f"{name} does not know the classes {few[0]}; it knows {few[1]}: rename them, or train it on them")


def _by_value(label: Any) -> str:
    try:
        return str(float(str(label)))
    except ValueError:
        return str(label)


# classifiers of scikit-learn's kind


@contextmanager
def _same_threads() -> Iterator[None]:
    """Give torch back the number of threads that it has: numba, which aeon computes with, sets it for both."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


_ROCKETS = {
    "minirocket": "MiniRocketClassifier",
    "multirocket": "MultiRocketClassifier",
    "multirocket-hydra": "MultiRocketHydraClassifier",
}


def _rocket(name: str, axes: int) -> Any:
    """The classifier of this name from aeon."""
    if axes != 1:
        raise ValueError(f"teacher {name} reads signals, of one axis; the student's examples have {axes}")
    from aeon.classification import convolution_based

    return getattr(convolution_based, _ROCKETS[name])()


def _scores(classifier: Any, values: np.ndarray) -> np.ndarray:
    """Logits (n, classes) of a fitted classifier: its decision function where it has one, else log probabilities.

    aeon's convolution classifiers hide the decision function of the linear one that they end in, and their
    probabilities are 0 and 1: it is asked behind their back.
    """
    last = _last(classifier)
    if hasattr(classifier, "decision_function"):
        decided = classifier.decision_function(values)
    elif hidden := [step for step in map(_last, vars(classifier).values()) if _decides(step)]:
        last = hidden[0]
        decided = _overheard(classifier, last, values)
    else:
        return np.log(np.maximum(classifier.predict_proba(values), _LEAST))
    decided = np.stack([-decided, decided], axis=1) if decided.ndim == 1 else decided  # of two classes
    if type(last).__name__ not in ("RidgeClassifier", "RidgeClassifierCV"):
        return decided
    # ridge regression on targets of -1 and 1 estimates 2 p - 1, which as logits would be next to no opinion
    return np.log(np.maximum((1 + decided) / 2, _LEAST))


def _last(thing: Any) -> Any:
    """The last step of a pipeline; anything else as it is."""
    steps = getattr(thing, "steps", None)
    return steps[-1][1] if isinstance(steps, list) and steps else thing


def _decides(thing: Any) -> bool:
    return hasattr(thing, "decision_function") and len(getattr(thing, "classes_", ())) > 0


def _overheard(classifier: Any, last: Any, values: np.ndarray) -> np.ndarray:
    """What the decision function of a classifier's last step says of the features on which it is asked to predict."""
    heard: list[np.ndarray] = []

    def predict(features: Any) -> Any:
        heard.append(last.decision_function(features))
        return type(last).predict(last, features)

    last.predict = predict
    try:
        classifier.predict(values)
    finally:
        del last.predict
    return np.concatenate(heard)
