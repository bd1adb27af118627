"""Cross-validation and hyperparameter search with scikit-learn.

`python examples/cross_validation.py` classifies days as winter or summer by 24 hours of Italy's demand for electric
power (ItalyPowerDemand, included in aeon). It compares ViTClassifier, a pipeline that ends with it, and MiniRocket on
the same folds of the 67 training examples, and lets GridSearchCV choose the preset and the number of steps. A fold has
only 22 examples, so all classifiers are then scored on the 1,029 test examples, which no choice depends on.
"""

import numpy as np
from aeon.classification.convolution_based import MiniRocketClassifier
from aeon.datasets import load_italy_power_demand
from cyclopts import run
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from ndvit import ViTClassifier


def main(steps: int = 100, folds: int = 3) -> None:
    """Compare classifiers on the same folds, and search for hyperparameters.

    Args:
        steps: optimizer steps of the plain Vision Transformer, of which the search also tries half.
        folds: number of folds of the cross-validation.
    """
    X, y = load_italy_power_demand(split="train")  # (67 days, 1 channel, 24 hours)
    X_test, y_test = load_italy_power_demand(split="test")
    same_folds = StratifiedKFold(folds, shuffle=True, random_state=0)
    vit = ViTClassifier("fast", random_state=0)
    tried = [{"preset": ["fast"]}, {"preset": ["basic"], "steps": [max(1, steps // 2), steps]}]
    search = GridSearchCV(vit, tried, cv=same_folds)
    rivals = {
        "ViTClassifier": vit,
        "differences, then ViTClassifier": make_pipeline(FunctionTransformer(np.diff), vit),
        "MiniRocket": MiniRocketClassifier(random_state=0),
    }
    search.fit(X, y)
    chosen = ", ".join(f"{name}={value}" for name, value in search.best_params_.items())

    print(f"{'':34} {folds} folds   test")
    print(f"{'GridSearchCV: ' + chosen:35}{search.best_score_:7.1%}  {search.score(X_test, y_test):.1%}")
    for name, rival in rivals.items():
        scores = cross_val_score(rival, X, y, cv=same_folds)
        print(f"{name:35}{np.mean(scores):7.1%}  {rival.fit(X, y).score(X_test, y_test):.1%}")


if __name__ == "__main__":
    run(main)
