"""Many devices: the same training in one process and in two.

`python examples/many_devices.py` trains a small network on GunPoint twice, in one process and in two that share each
batch, and compares the weights. On a machine without GPUs the processes compute on its cores and exchange gradients by
gloo; with GPUs each has one, by NCCL. The commands are the same.
"""

# %%
import subprocess
import sys
import time

import numpy as np
from aeon.datasets import load_gunpoint

import ndvit

# %% [markdown]
# ## Two trainings
#
# `--devices 2` starts two processes of the same command. `--batch-size` is that of one device, so two devices with 8
# examples each make the steps of one device with 16.

# %%
RECIPE = {"preset": "basic", "model": "vit_pico", "steps": 10, "learning-rate": 1e-3}


def train(devices: int, batch_size: int, output: str) -> float:
    """Run `ndvit train` as a shell would, and return its seconds."""
    flags = RECIPE | {"devices": devices, "batch-size": batch_size, "output": output}
    began = time.perf_counter()
    command = [sys.executable, "-m", "ndvit.cli", "train", "gunpoint", "--no-progress", "--force"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    print(f"{devices} device{'s' * (devices > 1)}:", done.stdout.strip().splitlines()[-2])
    return time.perf_counter() - began


seconds = [train(1, 16, "runs/one-device"), train(2, 8, "runs/two-devices")]

# %% [markdown]
# ## The same network
#
# There is one order of the examples, which follows from the seed, and each process takes an equal part of each step.
# What is random about an example belongs to the example and not to the process. So weights and answers agree up to the
# rounding of sums in another order, which Adam amplifies where a gradient is nearly zero:

# %%
X_test, _ = load_gunpoint(split="test")
one, two = (ndvit.load_model(f"runs/{name}") for name in ("one-device", "two-devices"))
pairs = list(zip(one.network.parameters(), two.network.parameters(), strict=True))
weights = max(float((a - b).detach().abs().max()) for a, b in pairs)
answers = float(np.abs(one.predict_proba(X_test) - two.predict_proba(X_test)).max())
print(f"{len(pairs)} tensors: weights differ by at most {weights:.1e}, probabilities by at most {answers:.1e}")
print("seconds:", *(f"{s:.0f}" for s in seconds), "(mostly the start of the processes: the network is tiny)")

# %% tags=remove-cell
assert weights < 2e-3, weights  # ten steps of 1e-3 can move a weight by 1e-2
assert answers < 5e-3, answers

# %% [markdown]
# ## On real machines
#
# ```
# ndvit train photos/ --devices auto --output runs/photos       # all GPUs of this machine
# ndvit train --resume runs/photos --devices 4                  # continue on another number
# sbatch examples/scale/one_node.slurm photos/ runs/photos      # one node of four GPUs by SLURM
# ```
#
# Two processes on the two cores of a laptop are not faster than one, because one process uses both cores already. What
# is gained on GPUs, what is the same on any number of them, and what happens if one dies: see
# [Several devices](../docs/scale.md).
