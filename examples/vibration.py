"""Vibration: long recordings, cut into windows.

`python examples/vibration.py` generates recordings of machines with sound and faulty bearings, cuts them into
windows, and answers for whole recordings. A last recording becomes faulty in the middle, and the track over time
shows when.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np

import ndvit

# %% [markdown]
# ## The data
#
# Each machine turns at its own speed. A faulty bearing clicks several times in a turn, and each click rings. There are
# 24 machines with one recording of four seconds each, 2,000 samples a second.

# %%
RATE = 2000


def recording(rng, faulty, seconds=4.0, since=0.0):
    """A recording of one machine, in arbitrary units of acceleration; faulty from the second `since` on."""
    t = np.arange(int(seconds * RATE)) / RATE
    speed = rng.uniform(20, 30)  # turns a second
    signal = np.sin(2 * np.pi * speed * t) + 0.7 * rng.normal(size=len(t))
    if faulty:
        ring = np.exp(-np.arange(60) / 12) * np.sin(2 * np.pi * 450 * np.arange(60) / RATE)
        for start in np.arange(since, seconds - 0.05, 1 / (3.6 * speed)):
            at = int(start * RATE)
            signal[at : at + 60] += 1.3 * ring[: len(signal) - at]
    return signal


rng = np.random.default_rng(0)
faulty = np.arange(24) % 2 == 1
X = np.stack([recording(rng, f) for f in faulty])[:, None].astype("float32")  # (24, 1, 8000)
y = np.where(faulty, "faulty", "sound")
figure, axes = plt.subplots(2, 1, figsize=(7, 2.4), sharex=True, layout="constrained")
for axis, signal, label in zip(axes, X[:2, 0], y):
    axis.plot(np.arange(600) / RATE, signal[:600], linewidth=0.8)
    axis.set_ylabel(label)
axes[1].set_xlabel("seconds")

# %% [markdown]
# ## Windows
#
# `window=512` makes about thirty examples of each recording, and `hop="50%"` lets them overlap. All windows of a
# recording are on one side of the split: otherwise the accuracy would be that of machines which the model knows.

# %%
run = ndvit.train(
    (X, y),
    window=512,
    hop="50%",
    preset="fast",
    test_fraction=0.34,
    output="runs/vibration",
    force=True,
    progress=False,
)
print(f"per recording {run.evaluation.accuracy:.1%}, per window {run.evaluation.windows.accuracy:.1%}")

# %% tags=remove-cell
assert run.evaluation.accuracy > 0.8

# %% [markdown]
# The answer of a recording is the mean of the answers of its windows.
#
# ## When did it begin?
#
# A new machine runs for six seconds and becomes faulty after three. `per_window=True` returns the answer of each
# window.

# %%
new = recording(rng, True, seconds=6, since=3.0)[None, None].astype("float32")
track = run.model.predict(new, per_window=True)
at = [window.start / RATE for window in track]
faults = [window.probabilities["faulty"] for window in track]
figure, axis = plt.subplots(figsize=(7, 2), layout="constrained")
axis.plot(at, faults)
axis.axvline(3, color="0.6", linestyle="--")
axis.set_xlabel("seconds")
axis.set_ylabel("probability of a fault")

# %% tags=remove-cell
assert np.mean([p for t, p in zip(at, faults) if t > 3]) > np.mean([p for t, p in zip(at, faults) if t < 2.5]) + 0.3

# %% [markdown]
# ## Your own data
#
# A folder for each class with WAV files, or `.npy` arrays (which have no sample rate):
#
# ```
# ndvit train bearings/ --window 0.25s --hop 50% --group-by 'path:{machine}_*' --output runs/bearings
# ndvit predict runs/bearings new.wav --per-window
# ```
#
# If a machine has several recordings, `--group-by` keeps them together. See [Long recordings](../docs/windows.md).
