"""`ViTClassifier`: data, plan, recipe and network behind scikit-learn's `fit` and `predict`; nothing is written."""

import copy
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array, check_consistent_length, check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from ndvit.data.examples import Source
from ndvit.data.loading import Inputs
from ndvit.data.preprocess.signals import note_longer
from ndvit.data.sources.arrays import label_names
from ndvit.data.sources.folders import printable
from ndvit.data.sources.in_memory import NUMBERS, check_examples, check_labels, in_words, shape_of
from ndvit.data.sources.load import load_examples, load_source
from ndvit.evaluation.calibration import calibrate
from ndvit.inference.batches import pick_device, predict_probabilities
from ndvit.network import VisionTransformer
from ndvit.network.committee import Ensemble, Model
from ndvit.training.learn import learn
from ndvit.training.plan import split_options
from ndvit.training.presets import choose
from ndvit.weights.file import Described, save_model
from ndvit.weights.loading import load_model
from ndvit.weights.opening import open_weights

_BATCH = 64  # examples of a forward pass in prediction
_OWN = ("steps", "batch_size", "learning_rate", "class_weight", "device")  # fields of Recipe with a parameter here
_STORED = ("preset", "model", "members", *_OWN[:-1], "random_state", "verbose", "options")  # of parameters, in files
_FITTED = ("model_", "classes_", "n_classes_", "n_features_in_", "feature_names_in_", "_columns", "n_iter_", "history_")


class ViTClassifier(ClassifierMixin, BaseEstimator):
    """A Vision Transformer for signals and images that scikit-learn and aeon can use as any other classifier.

    X may be
      - an array (n, time), or a DataFrame of such rows: one channel;
      - an array (n, channels, time), aeon's numpy3D; NaN stands for a missing value;
      - a list of arrays (time,) or (channels, time), whose lengths may differ, aeon's np-list;
      - an array (n, channels, height, width), or any number of axes after the channels; or a list of PIL images.

    An array of three axes is always (n, channels, time): grey images need their channel, X[:, None]. As scikit-learn
    asks, rows of a 2-D array need as many columns as there were in `fit`. In all other layouts examples may be shorter
    than those of `fit` (what lacks counts as missing) or longer (they are resampled). scikit-learn's own splitters,
    searches and pipelines pass arrays of any number of axes and lists on; its transformers (StandardScaler and the
    like) take 2-D arrays only, and are not needed: values are standardised by channel. aeon's `make_pipeline` takes
    this classifier for univariate series of equal length; scikit-learn's, for all that aeon's transformers pass on.

    y is one label for each example, of any type that scikit-learn takes; `predict` gives labels of the same type.

    >>> import numpy as np
    >>> from ndvit import ViTClassifier
    >>> y = np.repeat(["low", "high"], 20)
    >>> X = np.random.default_rng(0).normal(size=(40, 16)) + (y == "high")[:, None]
    >>> ViTClassifier(model="vit_pico", steps=20, random_state=0).fit(X, y).score(X, y) > 0.9
    True

    Args:
        preset: a bundle of network and recipe, such as "signal", "fast" or "finetune" (`ndvit presets` lists them);
            "auto" chooses by `model`, `weights` and the data.
        model: a name that `create_model` knows, instead of the preset's.
        weights: trained weights to begin with instead of a new network: a file, a run, a published name, `hf:...`, a
            loaded model, or a fitted ViTClassifier. scikit-learn's `clone`, and so every search, makes unfitted copies
            of classifiers: give it `other.model_` instead.
        members: networks in an ensemble, from consecutive seeds: two ensembles share none if those lie apart.
        teacher: what the network also learns from (distillation), see `train`.
        steps: optimiser steps; None leaves it to the preset, as in the next two.
        batch_size: examples in one step.
        learning_rate: the highest of the run.
        class_weight: "balanced", or a dict from labels to weights, in which a label left out weighs 1; None weighs all
            examples alike.
        device: "auto", "cpu", "cuda" or "mps".
        random_state: an int gives the same model twice (on a CPU with the same number of threads bit for bit); None
            draws a seed from numpy's global generator.
        verbose: show progress, and say what was decided about the data.
        options: further fields of `Recipe` or `ViTConfig`, such as {"mixup": 0, "depth": 4}.

    Attributes:
        classes_: (k,) the labels, sorted.
        n_classes_: their number.
        n_features_in_: columns of a 2-D X; channels of every other.
        feature_names_in_: names of the columns, where X was a DataFrame that has them.
        model_: the trained network or ensemble, in eval mode, with `classes` (the labels as text) and `preprocess`.
        n_iter_: optimiser steps done, by each member.
        history_: rows of metrics, each with its "member" and "step".
    """

    def __init__(
        self,
        preset: str = "auto",
        *,
        model: str | None = None,
        weights: Any = None,
        members: int = 1,
        teacher: Any = None,
        steps: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        class_weight: Mapping[Any, float] | str | None = None,
        device: str = "auto",
        random_state: Any = None,
        verbose: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.preset = preset
        self.model = model
        self.weights = weights
        self.members = members
        self.teacher = teacher
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.class_weight = class_weight
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.options = options

    def fit(self, X: Any, y: Any) -> "ViTClassifier":
        """Train on examples and their labels; all of them, unless `options` ask for early_stop or val_fraction.

        Raises:
            ValueError: for data or parameters that cannot work, saying how to mend them.
            KeyboardInterrupt: after Ctrl-C; nothing is kept.
        """
        if y is None:
            raise ValueError("ViTClassifier requires y to be passed, but the target y is None")
        for name in _FITTED:  # an earlier fit's, which would answer for this one if it failed
            self.__dict__.pop(name, None)
        examples, columns = self._examples(X, fitting=True)
        y = check_labels(y)
        check_consistent_length(examples, y)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y holds one class only ({classes[0]!s}): a classifier needs examples of at least two")
        data = _source(examples, codes, classes)
        given = self._given(y)
        weights = _open(self.weights, split_options(given)[1])  # refuses what is wrong before anything is calculated
        if isinstance(self.teacher, ViTClassifier):
            _check_fitted(self.teacher, "teacher")
        if weights is not None and self.model is not None:
            raise ValueError(f"weights bring their own network: give model={self.model!r} or weights, not both")
        choice = choose(self.preset, data, self.model, given, None if weights is None else weights.config)
        recipe, overrides = split_options(choice.options)
        say = print if self.verbose else _hush
        for note in choice.notes:
            say(note)
        with _own_generator(self.device):
            learned = learn(
                data,
                recipe,
                overrides,
                model=choice.model,
                weights=weights,
                members=self.members,
                teacher=self.teacher,
                progress=bool(self.verbose),
                say=say,
            )
            if learned.interrupted:
                raise KeyboardInterrupt
            val = None if learned.data.val is None else Inputs(learned.data.val, learned.model.preprocess)
            calibration = calibrate(learned.model, val, _BATCH, self.device, bool(self.verbose))
            learned.model.cpu()
        if calibration.examples:
            say(str(calibration))
        self._keep(learned.model, classes, columns)
        self.n_iter_ = learned.fits[0].steps
        self.history_ = [{"member": i, **row} for i, result in enumerate(learned.fits) for row in result.history]
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, (n, k) in the order of `classes_`; each row sums to 1.

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
            ValueError: for examples of other channels, axes or columns than those of `fit`.
        """
        check_is_fitted(self, "model_")
        given, _ = self._examples(X, fitting=False)
        kind, examples, _ = load_examples(given)
        preprocess = self.model_.preprocess
        if kind != preprocess.kind:
            raise ValueError(f"X holds {kind}s, but this ViTClassifier was fitted on {preprocess.kind}s")
        own = preprocess.channels, len(preprocess.size)
        if kind == "signal" and (shape := shape_of(given)) != own:
            raise ValueError(
                f"X has examples of {in_words(shape)}, but this ViTClassifier was fitted on {in_words(own)}: "
                "expected (n, channels, time, ...), or (n, time) for one channel"
            )
        if longer := note_longer([examples], preprocess):
            warnings.warn(f"X: {longer}", stacklevel=2)
        inputs = Inputs(examples, preprocess)
        with _own_generator(self.device):  # torch's DataLoader draws from it, even where nothing is random
            rows = predict_probabilities(self.model_, inputs, _BATCH, self.device, bool(self.verbose))
        rows = rows.astype(np.float64)  # in which they sum to 1 as exactly as scikit-learn's metrics expect
        return rows / rows.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each example, (n,); errors as in `predict_proba`."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def save(self, path: str | Path) -> None:
        """Write the trained model into one .safetensors file, which `load` and also `ndvit predict` and the like read.

        Parameters travel along, except `weights`, `teacher`, `device` and a random_state that is no int.
        """
        check_is_fitted(self, "model_")
        stored = {name: _plain(getattr(self, name)) for name in _STORED}
        labels = self.classes_.tolist()
        if isinstance(self.class_weight, Mapping):  # JSON has no keys but text
            stored["class_weight"] = [float(self.class_weight.get(label, 1)) for label in labels]
        self.model_.provenance["estimator"] = {
            "parameters": {name: value for name, value in stored.items() if _storable(value)},
            "labels": labels,
            "dtype": self.classes_.dtype.str if self.classes_.dtype.kind in "iuf" else self.classes_.dtype.kind,
            "columns": self._columns,
            "names": list(getattr(self, "feature_names_in_", ())),
        }
        save_model(self.model_, path)

    @classmethod
    def load(cls, path: str | Path, **parameters: Any) -> "ViTClassifier":
        """A fitted classifier from a file that `save` wrote, or from any trained model that `load_model` reads.

        Args:
            path: the file; or a run, whose labels are then text.
            **parameters: of the classifier, instead of the saved ones; `device` for example.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds no trained classifier.
        """
        model = load_model(path)
        if model.untrained or not model.classes or model.preprocess is None:
            raise ValueError(f"{path} is not ready to predict: give its weights= to a ViTClassifier and fit it")
        told = _mapping(model.provenance.get("estimator"))
        stored = {k: v for k, v in _mapping(told.get("parameters")).items() if k in _STORED}
        classes, weights = _labels(told, model.classes), stored.get("class_weight")
        if isinstance(weights, list):
            stored["class_weight"] = dict(zip(classes.tolist(), weights))
        made = cls(**(stored | parameters))
        columns: Any = told.get("columns")
        names = told.get("names")
        if type(columns) is not int or columns < 1:
            columns = None
        elif isinstance(names, list) and len(names) == columns:
            made.feature_names_in_ = np.array(list(map(str, names)), dtype=object)
        made._keep(model, classes, columns)
        steps: Any = model.provenance.get("steps")
        made.n_iter_, made.history_ = steps, []
        return made

    def _keep(self, model: Model, classes: np.ndarray, columns: int | None) -> None:
        """What `predict` needs of a fit."""
        self.model_ = model
        self.classes_, self.n_classes_ = classes, len(classes)
        self.n_features_in_: int = columns or model.preprocess.channels
        self._columns = columns

    def _examples(self, X: Any, fitting: bool) -> tuple[np.ndarray | list[Any], int | None]:
        """X checked in the light of the last fit, and the columns that it has, if it is an array of two axes."""

        def check_table(table: Any) -> np.ndarray:
            if fitting or self._columns is not None:
                return validate_data(self, table, reset=fitting, **NUMBERS)
            return check_array(table, input_name="X", **NUMBERS)

        examples = check_examples(X, check_table)
        return examples, examples.shape[1] if isinstance(examples, np.ndarray) and examples.ndim == 2 else None

    def _given(self, y: np.ndarray) -> dict[str, Any]:
        """The user's part of the fields of Recipe and ViTConfig."""
        given = dict(self.options or {})
        for name in ("seed", *_OWN):
            if name in given:
                parameter = {"seed": "random_state"}.get(name, name)
                raise ValueError(f"{name} is no option here: set the parameter {parameter} of ViTClassifier")
        given |= {name: getattr(self, name) for name in _OWN if getattr(self, name) is not None}
        given["seed"] = _seed(self.random_state)
        if self.class_weight is not None:
            given["class_weight"] = compute_class_weight(self.class_weight, classes=np.unique(y), y=y).tolist()
        if given.get("val_fraction") is None:  # what is held out is lost, unless somebody stops by it
            given["val_fraction"] = 0.1 if given.get("early_stop") else 0.0
        return given

    def __getstate__(self) -> dict[str, Any]:
        """The state for pickle, with networks where every machine can load them."""
        state = super().__getstate__()
        for name in ("model_", "weights", "teacher"):
            module = state.get(name)
            if isinstance(module, nn.Module) and any(p.device.type != "cpu" for p in module.parameters()):
                state = {**state, name: copy.deepcopy(module).cpu()}
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.three_d_array = True
        return tags


def _source(examples: np.ndarray | list[Any], codes: np.ndarray, classes: np.ndarray) -> Source:
    """Training data whose class i is `classes[i]`, named by its text."""
    data = load_source((examples, codes), test_fraction=0, progress=False)  # codes as text sort as numbers do
    return replace(data, name="X", classes=_names(classes))


def _names(labels: np.ndarray) -> tuple[str, ...]:
    """What classes are called: as in any other source, where 1.0 is 1, or as Python writes them if two meet then."""
    names = label_names(labels.astype(object), "y")
    known = [name for name in names if name is not None]
    return tuple(printable(name) for name in (known if len(set(known)) == len(labels) else map(str, labels)))


def _seed(random_state: Any) -> int:
    random = check_random_state(random_state)  # refuses what is none
    return int(random_state) if isinstance(random_state, Integral) else int(random.randint(2**31 - 1))


def _own_generator(device: str) -> AbstractContextManager[None]:
    """A context that leaves torch's global generators as they were."""
    return torch.random.fork_rng([torch.cuda.current_device()] if pick_device(device) == "cuda" else [])


def _hush(line: str) -> None:
    """What is said to nobody."""


def _open(weights: Any, overrides: Mapping[str, Any]) -> Described | None:
    """Weights as they are, whichever way they are given."""
    if weights is None:
        return None
    weights = getattr(weights, "estimator", weights)  # of a FrozenEstimator
    if isinstance(weights, ViTClassifier):
        _check_fitted(weights, "weights")
        weights = weights.model_
    if not isinstance(weights, nn.Module):
        return open_weights(weights, overrides)
    if not isinstance(weights, VisionTransformer):
        raise ValueError(
            f"weights is of type {type(weights).__name__}, expected one network of ndvit's"
            + (": give one of its members, model_.members[0] say" if isinstance(weights, Ensemble) else "")
        )
    return Described(
        kind="ndvit",
        config=weights.config,
        tensors={name: tensor.cpu() for name, tensor in weights.state_dict().items()},
        source="a model in memory",
        classes=weights.classes,
        preprocess=weights.preprocess,
        provenance=weights.provenance,
        untrained=weights.untrained,
    )


def _check_fitted(classifier: "ViTClassifier", name: str) -> None:
    """Raise a ValueError for a parameter of this name that was not fitted, or not any more."""
    if not hasattr(classifier, "model_"):
        raise ValueError(
            f"{name} is a ViTClassifier that was not fitted; if it was, scikit-learn's clone has made an unfitted "
            f"copy of it: give {name}=other.model_, or the path of a file that other.save wrote"
        )


def _plain(value: Any) -> Any:
    """The value in types that JSON has: numpy's numbers as Python's, tuples and arrays as lists."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _storable(value: Any) -> bool:
    """Whether JSON gives a value back as it was."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and _storable(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(_storable, value))
    return value is None or type(value) in (bool, int, float, str)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _labels(told: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
    """The labels that `save` stored, where they are what the model's classes are named by; else those names."""
    labels, dtype = told.get("labels"), told.get("dtype")
    if isinstance(labels, list) and isinstance(dtype, str) and re.fullmatch(r"[<>|][iuf]\d|b|U|O", dtype):
        try:
            made = np.array(labels, dtype={"b": bool, "U": str, "O": object}.get(dtype, dtype))
            if made.ndim == 1 and _names(made) == tuple(names):
                return made
        except (OverflowError, TypeError, ValueError):
            pass  # a file may hold anything
    return np.array(names, dtype=str)
