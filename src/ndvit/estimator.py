"""`ViTClassifier`: the plan and fit of a run behind scikit-learn's `fit` and `predict`. Nothing is written."""

import copy
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import check_is_fitted, validate_data

from ndvit.data.examples import Source
from ndvit.data.loading import Inputs
from ndvit.data.messages import printable
from ndvit.data.preprocess import describe_resampling, warn_if_unlike_training
from ndvit.data.sources.arrays import raw_targets
from ndvit.data.sources.containers import check_names
from ndvit.data.sources.load import load_examples, load_source
from ndvit.data.sources.sklearn_inputs import check_examples, check_labels, describe_shape, shape_of
from ndvit.inference.batches import predict_answers
from ndvit.model import Model, load_model
from ndvit.tasks.classification import Classification, ClassName, class_name
from ndvit.training.fit import fit
from ndvit.training.plan import Request, plan

_BATCH = 64  # examples per forward pass in prediction
_OWN = ("steps", "batch_size", "learning_rate", "class_weight", "device")  # fields of Recipe with a parameter here
_STORED = (
    "preset",
    "model",
    "members",
    *_OWN[:-1],
    "literal_labels",
    "random_state",
    "verbose",
    "options",
)  # parameters in files
_FITTED = ("model_", "classes_", "n_classes_", "n_features_in_", "feature_names_in_", "_columns", "n_iter_", "history_")


class ViTClassifier(ClassifierMixin, BaseEstimator):
    """A Vision Transformer for signals and images with the interface of a scikit-learn classifier.

    X may be
      - an array (n, time), or a DataFrame of such rows: one channel;
      - an array (n, channels, time), aeon's numpy3D; NaN stands for a missing value;
      - a list of arrays (time,) or (channels, time), whose lengths may differ, aeon's np-list;
      - an array (n, channels, height, width), or any number of axes after the channels; or a list of PIL images;
      - a DataFrame with two levels of columns, channel and time; or a list of DataFrames with one row for each moment
        and one named column for each channel;
      - a masked array, a tensor or another container, see `ndvit.data.sources.containers.read_container`; masked values
        and NA are missing.

    An array of three axes is always (n, channels, time): grey images need their channel, X[:, None]. As required by
    scikit-learn, rows of a 2-D array need as many columns as in `fit`. In all other layouts, examples may be shorter
    than those of `fit` (the rest counts as missing) or longer (they are resampled). scikit-learn's splitters, searches
    and pipelines accept arrays of any number of axes and lists; its transformers (StandardScaler, ...) accept 2-D
    arrays only and are not needed, because values are standardised by channel. aeon's `make_pipeline` takes this
    classifier for univariate series of equal length, scikit-learn's for everything that aeon's transformers return.

    y is one label for each example, of any type that scikit-learn accepts; `predict` returns labels of the same type.

    >>> import numpy as np
    >>> from ndvit import ViTClassifier
    >>> y = np.repeat(["low", "high"], 20)
    >>> X = np.random.default_rng(0).normal(size=(40, 16)) + (y == "high")[:, None]
    >>> ViTClassifier(model="vit_pico", steps=20, random_state=0).fit(X, y).score(X, y) > 0.9
    True

    Args:
        preset: a network and a recipe that belong together, such as "signal", "fast" or "finetune" (`ndvit presets`
            lists them); "auto" chooses by `model`, `weights` and the data.
        model: a name that `create_model` knows, instead of the preset's.
        weights: trained weights to start from instead of a new network: a file, a run, a published name, `hf:...`, a
            `Model`, or a fitted ViTClassifier. scikit-learn's `clone`, and so every search, creates unfitted copies of
            classifiers: pass `other.model_` instead.
        members: networks in an ensemble, from consecutive seeds.
        teacher: what the network also learns from (distillation), see `train`.
        steps: optimizer steps; None leaves it to the preset, as for the next two parameters.
        batch_size: examples per step.
        learning_rate: the peak learning rate.
        class_weight: "balanced", or a dict from labels to weights, in which absent labels have weight 1; None weights
            all examples equally.
        literal_labels: take every label as the name of a class, also NA, null and the like, which otherwise stand for
            missing labels, and numbers with fractions, which otherwise are refused as continuous.
        device: "auto", "cpu", "cuda" or "mps".
        random_state: an int gives the same model each time (bit for bit on a CPU with the same number of threads);
            None draws a seed from numpy's global generator.
        verbose: show progress, and print what was decided about the data.
        options: further options of `train`, such as {"mixup": 0, "depth": 4}.

    Attributes:
        classes_: (k,) the labels, sorted.
        n_classes_: number of labels.
        n_features_in_: columns of a 2-D X; channels of any other.
        feature_names_in_: names of the columns or channels, if X was a container that has them.
        model_: the trained `Model`, whose `classes` are the labels as text.
        n_iter_: optimizer steps done by each member.
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
        literal_labels: bool = False,
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
        self.literal_labels = literal_labels
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.options = options

    def fit(self, X: Any, y: Any) -> "ViTClassifier":
        """Train on examples and their labels.

        What is solved in closed form learns from all examples. A network that is trained by steps learns from those
        that the preset, or val_fraction and early_stop in `options`, do not hold out.

        Raises:
            ValueError: for data or parameters that cannot work, with the remedy.
            KeyboardInterrupt: after Ctrl-C; nothing is kept.
        """
        if y is None:
            raise ValueError("ViTClassifier requires y to be passed, but the target y is None")
        for name in _FITTED:  # of an earlier fit, which must not answer if this one fails
            self.__dict__.pop(name, None)
        examples, columns = self._examples(X, fitting=True)
        y = check_labels(y, self.literal_labels)
        check_consistent_length(examples, y)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y holds one class only ({classes[0]!s}): a classifier needs examples of at least two")
        request = Request(
            source=_source(examples, codes, classes),
            preset=self.preset,
            model=self.model,
            weights=_fitted_model(self.weights, "weights"),
            members=self.members,
            teacher=_fitted_model(self.teacher, "teacher"),
            options=(options := self._options(y)),
            usual_val_fraction=0.1 if options.get("early_stop") else 0.0,  # users expect that all examples are used
            progress=bool(self.verbose),
        )
        log = print if self.verbose else _ignore
        planned = plan(request)
        for line in planned.lines():
            log(line)
        trained = fit(planned, progress=bool(self.verbose), log=log)
        if trained.interrupted:
            raise KeyboardInterrupt
        self._keep(trained.model.to("cpu"), classes, columns)
        self.n_iter_ = trained.fits[0].steps
        self.history_ = [{"member": i, **row} for i, result in enumerate(trained.fits) for row in result.history]
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, (n, k) in the order of `classes_`; each row sums to 1.

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
            ValueError: for examples of other channels, axes or columns than those of `fit`.
        """
        check_is_fitted(self, "model_")
        self.model_.warn_of_assumptions()
        checked, _ = self._examples(X, fitting=False)
        preprocess = self.model_.preprocess
        assert preprocess is not None
        kind, _, examples, _ = load_examples(checked, channels=preprocess.channels)
        if kind != preprocess.kind:
            raise ValueError(f"X holds {kind}s, but this ViTClassifier was fitted on {preprocess.kind}s")
        own = preprocess.channels, len(preprocess.size)
        if kind == "signal" and (shape := shape_of(checked)) != own:
            raise ValueError(
                f"X has examples of {describe_shape(shape)}, but this ViTClassifier was fitted on "
                f"{describe_shape(own)}: expected (n, channels, time, ...), or (n, time) for one channel"
            )
        if longer := describe_resampling([examples], preprocess):
            warnings.warn(f"X: {longer}", stacklevel=2)
        warn_if_unlike_training([examples], preprocess)
        rows = predict_answers(self.model_, Inputs(examples, preprocess), _BATCH, self.device, bool(self.verbose))
        rows = rows.astype(np.float64)  # float32 rows do not sum to 1 as exactly as scikit-learn's metrics require
        return rows / rows.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each example, (n,); errors as in `predict_proba`."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def save(self, path: str | Path) -> None:
        """Write the trained model into one .safetensors file, which `load` and `load_model` read.

        The parameters are stored too, except `weights`, `teacher`, `device` and a random_state that is not an int.
        """
        check_is_fitted(self, "model_")
        stored = {name: _plain(getattr(self, name)) for name in _STORED}
        labels = self.classes_.tolist()
        if isinstance(self.class_weight, Mapping):  # the keys of JSON objects are text
            stored["class_weight"] = [float(self.class_weight.get(label, 1)) for label in labels]
        self.model_.provenance["estimator"] = {
            "parameters": {name: value for name, value in stored.items() if _storable(value)},
            "labels": labels,
            "dtype": self.classes_.dtype.str if self.classes_.dtype.kind in "iuf" else self.classes_.dtype.kind,
            "columns": self._columns,
            "names": list(getattr(self, "feature_names_in_", ())),
        }
        self.model_.save(path)

    @classmethod
    def load(cls, path: str | Path, **parameters: Any) -> "ViTClassifier":
        """A fitted classifier from a file that `save` wrote, or from any trained classification model.

        Args:
            path: the file; or anything else that `load_model` reads, whose labels are then text.
            **parameters: parameters of the classifier that replace the stored ones, such as `device`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds no trained classifier.
        """
        model = load_model(path)
        if model.untrained or not model.classes or model.preprocess is None:
            raise ValueError(f"{path} is not ready to predict: pass it as weights= to a ViTClassifier and fit that")
        facts = _mapping(model.provenance.get("estimator"))
        stored = {k: v for k, v in _mapping(facts.get("parameters")).items() if k in _STORED}
        classes, weights = _labels(facts, model.classes), stored.get("class_weight")
        if isinstance(weights, list):
            stored["class_weight"] = dict(zip(classes.tolist(), weights))
        classifier = cls(**(stored | parameters))
        columns: Any = facts.get("columns")
        names = facts.get("names")
        if type(columns) is not int or columns < 1:
            columns = None
        if isinstance(names, list) and len(names) == (columns or model.preprocess.channels):
            classifier.feature_names_in_ = np.array(list(map(str, names)), dtype=object)
        classifier._keep(model, classes, columns)
        steps: Any = model.provenance.get("steps")
        classifier.n_iter_, classifier.history_ = steps, []
        return classifier

    def _keep(self, model: Model, classes: np.ndarray, columns: int | None) -> None:
        """Set what `predict` needs."""
        assert model.preprocess is not None
        self.model_ = model
        self.classes_, self.n_classes_ = classes, len(classes)
        self.n_features_in_: int = columns or model.preprocess.channels
        self._columns = columns

    def _examples(self, X: Any, fitting: bool) -> tuple[np.ndarray | list[Any], int | None]:
        """X checked against the last fit, and its number of columns if it is a table (n, time)."""
        examples, channels, table = check_examples(X)
        if table and (fitting or self._columns is not None):
            frame = hasattr(X, "columns")  # scikit-learn checks the names of its columns, too
            validate_data(self, X if frame else examples, reset=fitting, skip_check_array=True)
        elif not fitting and self._columns is None:
            check_names(channels, getattr(self, "feature_names_in_", None), "X", "fit")
        elif fitting and channels is not None:
            self.feature_names_in_ = np.array(channels, dtype=object)
        return examples, examples.shape[1] if table and isinstance(examples, np.ndarray) else None

    def _options(self, y: np.ndarray) -> dict[str, Any]:
        """The options of the request."""
        options = dict(self.options or {})
        for name in ("seed", *_OWN):
            if name in options:
                parameter = {"seed": "random_state"}.get(name, name)
                raise ValueError(f"{name} is not an option here: set the parameter {parameter} of ViTClassifier")
        options |= {name: getattr(self, name) for name in _OWN if getattr(self, name) is not None}
        options["seed"] = _seed(self.random_state)
        if self.class_weight is not None:
            options["class_weight"] = compute_class_weight(self.class_weight, classes=np.unique(y), y=y).tolist()
        return options

    def __getstate__(self) -> dict[str, Any]:
        """The state for pickle, with networks on the CPU so that every machine can load them."""
        state = super().__getstate__()
        for name in ("model_", "weights", "teacher"):
            model = state.get(name)
            if isinstance(model, Model) and model.device.type != "cpu":
                state = {**state, name: copy.deepcopy(model).to("cpu")}
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.three_d_array = True
        return tags


def _source(examples: np.ndarray | list[Any], codes: np.ndarray, classes: np.ndarray) -> Source:
    """Training data whose class i is `classes[i]`, named by its text."""
    targets = [ClassName(code) for code in codes.tolist()]  # they sort by value, as labels do
    data = load_source((examples, targets), test_fraction=0, progress=False)
    return replace(data, name="X", task=Classification(_names(classes)))


def _names(labels: np.ndarray) -> tuple[str, ...]:
    """Class names as in any other source, where 1.0 is 1; or as Python writes the labels, if names would coincide."""
    names = [class_name(value) for value in raw_targets(labels.astype(object), "y") if value is not None]
    return tuple(printable(name) for name in (names if len(set(names)) == len(labels) else map(str, labels)))


def _seed(random_state: Any) -> int:
    random = check_random_state(random_state)  # refuses invalid values
    return int(random_state) if isinstance(random_state, Integral) else int(random.randint(2**31 - 1))


def _ignore(line: str) -> None:
    """Print nothing."""


def _fitted_model(value: Any, name: str) -> Any:
    """The model of a fitted ViTClassifier; any other value of the parameter unchanged.

    Raises:
        ValueError: for a ViTClassifier that is not fitted.
    """
    value = getattr(value, "estimator", value) if name == "weights" else value  # of a FrozenEstimator
    if not isinstance(value, ViTClassifier):
        return value
    if not hasattr(value, "model_"):
        raise ValueError(
            f"{name} is a ViTClassifier that is not fitted; if it was, scikit-learn's clone has made an unfitted "
            f"copy of it: pass {name}=other.model_, or the path of a file that other.save wrote"
        )
    return value.model_


def _plain(value: Any) -> Any:
    """The value in the types of JSON: numpy's numbers as Python's, tuples and arrays as lists."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _storable(value: Any) -> bool:
    """Whether JSON restores a value unchanged."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and _storable(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(_storable, value))
    return value is None or type(value) in (bool, int, float, str)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _labels(facts: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
    """The labels that `save` stored, if the model's classes are their names; else those names."""
    labels, dtype = facts.get("labels"), facts.get("dtype")
    if isinstance(labels, list) and isinstance(dtype, str) and re.fullmatch(r"[<>|][iuf]\d|b|U|O", dtype):
        try:
            restored = np.array(labels, dtype={"b": bool, "U": str, "O": object}.get(dtype, dtype))
            if restored.ndim == 1 and _names(restored) == tuple(names):
                return restored
        except (OverflowError, TypeError, ValueError):
            pass  # a file may hold anything
    return np.array(names, dtype=str)
