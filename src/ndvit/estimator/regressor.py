"""`ViTRegressor`: numbers predicted with scikit-learn's interface."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import check_is_fitted

from ndvit.data.sources.arrays import raw_targets
from ndvit.data.sources.load import load_source
from ndvit.estimator.base import ViTEstimator
from ndvit.tasks.regression import Regression


class ViTRegressor(RegressorMixin, ViTEstimator):
    """A Vision Transformer for signals and images with the interface of a scikit-learn regressor.

    X is as in `ViTClassifier`. y is one number for each example, (n,), or several, (n, targets), also as a DataFrame.
    Targets are standardised inside, and `predict` returns them in their units.

    >>> import numpy as np
    >>> from ndvit import ViTRegressor
    >>> y = np.linspace(10, 20, 40)
    >>> X = np.random.default_rng(0).normal(size=(40, 16)) + y[:, None]
    >>> ViTRegressor("fast").fit(X, y).score(X, y) > 0.9
    True

    Args:
        preset: a network and a recipe that belong together, see `ViTClassifier`.
        model: a name that `create_model` knows, instead of the preset's.
        weights: trained weights to start from, see `ViTClassifier`.
        members: networks in an ensemble, from consecutive seeds.
        teacher: an earlier run of the same task, which the network also learns from, see `train`.
        steps: optimizer steps; None leaves it to the preset, as for the next three parameters.
        batch_size: examples per step.
        learning_rate: the peak learning rate.
        loss: "l2" (squared errors), "huber", or "quantile" (the median, and the bounds of intervals).
        interval: share of new targets that `predict_interval` should contain.
        device: "auto", "cpu", "cuda" or "mps".
        random_state: an int gives the same model each time; None draws a seed from numpy's global generator.
        verbose: show progress, and print what was decided about the data.
        options: further options of `train`, such as {"mixup": 0, "depth": 4}; windows as for `ViTClassifier`.

    Attributes:
        n_outputs_: number of targets.
        n_features_in_: columns of a 2-D X; channels of any other.
        feature_names_in_: names of the columns or channels, if X was a container that has them.
        model_: the trained `Model`.
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
        loss: str | None = None,
        interval: float = 0.9,
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
        self.loss = loss
        self.interval = interval
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.options = options

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> "ViTRegressor":
        """Train on examples and their targets; as in `ViTClassifier.fit`.

        Raises:
            ValueError: for data or parameters that cannot work, with the remedy.
            KeyboardInterrupt: after Ctrl-C; nothing is kept.
        """
        examples, columns = self._begin(X, y)
        raw = raw_targets(y, "y")
        rows = [list(row.values()) for row in raw] if raw and isinstance(raw[0], dict) else raw
        table = check_array(rows, ensure_2d=False, dtype=np.float64, input_name="y")
        check_consistent_length(examples, table)
        names = list(raw[0]) if raw and isinstance(raw[0], dict) else None
        targets = raw if names else [tuple(row) for row in table.reshape(len(table), -1).tolist()]
        source = load_source((examples, targets), task=Regression, test_fraction=0, progress=False)
        self._flat = table.ndim == 1
        self._train(source, self._options(), columns, sample_weight, groups)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Numbers in the units of y, (n,), or (n, targets) if y had that shape.

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
            ValueError: for examples of other channels, axes or columns than those of `fit`.
        """
        answers = self._answers(X)[:, : self.n_outputs_]
        return answers[:, 0] if self._flat else answers

    def predict_interval(self, X: Any) -> np.ndarray:
        """Lower and upper bounds of the numbers, (n, 2), or (n, targets, 2); errors as in `predict`.

        The share `interval` of the targets of new examples should be inside. The bounds follow from the errors on
        examples that were not trained on: with preset fast by leaving one example out, else on a validation set.

        Raises:
            ValueError: also if there were no or too few such examples.
        """
        check_is_fitted(self, "model_")
        bounds = self._task.intervals(self._answers(X))
        if bounds is None:
            raise ValueError(
                "there are no intervals, because no or too few examples were held out: set preset='fast' or 'signal', "
                "options={'val_fraction': 0.2}, or loss='quantile'"
            )
        both = np.stack(bounds, -1)
        return both[:, 0] if self._flat else both

    def save(self, path: str | Path) -> None:
        """Write the trained model into one .safetensors file, which `load` and `load_model` read.

        The parameters are stored too, except `weights`, `teacher`, `device` and a random_state that is not an int.
        """
        check_is_fitted(self, "model_")
        self._write(path, {"flat": self._flat})

    @classmethod
    def load(cls, path: str | Path, **parameters: Any) -> "ViTRegressor":
        """A fitted regressor from a file that `save` wrote, or from any trained regression model.

        Args:
            path: the file; or anything else that `load_model` reads.
            **parameters: parameters of the regressor that replace the stored ones, such as `device`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds no trained regression.
        """
        model, facts, stored = cls._read(path)
        if not isinstance(model.task, Regression):
            raise ValueError(
                f"{path} holds no regression but {model.task and model.task.name}: load it as ViTClassifier"
            )
        regressor = cls(**(stored | parameters))._restore(model, facts)
        regressor._flat = facts.get("flat") is not False and regressor.n_outputs_ == 1
        return regressor

    @property
    def n_outputs_(self) -> int:
        """Number of targets."""
        return len(self._task.targets)

    @property
    def _task(self) -> Regression:
        check_is_fitted(self, "model_")
        assert isinstance(self.model_.task, Regression)
        return self.model_.task

    def _options(self) -> dict[str, Any]:
        options = super()._options()
        for name in ("loss", "interval"):
            if name in options:
                raise ValueError(f"{name} is not an option here: set the parameter {name} of ViTRegressor")
        options |= {} if self.loss is None else {"loss": self.loss}
        return options | {"interval": self.interval}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags
