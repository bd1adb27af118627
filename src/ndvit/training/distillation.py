"""Teachers for distillation: everything that can teach, called with the batch that the student sees."""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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
from ndvit.model import Model, load_model

_LEAST = 1e-3  # smallest probability whose logarithm is taken, because some classifiers answer 0
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, by which `ImagePreprocess` turns colour into grey


class Teacher(ABC):
    """What a student learns from: called with a batch as the student's network sees it, returns outputs.

    It is not a module, so that a training saves, trains and averages the student alone.
    """

    @abstractmethod
    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Outputs (B, outputs) in the student's order, without gradient, on the device of x.

        Args:
            x: (B, C, *size), standardised by the student's preprocessing, augmented and mixed.
            mask: (B, *size), True where a value was observed; None if all were.
        """

    def __deepcopy__(self, memo: Any) -> "Teacher":
        """Return the teacher itself: a moving average copies its module as a whole and needs no second teacher."""
        return self


def make_teacher(teacher: Any, student: Model, train_inputs: Inputs, recipe: Recipe) -> Teacher:
    """Turn whatever can teach into a `Teacher`, and try it on a few training examples.

    Args:
        teacher: one of these.
            A `Teacher`.
            A torch module whose forward takes x, and a mask if it has an argument of that name, and returns outputs in
            the student's order. It sees what the student sees.
            A `Model`, or what `load_model` takes (an earlier run, a file, a published name). It sees what its own
            preprocessing would have made, and its outputs are matched by name.
            A classifier of scikit-learn or aeon on arrays (n, channels, *size) of what the student sees. A copy of it
            is fitted on all training examples if it is not fitted yet; otherwise its classes are matched by name.
            "minirocket", "multirocket" or "multirocket-hydra": the classifier of this name in aeon, for signals.
        student: the model that is trained, with task and preprocessing.
        train_inputs: the training examples as the student sees them, before augmentation.
        recipe: its seed is that of classifiers without one.

    Raises:
        ValueError: if it cannot teach this student, with the reason and the remedy.
    """
    name = f"teacher {str(teacher) if isinstance(teacher, str | Path) else type(teacher).__name__}"
    rocket = isinstance(teacher, str) and teacher.lower() in _ROCKETS
    if student.task is not None and student.task.name != "classification" and (rocket or hasattr(teacher, "classes_")):
        raise ValueError(
            f"{name} is a classifier, and cannot teach {student.task.name}: use an earlier run of this task"
        )
    if isinstance(teacher, str) and teacher.lower() in _ROCKETS:
        teacher = _rocket(teacher.lower(), len(student.config.input_size))
    elif isinstance(teacher, str | Path):
        teacher = load_model(teacher)
    elif isinstance(getattr(teacher, "model_", None), Model):  # a fitted ViTClassifier
        teacher = teacher.model_
    if isinstance(teacher, Model | nn.Module):
        made: Teacher = NetworkTeacher(teacher, student, name)
    elif hasattr(teacher, "fit") and (hasattr(teacher, "predict_proba") or hasattr(teacher, "decision_function")):
        made = ClassifierTeacher(teacher, student, train_inputs, recipe.seed, name)
    elif isinstance(teacher, Teacher):
        made = teacher
    else:
        raise ValueError(
            f"{name} cannot teach: use a torch module, a run or a file of weights, a classifier with fit and "
            f"predict_proba or decision_function, or one of {', '.join(_ROCKETS)}"
        )
    _try(made, student, train_inputs, name)
    return made


def _try(teacher: Teacher, student: Model, train_inputs: Inputs, name: str) -> None:
    """Raise a ValueError unless the teacher returns finite outputs of the right shape for a few examples."""
    batch = train_inputs.__getitems__(range(min(len(train_inputs), 4)))
    try:
        outputs = teacher(batch.x, batch.mask)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name} fails on a batch of shape {tuple(batch.x.shape)}: {error}") from error
    expected = len(batch.x), student.config.num_classes
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) != expected or not outputs.is_floating_point():
        got = f"{outputs.dtype} {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"{name} must return logits of shape {expected} for {len(batch.x)} examples; got {got}")
    if not outputs.isfinite().all():
        raise ValueError(f"{name} returns NaN or infinite logits: it is damaged, or its inputs are unusual")


class NetworkTeacher(Teacher):
    """A model or a torch module in eval mode. On another device than the student's, a copy of it teaches."""

    def __init__(self, teacher: Model | nn.Module, student: Model, name: str) -> None:
        self.view: _View | None = None
        self.columns: list[int] | None = None
        self.translate: Callable[[Tensor], Tensor] | None = None
        self.module = teacher.network if isinstance(teacher, Model) else teacher
        self.module.eval()
        self.takes_mask = "mask" in inspect.signature(self.module.forward).parameters
        if not isinstance(teacher, Model):
            return
        teacher.warn_of_assumptions()
        if teacher.untrained:
            raise ValueError(
                f"{name} has {len(teacher.untrained)} newly initialised tensors ({teacher.untrained[0]}, ...), so it "
                "has nothing to teach: train it first"
            )
        if teacher.task is not None and teacher.preprocess is not None:
            assert student.task is not None
            self.view = _View(student.preprocess, teacher.preprocess, name)
            labels = teacher.classes or range(teacher.task.num_outputs)
            self.columns = student.task.match_outputs(labels, name)
            self.translate = partial(student.task.from_teacher, teacher=teacher.task)

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """See `Teacher`."""
        if any(parameter.device != x.device for parameter in self.module.parameters()):
            self.module = copy.deepcopy(self.module).to(x.device)  # the user's own module stays where it is
        with torch.no_grad():
            if self.view is not None:
                x, mask = self.view(x, mask)
            outputs = self.module(x, mask) if self.takes_mask else self.module(x)
            outputs = outputs if self.translate is None else self.translate(outputs)
        return outputs if self.columns is None else outputs[:, self.columns]


class ClassifierTeacher(Teacher):
    """A classifier of arrays (n, channels, *size). It takes no masks and sees missing values as they were filled."""

    def __init__(self, classifier: Any, student: Model, train_inputs: Inputs, seed: int, name: str) -> None:
        assert student.task is not None
        if not len(getattr(classifier, "classes_", ())):
            classifier = copy.deepcopy(classifier)  # the user's own stays unfitted
            unseeded = {k: seed for k, v in classifier.get_params().items() if k.endswith("random_state") and v is None}
            classifier.set_params(**unseeded)  # else a resumed run would have another teacher
            batch = train_inputs.__getitems__(range(len(train_inputs)))
            assert batch.targets is not None
            try:
                with _same_threads():
                    classifier.fit(batch.x.numpy(), np.array(student.task.decode(batch.targets.numpy())))
            except (ValueError, TypeError) as error:
                shape = tuple(batch.x.shape)
                raise ValueError(f"{name} cannot be fitted to arrays of shape {shape}: {error}") from error
        self.classifier = classifier
        self.columns = student.task.match_outputs(classifier.classes_, name)

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """See `Teacher`."""
        with _same_threads():
            scores = _scores(self.classifier, x.detach().float().cpu().numpy())
        return torch.from_numpy(scores[:, self.columns]).to(x.device, torch.float32)


class _View:
    """Turns a batch of one preprocessing into what another would have made of the same examples.

    A channel of an example that was never observed holds the mean of the first preprocessing instead of the second's,
    because masks do not distinguish channels.
    """

    def __init__(self, own: Any, wanted: Any, name: str) -> None:
        self.own, self.wanted = own, wanted
        if own.kind != wanted.kind or len(own.size) != len(wanted.size):
            raise ValueError(f"{name} takes {_describe(wanted)}, the student {_describe(own)}: it cannot teach it")
        if getattr(own, "analysis", None) != getattr(wanted, "analysis", None):
            raise ValueError(
                f"{name} and the student make other spectrograms of a signal: train both with the same --spectrogram, "
                "--bands, --frame, --frame-step and --silence"
            )
        self.pictures = own.kind == "image"
        if own.channels != wanted.channels and not self.pictures:
            raise ValueError(f"{name} takes {wanted.channels} channels, the student {own.channels}")
        rates = {getattr(p, "sample_rate", None) for p in (own, wanted)} - {None}
        if len(rates) > 1:
            raise ValueError(
                f"{name} takes {_describe(wanted)}, the student {_describe(own)}: resample the recordings first"
            )
        # A shorter example ends in missing values under both, or else is stretched under either.
        self.pads = getattr(own, "resize", None) == getattr(wanted, "resize", None) == "pad"

    def __call__(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = self._standardise(x)
        if self.wanted.unused_channels:
            x = x.index_fill(1, torch.tensor(self.wanted.unused_channels, device=x.device), 0)
        if mask is not None:  # lines without any observation hold the mean, which is 0 under every standardisation
            x = x * mask.any(-1, keepdim=True)[:, None]
        if tuple(x.shape[2:]) == self.wanted.size:
            return x, mask
        if self.pictures:
            size = list(self.wanted.size)
            return F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False), mask
        for axis, length in enumerate(self.wanted.size, start=2):
            if x.shape[axis] != length:
                x, mask = self._resize(x, mask, axis, length)
        return x, mask

    def _standardise(self, x: Tensor) -> Tensor:
        """Undo one standardisation and apply the other, in one multiplication if the channels are the same."""
        a, b = self.own, self.wanted
        moments = (torch.tensor(values, dtype=torch.float64) for values in (a.mean, a.std, b.mean, b.std))
        old_mean, old_std, mean, std = moments
        if self.pictures and a.levels != type(a).levels:  # grey values of more than 8 bits, in the teacher's levels
            factor = (a.levels[1] - a.levels[0]) / (b.levels[1] - b.levels[0])
            old_mean = (a.levels[0] - b.levels[0]) / (b.levels[1] - b.levels[0]) + old_mean * factor
            old_std = old_std * factor

        def per_channel(values: Tensor) -> Tensor:
            return values.to(x.dtype).to(x.device).view(-1, *[1] * (x.ndim - 2))

        if a.channels == b.channels:
            return x * per_channel(old_std / std) + per_channel((old_mean - mean) / std)
        x = x * per_channel(old_std) + per_channel(old_mean)
        grey = x if a.channels == 1 else (x * per_channel(torch.tensor(_LUMA))).sum(1, keepdim=True)
        return (grey - per_channel(mean)) / per_channel(std)  # grey is broadcast to three channels if there are so many

    def _resize(self, x: Tensor, mask: Tensor | None, axis: int, length: int) -> tuple[Tensor, Tensor | None]:
        """Change the length of one axis as `SignalPreprocess` would have done."""
        old = x.shape[axis]
        observed = x.new_ones(len(x), *x.shape[2:]) if mask is None else mask.to(x.dtype)
        if self.pads and old < length:
            places = torch.arange(length, device=x.device)
            x = x.index_select(axis, places.clamp(max=old - 1))
            if axis < x.ndim - 1:  # whole lines of padding hold the mean
                x = x * (places < old).view(-1, *[1] * (x.ndim - 1 - axis))
            padding = [0, 0] * (x.ndim - 1 - axis) + [0, length - old]
            return x, F.pad(observed, padding) > 0
        stretched = _along(x, axis, length, linear)
        stretched_mask = _along(observed, axis - 1, length, F.adaptive_max_pool1d)
        if self.pads and mask is not None:  # examples that are longer only by their padding lose the padding
            tail = observed.narrow(axis - 1, length, old - length).flatten(1).amax(1) == 0  # (B,)
            short = tail.view(-1, *[1] * (x.ndim - 1))
            stretched = torch.where(short, x.narrow(axis, 0, length), stretched)
            stretched_mask = torch.where(short[:, 0], observed.narrow(axis - 1, 0, length), stretched_mask)
        return stretched, None if mask is None else stretched_mask > 0


def _along(x: Tensor, axis: int, length: int, resize: Any) -> Tensor:
    """Change the length of one axis with a function of (1, lines, old length)."""
    last = x.movedim(axis, -1)
    return resize(last.reshape(1, -1, last.shape[-1]), length).reshape(*last.shape[:-1], length).movedim(-1, axis)


def _describe(preprocess: Preprocess) -> str:
    rate = getattr(preprocess, "sample_rate", None)
    axes = f"{len(preprocess.size)} {'axis' if len(preprocess.size) == 1 else 'axes'}"
    return f"{preprocess.kind}s of {axes}{f' at {rate:g} Hz' if rate else ''}"


@contextmanager
def _same_threads() -> Iterator[None]:
    """Restore torch's number of threads, which numba (used by aeon) changes too."""
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
    """The classifier of this name in aeon."""
    if axes != 1:
        raise ValueError(f"teacher {name} takes signals of one axis; the student's examples have {axes}")
    from aeon.classification import convolution_based

    return getattr(convolution_based, _ROCKETS[name])()


def _scores(classifier: Any, values: np.ndarray) -> np.ndarray:
    """Logits (n, classes) of a fitted classifier: its decision function if it has one, else log probabilities.

    aeon's convolution classifiers do not expose the decision function of the linear classifier at their end, and their
    probabilities are 0 and 1, so the decision function of that last step is recorded while the classifier predicts.
    """
    last = _last_step(classifier)
    if hasattr(classifier, "decision_function"):
        decision = classifier.decision_function(values)
    elif inner := [step for step in map(_last_step, vars(classifier).values()) if _has_decision(step)]:
        last = inner[0]
        decision = _record_decision(classifier, last, values)
    else:
        return np.log(np.maximum(classifier.predict_proba(values), _LEAST))
    decision = np.stack([-decision, decision], axis=1) if decision.ndim == 1 else decision  # two classes
    if type(last).__name__ not in ("RidgeClassifier", "RidgeClassifierCV"):
        return decision
    # Ridge regression on targets of -1 and 1 estimates 2 p - 1, which as logits would be nearly uniform.
    return np.log(np.maximum((1 + decision) / 2, _LEAST))


def _last_step(estimator: Any) -> Any:
    """The last step of a pipeline; any other object itself."""
    steps = getattr(estimator, "steps", None)
    return steps[-1][1] if isinstance(steps, list) and steps else estimator


def _has_decision(estimator: Any) -> bool:
    return hasattr(estimator, "decision_function") and len(getattr(estimator, "classes_", ())) > 0


def _record_decision(classifier: Any, last: Any, values: np.ndarray) -> np.ndarray:
    """The decision function of a classifier's last step, on the features that it predicts from."""
    recorded: list[np.ndarray] = []

    def predict(features: Any) -> Any:
        recorded.append(last.decision_function(features))
        return type(last).predict(last, features)

    last.predict = predict
    try:
        classifier.predict(values)
    finally:
        del last.predict
    return np.concatenate(recorded)
