"""What both estimators share: the plan and fit of a run behind scikit-learn's `fit` and `predict`."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ndvit.config.reading import FileOptions, ReadingOptions, file_options
from ndvit.data.examples import Source
from ndvit.data.groups import group_names, relative_weights
from ndvit.data.loading import Inputs
from ndvit.data.messages import DataWarning, Ungrouped, ungrouped, warn
from ndvit.data.preprocess import describe_resampling, warn_if_unlike_training
from ndvit.data.sources.containers import check_names
from ndvit.data.sources.load import load_examples
from ndvit.data.sources.sklearn_inputs import check_examples, describe_shape, shape_of
from ndvit.data.windows import cut, cut_outliers
from ndvit.inference.batches import predict_answers
from ndvit.inference.recordings import mean_answers
from ndvit.model import Model, load_model
from ndvit.training.fit import fit
from ndvit.training.plan import Request, plan

_BATCH = 64  # examples per forward pass in prediction
_OWN = ("steps", "batch_size", "learning_rate", "class_weight", "device")  # fields of Recipe with a parameter here
_NOT_STORED = ("weights", "teacher", "device")  # models, and what depends on the machine
_READING = ("window", "hop", "resample_long")  # fields of FileOptions that `options` may have
_FITTED = ("model_", "classes_", "n_classes_", "n_features_in_", "feature_names_in_", "_columns", "n_iter_", "history_")


class ViTEstimator(BaseEstimator):
    """Shared by `ViTClassifier` and `ViTRegressor`, which have the parameters."""

    preset: str
    model: str | None
    weights: Any
    members: int
    teacher: Any
    random_state: Any
    verbose: bool
    options: Mapping[str, Any] | None
    n_iter_: Any
    history_: list[dict[str, Any]]

    @classmethod
    def _stored(cls) -> list[str]:
        """Names of the parameters in files."""
        return [name for name in cls._get_param_names() if name not in _NOT_STORED]

    def _begin(self, X: Any, y: Any) -> tuple[np.ndarray | list[Any], int | None]:
        """Remove what an earlier fit has set, which must not answer if this one fails; X as `_examples` returns it.

        Raises:
            ValueError: without y, and for examples that cannot be read.
        """
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        for name in _FITTED:
            self.__dict__.pop(name, None)
        return self._examples(X, fitting=True)

    def _train(
        self, source: Source, options: dict[str, Any], columns: int | None, sample_weight: Any, groups: Any
    ) -> None:
        """Train on a source, and set what `predict` needs.

        Raises:
            ValueError: for data or parameters that cannot work, with the remedy.
            KeyboardInterrupt: after Ctrl-C; nothing is kept.
        """
        if sample_weight is not None:
            weights = np.asarray(sample_weight, dtype=np.float64)
            if weights.shape != (len(source.train),):
                raise ValueError(f"sample_weight has shape {weights.shape}, expected ({len(source.train)},)")
            source.train.weights = relative_weights(weights, "sample_weight")
        if groups is not None:
            values = np.asarray(groups, dtype=object)
            if values.shape != (len(source.train),):
                raise ValueError(f"groups have shape {values.shape}, expected ({len(source.train)},)")
            source.train.groups = np.array(group_names(values.tolist(), source.train.names, "groups", "group"))
        options = dict(options)
        reading = ReadingOptions.from_dict({name: options.pop(name) for name in _READING if name in options})
        source, reading = _cut(source, reading, by_rule="input_size" not in options)
        request = Request(
            source=source,
            reading=reading,
            preset=self.preset,
            model=self.model,
            weights=_fitted_model(self.weights, "weights"),
            members=self.members,
            teacher=_fitted_model(self.teacher, "teacher"),
            options=options,
            usual_val_fraction=0.1 if options.get("early_stop") else 0.0,  # users expect that all examples are used
            progress=bool(self.verbose),
        )
        log = print if self.verbose else _ignore
        planned = plan(request)
        for line in planned.lines():
            log(line)
        if planned.data.val is not None and groups is None:  # held out at random
            for note in source.notes:
                if isinstance(note, Ungrouped):
                    warn(ungrouped(note), DataWarning)
        trained = fit(planned, progress=bool(self.verbose), log=log)
        if trained.interrupted:
            raise KeyboardInterrupt
        if stored := {name: value for name in _READING if (value := getattr(reading, name))}:
            trained.model.provenance["reading"] = stored
        self._keep(trained.model.to("cpu"), columns)
        self.n_iter_ = trained.fits[0].steps
        self.history_ = [{"member": i, **row} for i, result in enumerate(trained.fits) for row in result.history]

    def _answers(self, X: Any) -> np.ndarray:
        """Answers (n, outputs), float64.

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
            ValueError: for examples of other channels, axes or columns than those of `fit`.
        """
        check_is_fitted(self, "model_")
        self.model_.warn_of_assumptions()
        checked, _ = self._examples(X, fitting=False)
        preprocess, me = self.model_.preprocess, type(self).__name__
        assert preprocess is not None
        reading = getattr(self, "_reading", None) or _how_it_reads(self.model_)  # an earlier version pickled none
        preprocess = preprocess.admitting(reading.resample_long)
        kind, _, examples, _ = load_examples(checked, in_channels=preprocess.raw_channels, reading=reading)
        if kind != preprocess.kind:
            raise ValueError(f"X holds {kind}s, but this {me} was fitted on {preprocess.kind}s")
        own = preprocess.raw_channels, len(preprocess.raw_size)
        if kind == "signal" and (shape := shape_of(checked)) != own:
            raise ValueError(
                f"X has examples of {describe_shape(shape)}, but this {me} was fitted on {describe_shape(own)}: "
                "expected (n, channels, time, ...), or (n, time) for one channel"
            )
        if longer := describe_resampling([examples], preprocess):
            warnings.warn(f"X: {longer}", stacklevel=3)
        warn_if_unlike_training([examples], preprocess)
        rows = predict_answers(
            self.model_, Inputs(examples, preprocess), _BATCH, getattr(self, "device", "auto"), bool(self.verbose)
        )
        return mean_answers(rows.astype(np.float64), examples)[1]

    def _write(self, path: str | Path, facts: Mapping[str, Any]) -> None:
        """Write the trained model with the parameters and further facts."""
        check_is_fitted(self, "model_")
        stored = {name: _plain(getattr(self, name)) for name in self._stored()} | dict(facts.get("parameters", {}))
        self.model_.provenance["estimator"] = {
            **facts,
            "parameters": {name: value for name, value in stored.items() if _storable(value)},
            "columns": self._columns,
            "names": list(getattr(self, "feature_names_in_", ())),
        }
        self.model_.save(path)

    @classmethod
    def _read(cls, path: str | Path) -> tuple[Model, Mapping[str, Any], dict[str, Any]]:
        """The model of a file, what `_write` has stored of the estimator, and its parameters.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds no trained model.
        """
        model = load_model(path)
        if model.untrained or model.task is None or not model.task.num_outputs or model.preprocess is None:
            raise ValueError(f"{path} is not ready to predict: pass it as weights= to a {cls.__name__} and fit that")
        facts = _mapping(model.provenance.get("estimator"))
        return model, facts, {k: v for k, v in _mapping(facts.get("parameters")).items() if k in cls._stored()}

    def _restore(self, model: Model, facts: Mapping[str, Any]) -> Self:
        """Set what `predict` needs from a file."""
        assert model.preprocess is not None
        stored, names = facts.get("columns"), facts.get("names") or list(model.channel_names)
        columns = stored if type(stored) is int and stored > 0 else None
        if isinstance(names, list) and len(names) == (columns or model.preprocess.raw_channels):
            self.feature_names_in_ = np.array(list(map(str, names)), dtype=object)
        self._keep(model, columns)
        self.n_iter_, self.history_ = model.provenance.get("steps"), []
        return self

    def _keep(self, model: Model, columns: int | None) -> None:
        """Set what `predict` needs."""
        assert model.preprocess is not None
        self.model_ = model
        self.n_features_in_: int = columns or model.preprocess.raw_channels
        self._columns = columns
        self._reading = _how_it_reads(model)  # kept, because checking it takes a part of the time of a prediction

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

    def _options(self) -> dict[str, Any]:
        """The options of the request."""
        options = dict(self.options or {})
        own = [name for name in _OWN if name in self._get_param_names()]
        for name in ("seed", *own):
            if name in options:
                parameter = {"seed": "random_state"}.get(name, name)
                raise ValueError(
                    f"{name} is not an option here: set the parameter {parameter} of {type(self).__name__}"
                )
        options |= {name: getattr(self, name) for name in own if getattr(self, name) is not None}
        options["seed"] = _seed(self.random_state)
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


def _cut(source: Source, reading: ReadingOptions, by_rule: bool) -> tuple[Source, ReadingOptions]:
    """Cut recordings into windows where `reading` says so, or a few are much longer than the others.

    The rule is that of all sources, see `cut_outliers`; `by_rule` is False where the length of the input is set.
    """
    if reading.window is not None or reading.hop is not None:
        train, _ = cut(source.train, reading, "X")
        return replace(source, train=train), reading
    made, found = cut_outliers(source, reading) if by_rule else (source, reading)
    if found.window is not None:
        how = "predict averages the windows of an example. Pass options={'window': ...} or {'resample_long': True}"
        warn(f"X: {made.notes[-2].partition(';')[0]}, and {how} to decide it", DataWarning)
    return made, found


def _seed(random_state: Any) -> int:
    random = check_random_state(random_state)  # refuses invalid values
    return int(random_state) if isinstance(random_state, Integral) else int(random.randint(2**31 - 1))


def _ignore(line: str) -> None:
    """Print nothing."""


def _fitted_model(value: Any, name: str) -> Any:
    """The model of a fitted estimator; any other value of the parameter unchanged.

    Raises:
        ValueError: for an estimator that is not fitted.
    """
    value = getattr(value, "estimator", value) if name == "weights" else value  # of a FrozenEstimator
    if not isinstance(value, ViTEstimator):
        return value
    if not hasattr(value, "model_"):
        raise ValueError(
            f"{name} is a {type(value).__name__} that is not fitted; if it was, scikit-learn's clone has made an "
            f"unfitted copy of it: pass {name}=other.model_, or the path of a file that other.save wrote"
        )
    return value.model_


def _how_it_reads(model: Model) -> FileOptions:
    """How a model cuts and resamples arrays."""
    stored = file_options(model.provenance, {})
    hop = None if stored.window is None else stored.hop
    return FileOptions(window=stored.window, hop=hop, resample_long=stored.resample_long)


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
