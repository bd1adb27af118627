"""Cross-validation and search with scikit-learn: ViTClassifier is a classifier like any other.

`python examples/cross_validation.py` tells days of winter from days of summer by 24 hours of Italy's demand for power
(ItalyPowerDemand, which comes with aeon): it scores ViTClassifier, also at the end of a Pipeline, beside MiniRocket on
the very same folds, and then lets GridSearchCV choose preset and steps. The search sees the archive's 67 training
examples only; the 1,029 of the test say what its choice is worth.
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
    """Compare classifiers on the same folds, then search.

    Args:
        steps: of each training; the search tries half of them, too.
        folds: parts that the examples are split into.
    """
    X, y = load_italy_power_demand()  # (1096 days, 1 channel, 24 hours)
    same_folds = StratifiedKFold(folds, shuffle=True, random_state=0)
    vit = ViTClassifier("fast", steps=steps, random_state=0)
    rivals = {
        "ViTClassifier": vit,
        "differences, then ViTClassifier": make_pipeline(FunctionTransformer(np.diff), vit),
        "MiniRocket": MiniRocketClassifier(random_state=0),
    }
    print(f"accuracy in {folds} folds of {len(X):,} days")
    for name, rival in rivals.items():
        scores = cross_val_score(rival, X, y, cv=same_folds)
        print(f"{name:33}{np.mean(scores):.1%}  ({', '.join(f'{score:.1%}' for score in scores)})")

    X_train, y_train = load_italy_power_demand(split="train")
    X_test, y_test = load_italy_power_demand(split="test")
    choices = {"preset": ["fast", "plain"], "steps": [max(1, steps // 2), steps]}
    search = GridSearchCV(vit, choices, cv=same_folds).fit(X_train, y_train)
    print(f"GridSearchCV chose {search.best_params_}: {search.best_score_:.1%} in its folds")
    print(f"and {search.score(X_test, y_test):.1%} of {len(X_test):,} days that it never saw")


if __name__ == "__main__":
    run(main)
