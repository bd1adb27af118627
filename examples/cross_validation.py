"""Cross-validation and search with scikit-learn: ViTClassifier is a classifier like any other.

`python examples/cross_validation.py` scores it on folds of ArrowHead (three kinds of arrow heads by their outline, which
comes with aeon) beside MiniRocket on the very same folds, puts it into a Pipeline, and lets GridSearchCV choose preset and
steps. The search sees training examples only; examples that it never saw say what its choice is worth.
"""

import numpy as np
from aeon.classification.convolution_based import MiniRocketClassifier
from aeon.datasets import load_arrow_head
from aeon.transformations.collection import Normalizer
from cyclopts import run
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline

from ndvit import ViTClassifier


def main(steps: int = 100, folds: int = 3) -> None:
    """Compare classifiers on the same folds, then search.

    Args:
        steps: of each training; the search tries half of them, too.
        folds: parts that the examples are split into.
    """
    X, y = load_arrow_head()  # (211 signals, 1 channel, 251 values)
    same_folds = StratifiedKFold(folds, shuffle=True, random_state=0)
    vit = ViTClassifier("fast", steps=steps, random_state=0)
    rivals = {
        "ViTClassifier": vit,
        "Normalizer, then ViTClassifier": make_pipeline(Normalizer(), vit),
        "MiniRocket": MiniRocketClassifier(random_state=0),
    }
    print(f"ArrowHead, {len(X)} signals, accuracy in {folds} folds")
    for name, rival in rivals.items():
        scores = cross_val_score(rival, X, y, cv=same_folds)
        print(f"{name:32}{np.mean(scores):.1%}  ({', '.join(f'{score:.1%}' for score in scores)})")

    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=1 / 3, stratify=y, random_state=0)
    choices = {"preset": ["fast", "plain"], "steps": [max(1, steps // 2), steps]}
    search = GridSearchCV(vit, choices, cv=same_folds).fit(X_train, y_train)
    print(f"GridSearchCV chose {search.best_params_}, by {search.best_score_:.1%} in its folds")
    print(f"on {len(X_test)} signals that it never saw: {search.score(X_test, y_test):.1%}")


if __name__ == "__main__":
    run(main)
