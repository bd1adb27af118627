"""A folder of photos, with trained weights.

`python examples/photos.py` makes a folder of pictures, pretrains a small network on one task, and fine-tunes its
weights on another with few pictures. With a connection to the hub, replace the file of weights by a published name,
such as `deit_tiny_patch16_224.fb_in1k`.
"""

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

import ndvit

# %% [markdown]
# ## The pictures
#
# One folder for each class is all that `ndvit train` needs. The pictures are drawn: a shape of any colour, at any
# place, on a textured ground.


# %%
def photo(rng, shape, size=32):
    """A picture of a shape."""
    ground = Image.fromarray(rng.integers(60, 190, (size, size, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(2))
    x, y = rng.integers(2, 13, 2)
    box = [int(x), int(y), int(x) + 16, int(y) + 16]
    colour = tuple(int(c) for c in rng.integers(0, 255, 3))
    draw = ImageDraw.Draw(ground)
    if shape == "disc":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    elif shape == "ring":
        draw.ellipse(box, outline=colour, width=4)
    elif shape == "frame":
        draw.rectangle(box, outline=colour, width=4)
    else:  # triangle
        draw.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) // 2, box[1])], fill=colour)
    return ground


def write_folder(folder, shapes, count, seed):
    """Write `count` pictures of each shape."""
    rng = np.random.default_rng(seed)
    for shape in shapes:
        Path(folder, shape).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            photo(rng, shape).save(Path(folder, shape, f"{i:03}.png"))


write_folder("many", ["disc", "square", "triangle"], 100, seed=0)  # the task of the weights
write_folder("photos", ["ring", "frame"], 20, seed=1)  # your task, with few pictures
write_folder("new", ["ring", "frame"], 100, seed=2)
figure, axes = plt.subplots(1, 6, figsize=(7.5, 1.4), layout="constrained")
for axis, path in zip(axes, [*sorted(Path("many").rglob("000.png")), *sorted(Path("photos").rglob("00[01].png"))]):
    axis.imshow(Image.open(path))
    axis.set_title(path.parent.name, fontsize=8)
    axis.axis("off")

# %% [markdown]
# ## Weights
#
# Normally these come from the hub: `ndvit weights deit tiny` lists some. This page is built without a network, so we
# make our own.

# %%
usual = {"force": True, "progress": False, "seed": 0}
first = ndvit.train("many", input_size=(32, 32), steps=100, output="runs/many", **usual)
print(f"first task: {first.evaluation.accuracy:.1%}")

# %% [markdown]
# ## Fine-tuning
#
# `weights=` takes a file, a run folder or a published name. The new head starts untrained; the load report lists it.

# %%
tuned = ndvit.train("photos", weights="runs/many", steps=30, output="runs/tuned", **usual)
scratch = ndvit.train("photos", input_size=(32, 32), steps=30, output="runs/scratch", **usual)
for name, run in {"from the weights": tuned, "from scratch": scratch}.items():
    print(f"{name:17} {run.model.evaluate('new').accuracy:.1%} of 200 new pictures")

# %% [markdown]
# Or freeze the network and solve only a linear head, in one pass over the pictures:

# %%
probe = ndvit.train("photos", weights="runs/many", preset="linear_probe", output="runs/probe", **usual)
print(f"linear probe      {probe.model.evaluate('new').accuracy:.1%}")

# %% tags=remove-cell
assert tuned.model.evaluate("new").accuracy > 0.6

# %% [markdown]
# Your own folder, with published weights:
#
# ```
# ndvit train photos/ --weights deit_tiny_patch16_224.fb_in1k
# ```
#
# See [Images](../docs/images.md) and [Published weights](../docs/weights.md).
