"""Heartbeats: groups, cross-validation and explanation.

`python examples/heartbeats.py` generates beats of 20 patients and goes the whole way: look at the data, split by
patient, train, cross-validate, and ask the model which part of a beat decided. In some beats the third wave (T) is
flatter than usual; the model must find these. All data are generated, so the truth is known.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np

import ndvit

# %% [markdown]
# ## The data
#
# A beat has three waves: P, a sharp R, and T. Each patient has their own heights and timing, as people do. In half of
# the beats T is flat: this is what the model must find. `patient` is what it must not learn.


# %%
def beat(rng, patient, flat):
    """One beat of a patient, 200 samples."""
    t = np.linspace(0, 1, 200)
    own = np.random.default_rng(patient)  # height and place of the waves of this patient
    heights, places = own.normal([0.25, 1.5, 0.5], [0.05, 0.2, 0.06]), own.normal([0.2, 0.4, 0.72], 0.02)
    waves = zip(heights * [1, 1, 0.35 if flat else 1], places + rng.normal(0, 0.01), [0.04, 0.015, 0.06])
    return sum(h * np.exp(-(((t - p) / w) ** 2)) for h, p, w in waves) + rng.normal(0, 0.1, 200)


rng = np.random.default_rng(0)
patient = np.repeat(np.arange(20), 12)
flat = rng.random(len(patient)) < 0.5
X = np.stack([beat(rng, p, f) for p, f in zip(patient, flat)])[:, None]  # (240, 1, 200)
y = np.where(flat, "flat T", "normal")
print(X.shape, dict(zip(*np.unique(y, return_counts=True))))

# %%
figure, axes = plt.subplots(1, 2, figsize=(7, 2.2), sharey=True, layout="constrained")
for axis, name in zip(axes, ("normal", "flat T")):
    for signal in X[y == name][:6, 0]:
        axis.plot(signal, linewidth=0.8)
    axis.set_title(name)

# %% [markdown]
# ## Training, split by patient
#
# The test set is made of whole patients, so the accuracy is that for people whom the model has never seen. A dict holds
# the groups beside the arrays.

# %%
source = {"X": X, "y": y, "patient": patient}
run = ndvit.train(source, group_by="patient", preset="fast", output="runs/heartbeats", force=True, progress=False)
print(f"accuracy for new patients: {run.evaluation.accuracy:.1%} of {len(run.evaluation)} beats")

# %% tags=remove-cell
assert run.evaluation.accuracy > 0.8

# %% [markdown]
# `runs/heartbeats/report.html` has the confusion matrix, the calibration and the worst mistakes.
#
# ## Cross-validation
#
# One test set of four patients is little. In a cross-validation every patient is in the test set once.

# %%
folds = ndvit.cross_validate(
    source, group_by="patient", preset="fast", folds=5, output="runs/heartbeats-folds", force=True, progress=False
)
print(f"out-of-fold accuracy: {folds.evaluation.accuracy:.1%} of {len(folds.evaluation)} beats")

# %% tags=remove-cell
assert folds.evaluation.accuracy > 0.8

# %% [markdown]
# ## Which part decided?
#
# `explain` returns the relevance of each sample for the answer. Here we know the truth: only the T wave, around sample
# 144, differs between the classes.

# %%
model = ndvit.load_model("runs/heartbeats")
chosen = X[y == "flat T"][:4]
why = model.explain(chosen)
figure, axes = plt.subplots(1, 4, figsize=(7.5, 2), sharey=True, layout="constrained")
for axis, signal, one in zip(axes, chosen[:, 0], why):
    relevance = one.total.clip(min=0)
    axis.plot(signal, color="0.6", linewidth=0.8)
    axis.scatter(range(200), signal, c=relevance, cmap="Reds", s=6, zorder=2)
    axis.set_title(one.label, fontsize=8)

# %%
inside = np.mean([one.total.clip(min=0)[110:178].sum() / one.total.clip(min=0).sum() for one in why])
print(f"{inside:.0%} of the relevance lies in the third of the beat around T; 34% would be chance")

# %% tags=remove-cell
assert inside > 0.34  # more than chance

# %% [markdown]
# Relevance marks what this model used for this answer. It is no evidence about hearts: [What
# decided?](../docs/explain.md) lists the limits.
#
# ## Your own data
#
# Beats in a table, one row each, with the columns `patient` and `diagnosis`:
#
# ```
# ndvit train beats.csv --label diagnosis --group-by patient
# ndvit crossvalidate beats.csv --label diagnosis --group-by patient
# ```
#
# [From your data to a source](../docs/data.md) has the other layouts.
