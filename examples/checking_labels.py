"""Checking labels: find wrong ones, correct them, and train again.

`python examples/checking_labels.py` flips a tenth of the labels of a real data set (days of Italy's demand for electric
power, winter or summer), finds most of them by `ndvit check --labels`, and trains with the file that the check writes.
It needs `pip install 'ndvit[check]'`.
"""

# %%
import csv

import numpy as np
from aeon.datasets import load_italy_power_demand

import ndvit

# %% [markdown]
# ## Labels with errors
#
# 200 days of 24 hours, of which 20 get the other label. The test set keeps its labels, so that the accuracy at the end
# is that for the truth.

# %%
X, y = load_italy_power_demand()
order = np.random.default_rng(0).permutation(len(X))
train, test = order[:200], order[200:400]
season = np.where(y == "1", "winter", "summer")
written = season[train].copy()
wrong = np.random.default_rng(1).choice(len(train), 20, replace=False)
written[wrong] = np.where(written[wrong] == "winter", "summer", "winter")
source = (X[train], written, X[test], season[test])

# %% [markdown]
# ## The check
#
# Each example is answered by models that were trained without it, in a cross-validation. An example whose label these
# models find improbable is suspected. `check.html` in the folder draws each suspect beside the most similar examples.
# On the command line: `ndvit check days.npz --labels --output runs/days-check`.

# %%
found = ndvit.check(
    source, labels=True, folds=3, output="runs/days-check", force=True, progress=False, log=lambda line: None
)
with open("runs/days-check/suspects.csv", encoding="utf-8", newline="") as file:
    suspects = [row for row in csv.DictReader(file) if row["split"] == "train"]
flipped = {f"X_train[{i}]" for i in wrong}
hits = [row for row in suspects if row["name"] in flipped]
print(f"{len(suspects)} suspects among {len(train)} training examples, {len(hits)} of the {len(flipped)} flipped ones")
for row in suspects[:3]:
    print({name: row[name] for name in ("name", "label", "suggested", "score")})

# %% tags=remove-cell
assert len(hits) >= 12, len(hits)
assert len(hits) >= 0.5 * len(suspects), (len(hits), len(suspects))

# %% [markdown]
# ## Correcting
#
# Look at the suspects on the page, and edit `suspects.csv`: write the right label, empty it to leave an example out, or
# delete the row if the label is right. Here nobody looks: every suggestion is accepted for the training set, and the
# test set is left alone.

# %%
with open("runs/days-labels.csv", "w", encoding="utf-8", newline="") as file:
    table = csv.writer(file)
    table.writerow(["name", "label"])
    table.writerows([row["name"], row["suggested"]] for row in suspects)

quiet = {"preset": "fast", "force": True, "progress": False, "log": lambda line: None}
before = ndvit.train(source, output="runs/days-before", **quiet)
after = ndvit.train(source, label_file="runs/days-labels.csv", output="runs/days-after", **quiet)
for name, run in (("with errors", before), ("corrected by the check", after)):
    print(f"{name:24} {run.evaluation.accuracy:.1%} of {len(run.evaluation)} test days")

# %% tags=remove-cell
assert after.evaluation.accuracy >= before.evaluation.accuracy - 0.02

# %% [markdown]
# `--drop-suspected` instead of accepting suggestions trains without the examples whose label in the file is still that
# of the source. On the command line: `ndvit train days.npz --label-file suspects.csv --drop-suspected`.
#
# A suspect is an example that models find improbable: it can be rare or difficult instead of wrong. How many of the
# suspects are errors, measured on more sets, and when it fails: [Check](../docs/check.md).
