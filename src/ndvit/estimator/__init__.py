"""scikit-learn's interface: `ViTClassifier` and `ViTRegressor`, on the same plan and fit as a run."""

from ndvit.estimator.classifier import ViTClassifier
from ndvit.estimator.regressor import ViTRegressor

__all__ = ["ViTClassifier", "ViTRegressor"]
