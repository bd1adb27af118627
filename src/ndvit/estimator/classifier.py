"""`ViTClassifier`: classes, or several labels for each example, with scikit-learn's interface."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils import check_consistent_length
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import check_is_fitted

from ndvit.data.examples import Source
from ndvit.data.messages import printable
from ndvit.data.sources.arrays import raw_targets
from ndvit.data.sources.load import load_source
from ndvit.data.sources.sklearn_inputs import check_labels, indicators
from ndvit.estimator.base import ViTEstimator
from ndvit.tasks.class_names import ClassName, class_name
from ndvit.tasks.classification import Classification
from ndvit.tasks.multilabel import Multilabel


class ViTClassifier(ClassifierMixin, ViTEstimator):
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
    than those of `fit` (the rest counts as missing) or longer (they are resampled; over twice as long, refused).
    scikit-learn's splitters, searches and pipelines accept arrays of any number of axes and lists; its transformers
    (StandardScaler, ...) accept 2-D arrays only and are not needed, because values are standardised by channel. aeon's
    `make_pipeline` takes this classifier for univariate series of equal length, scikit-learn's for everything that
    aeon's transformers return.

    y is one label for each example, of any type that scikit-learn accepts; `predict` returns labels of the same type.
    If an example may have several labels, y is a matrix (n, k) of 0 and 1, also sparse or as a DataFrame, as
    scikit-learn requires; `predict` returns such a matrix, and `predict_proba` the probability of every label (n, k).

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
            all examples equally. Of several labels, weights of the examples that have the label.
        literal_labels: take every label as the name of a class, also NA, null and the like, which otherwise stand for
            missing labels, and numbers with fractions, which otherwise are refused as continuous.
        device: "auto", "cpu", "cuda" or "mps".
        random_state: an int gives the same model each time (bit for bit on a CPU with the same number of threads);
            None draws a seed from numpy's global generator.
        verbose: show progress, and print what was decided about the data.
        options: further options of `train`, such as {"mixup": 0, "depth": 4}. With {"window": 1000}, signals are cut
            into windows, which can overlap ("hop"), and an answer is the mean of its windows. If a few signals are over
            twice as long as the others, all are cut, with a `DataWarning`, unless "resample_long" is True.

    Attributes:
        classes_: (k,) the labels, sorted; of a matrix y, the numbers or the names of its columns.
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

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> "ViTClassifier":
        """Train on examples and their labels.

        What is solved in closed form learns from all examples. A network that is trained by steps learns from those
        that the preset, or val_fraction and early_stop in `options`, do not hold out.

        Args:
            X: examples.
            y: their labels.
            sample_weight: (n,) weights of the examples, numbers of at least 0. Networks trained by steps draw examples
                in proportion to them; what is solved in closed form weighs their errors.
            groups: (n,) groups of the examples, such as patients: what is held out for validation, and what is left out
                to calibrate closed forms, are whole groups.

        Raises:
            ValueError: for data or parameters that cannot work, with the remedy.
            KeyboardInterrupt: after Ctrl-C; nothing is kept.
        """
        examples, columns = self._begin(X, y)
        self._indicator: str | None = None
        if (found := indicators(y)) is not None:
            matrix, names = found
            check_consistent_length(examples, matrix)
            source = load_source((examples, matrix), task=Multilabel, test_fraction=0, progress=False)
            classes = np.arange(matrix.shape[1]) if names is None else np.array(names, dtype=object)
            source = replace(source, name="X", task=Multilabel(_names(classes)))
            self._indicator = matrix.dtype.str
            weights = self._weights_of_labels(classes)
        else:
            y = check_labels(y, self.literal_labels)
            check_consistent_length(examples, y)
            classes, codes = np.unique(y, return_inverse=True)
            if len(classes) < 2:
                raise ValueError(
                    f"y holds one class only ({classes[0]!s}): a classifier needs examples of at least two"
                )
            source, weights = _source(examples, codes, classes), None
            if self.class_weight is not None:
                weights = compute_class_weight(self.class_weight, classes=np.unique(y), y=y).tolist()
        options = self._options()
        options |= {} if weights is None else {"class_weight": weights}
        self._train(source, options, columns, sample_weight, groups)
        self.classes_, self.n_classes_ = classes, len(classes)
        return self

    def _weights_of_labels(self, classes: np.ndarray) -> Any:
        """Class weights for the recipe, of a matrix y."""
        if not isinstance(self.class_weight, Mapping):
            return self.class_weight
        return [float(self.class_weight.get(label, 1)) for label in classes.tolist()]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, (n, k) in the order of `classes_`; each row sums to 1.

        After a `fit` on a matrix y, the probability of each label by itself; rows then do not sum to 1.

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
            ValueError: for examples of other channels, axes or columns than those of `fit`.
        """
        rows = self._answers(X)
        if self._indicator is not None:
            return rows
        # float32 rows do not sum to 1 as exactly as scikit-learn's metrics require
        return rows / rows.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each example, (n,); errors as in `predict_proba`.

        After a `fit` on a matrix y, 1 for each label whose probability reaches its threshold and 0 for others, (n, k).
        """
        rows = self.predict_proba(X)
        if self._indicator is None:
            return self.classes_[rows.argmax(axis=1)]
        assert isinstance(self.model_.task, Multilabel)
        return (rows >= np.array(self.model_.task.thresholds)).astype(self._indicator)

    def save(self, path: str | Path) -> None:
        """Write the trained model into one .safetensors file, which `load` and `load_model` read.

        The parameters are stored too, except `weights`, `teacher`, `device` and a random_state that is not an int.
        """
        check_is_fitted(self, "model_")
        labels, changed = self.classes_.tolist(), dict[str, Any]()
        if isinstance(self.class_weight, Mapping):  # the keys of JSON objects are text
            changed["class_weight"] = [float(self.class_weight.get(label, 1)) for label in labels]
        dtype = self.classes_.dtype.str if self.classes_.dtype.kind in "iuf" else self.classes_.dtype.kind
        self._write(path, {"parameters": changed, "labels": labels, "dtype": dtype, "indicator": self._indicator})

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
        model, facts, stored = cls._read(path)
        if not isinstance(model.task, Classification | Multilabel):
            raise ValueError(f"{path} holds no classifier but a {model.task and model.task.name}")
        classes, weights = _labels(facts, model.classes), stored.get("class_weight")
        if isinstance(weights, list):
            stored["class_weight"] = dict(zip(classes.tolist(), weights))
        classifier = cls(**(stored | parameters))._restore(model, facts)
        classifier.classes_, classifier.n_classes_ = classes, len(classes)
        classifier._indicator = None
        if isinstance(model.task, Multilabel):
            dtype = facts.get("indicator")
            known = isinstance(dtype, str) and re.fullmatch(r"[<>|][iufb]\d", dtype)
            classifier._indicator = str(dtype) if known else "<i8"
        return classifier

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
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
