"""From a model to a file for any language: ONNX.

`python examples/exporting.py` trains a small classifier, exports it, and runs the file with ONNX Runtime alone,
without ndvit and torch.
"""

# %%
import json

import numpy as np
import onnxruntime
from aeon.datasets import load_gunpoint

import ndvit

# %% [markdown]
# ## A model

# %%
X, y = load_gunpoint(split="train")
run = ndvit.train(
    (X, y), model="vit_pico", steps=150, test_fraction=0.2, output="runs/gunpoint", force=True, progress=False
)
print(f"accuracy {run.evaluation.accuracy:.1%} of {len(run.evaluation)}")

# %% [markdown]
# ## Export
#
# With `preprocess="inside"` the graph takes raw samples, and with `softmax=True` it returns probabilities. The file is
# run and compared with the model before it is kept.

# %%
report = run.model.export("gunpoint.onnx", softmax=True, preprocess="inside", mask=False)
print(report)

# %% [markdown]
# ## Use it without ndvit

# %%
session = onnxruntime.InferenceSession("gunpoint.onnx", providers=["CPUExecutionProvider"])
print([(i.name, i.shape, i.type) for i in session.get_inputs()])
batch = X[:2].astype(np.float32)
(answers,) = session.run(None, {session.get_inputs()[0].name: batch})
print(answers)
print(run.model.predict_proba(X[:2]))

# %% tags=remove-cell
np.testing.assert_allclose(answers, run.model.predict_proba(X[:2]), atol=1e-3)

# %% [markdown]
# Everything else that a program needs is in the file, as one JSON: classes, preprocessing, temperature.

# %%
facts = json.loads(session.get_modelmeta().custom_metadata_map["ndvit"])
print(list(facts))

# %% [markdown]
# On the command line: `ndvit export runs/gunpoint --softmax --preprocess inside`. [Deployment](../docs/deployment.md)
# has OpenVINO, 8-bit integers and the fastest way on a machine.
