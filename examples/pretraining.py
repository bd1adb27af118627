"""Pretraining on unlabelled signals.

`python examples/pretraining.py` pretrains an encoder on 600 signals without labels, and then classifies with 24
labelled ones: from scratch, and with the frozen encoder.
"""

# %%
import numpy as np

import ndvit

# %% [markdown]
# ## The data
#
# `ndvit.data.synthetic` draws random signals and classification tasks of them. Many signals have no labels; few have.


# %%
def shapes(rng, count):
    """Signals with one of four patterns at a random place."""
    t = np.linspace(0, 1, 40)
    patterns = [
        np.sin(6 * np.pi * t),
        np.sign(np.sin(6 * np.pi * t)),
        2 * t - 1,
        np.exp(-8 * t) * np.sin(12 * np.pi * t),
    ]
    kinds = np.arange(count) % 4
    X = 0.3 * rng.normal(size=(count, 1, 128))
    for signal, kind in zip(X[:, 0], kinds):
        at = rng.integers(88)
        signal[at : at + 40] += patterns[kind] * rng.uniform(0.8, 1.5)
    return X.astype("float32"), np.array(["sine", "square", "ramp", "ringing"])[kinds]


rng = np.random.default_rng(0)
unlabelled, _ = shapes(rng, 600)
X, y = shapes(rng, 24)
X_test, y_test = shapes(rng, 400)

# %% [markdown]
# ## Pretraining
#
# Two random crops of each signal must be recognised as the same signal among all others of the batch (contrastive
# learning). No label is used.

# %%
usual = {"force": True, "progress": False, "seed": 0}
run = ndvit.pretrain(unlabelled, objective="contrastive", steps=80, batch_size=64, output="runs/encoder", **usual)
print("written:", sorted(path.name for path in run.folder.iterdir()))

# %% [markdown]
# ## Few labels
#
# 24 labelled signals for training, 400 for testing. A solved head on the frozen encoder takes seconds.

# %%
few = (X, y, X_test, y_test)
probe = ndvit.train(few, weights="runs/encoder", preset="linear_probe", output="runs/probe", **usual)
print(f"frozen encoder and solved head: {probe.evaluation.accuracy:.1%}")

# %%
network = {"model": "signal_small", "rocket_features": 0, "encoder": False, "val_fraction": 0.0}
scratch = ndvit.train(few, steps=80, output="runs/scratch", **network, **usual)
print(f"the same network from scratch:  {scratch.evaluation.accuracy:.1%}")

# %%
closed = ndvit.train(few, preset="fast", output="runs/closed", **usual)
print(f"closed form, no pretraining:    {closed.evaluation.accuracy:.1%}")

# %% [markdown]
# Always compare with the last line: the closed form needs no pretraining on your data.
# [Pretraining](../docs/pretraining.md) describes objectives, probes and the report.
