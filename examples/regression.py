"""Numbers instead of classes: regression with intervals.

`python examples/regression.py` generates pressure curves of pumps and learns their wear, a number from 0 to 1, with
an interval for each answer.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np

import ndvit

# %% [markdown]
# ## The data
#
# A worn pump pulsates more, and at a higher frequency. 300 curves of 128 samples; the target is the wear.

# %%
rng = np.random.default_rng(0)
wear = rng.uniform(0, 1, 300)
t = np.linspace(0, 1, 128)
X = np.stack([(0.5 + w) * np.sin(2 * np.pi * (6 + 6 * w) * t + rng.uniform(0, 6)) for w in wear])
X = (X + 0.4 * rng.normal(size=X.shape))[:, None]  # (300, 1, 128)
figure, axes = plt.subplots(1, 3, figsize=(7.5, 1.8), sharey=True, layout="constrained")
for axis, at in zip(axes, np.argsort(wear)[[10, 150, 290]]):
    axis.plot(X[at, 0], linewidth=0.8)
    axis.set_title(f"wear {wear[at]:.2f}", fontsize=8)

# %% [markdown]
# ## Training

# %%
run = ndvit.train((X, wear), task="regression", preset="fast", output="runs/pumps", force=True, progress=False)
for name, value in run.evaluation.numbers().items():
    print(f"{name:30} {value:.3f}")

# %% [markdown]
# ## Answers with intervals

# %%
answers = run.model.predict(X[:3])
for answer, true in zip(answers, wear):
    print(answer.text(), f"  true: {true:.2f}")

# %% tags=remove-cell
assert run.evaluation.score > 0.6

# %% [markdown]
# On the command line: `--task regression`. The report draws predicted against true values. See [Numbers and several
# labels](../docs/targets.md).
