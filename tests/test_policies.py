"""Training pictures: the same picture for the same seed, in the network's size and colours, and otherwise another."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from ndvit.config.recipe import Recipe
from ndvit.data.augment import batches, plan_augmentation
from ndvit.data.augment.pictures import Variation
from ndvit.data.examples import Examples
from ndvit.data.loading import Inputs
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess

COLOUR = ImagePreprocess((24, 32), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
GREY = ImagePreprocess((24, 32), (0.5,), (0.2,), "L")
CHANGES = {
    "crop": {"crop": 0.3},
    "flip": {"flip": 1.0},
    "randaugment": {"policy": "randaugment", "magnitude": 5},
    "trivialaugment": {"policy": "trivialaugment"},
    "3-augment": {"policy": "3-augment"},
    "jitter": {"jitter": 0.4},
}


def picture(width=60, height=50) -> Image.Image:
    ramp = np.linspace(0, 255, width * height).reshape(height, width)
    return Image.fromarray(np.stack([ramp, ramp.T.reshape(height, width), 255 - ramp], 2).astype(np.uint8))


@pytest.mark.parametrize("preprocess", [COLOUR, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_seed_gives_one_picture_and_another_seed_another(preprocess, changes):
    vary = Variation(preprocess, **changes)
    before = torch.get_rng_state()
    made = [vary(picture(), seed) for seed in range(12)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(x.shape == (preprocess.channels, 24, 32) and x.dtype == torch.float32 for x in made)
    again = pickle.loads(pickle.dumps(vary))
    assert all(torch.equal(again(picture(), seed), x) for seed, x in enumerate(made))
    assert not all(torch.equal(x, preprocess(picture())) for x in made)
    if "flip" not in changes:
        assert len({x.numpy().tobytes() for x in made}) > 2
    low, high = ((torch.tensor([v]) - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std) for v in (0, 1))
    for x in made:  # the results are valid pictures
        assert (x.flatten(1).amin(1) >= low - 1e-4).all()
        assert (x.flatten(1).amax(1) <= high + 1e-4).all()


def test_without_any_change_it_is_the_preprocessing():
    assert torch.equal(Variation(COLOUR)(picture(), 3), COLOUR(picture()))


def test_a_flip_is_a_mirror():
    assert torch.equal(Variation(COLOUR, flip=1.0)(picture(), 3), COLOUR(picture()).flip(2))


def test_some_pictures_are_not_cropped():
    vary = Variation(COLOUR, crop=0.2, crop_prob=0.4)
    whole = sum(torch.equal(vary(picture(), seed), COLOUR(picture())) for seed in range(200))
    assert 90 < whole < 150


def test_crops_keep_at_least_that_share_of_the_area():
    ramp = Image.fromarray(np.tile(np.arange(0, 256, dtype=np.uint8), (256, 1)))
    plain = ImagePreprocess((256, 256), (0.0,), (1.0,), "L", interpolation="bilinear")
    across = [(x.max() - x.min()).item() for x in (Variation(plain, crop=0.25)(ramp, seed) for seed in range(200))]
    # a share of the width: the root of area and aspect, sqrt(.25 x 3/4) to 1
    assert 0.42 < min(across) < 0.6
    assert max(across) > 0.97


def test_inputs_vary_in_the_stream_alone():
    examples = Examples([picture(50 + i) for i in range(6)], [0, 1, 0, 1, 0, 1])
    inputs = Inputs(examples, COLOUR, Variation(COLOUR, crop=0.3, policy="randaugment"))
    assert torch.equal(inputs[2].x[0], COLOUR(examples[2]))
    one, two = (list(inputs.stream(4, 3, seed=1, start=0, workers=w)) for w in (0, 2))
    assert all(torch.equal(a.x, b.x) and torch.equal(a.targets, b.targets) for a, b in zip(one, two, strict=True))
    assert all(torch.equal(a.x, b.x) for a, b in zip(inputs.stream(4, 3, seed=1, start=1, workers=0), one[1:]))
    assert one[0].mask is None
    plain = list(Inputs(examples, COLOUR).stream(4, 3, seed=1, start=0, workers=0))
    assert torch.equal(plain[0].targets, one[0].targets)
    assert not torch.equal(plain[0].x, one[0].x)


SIGNAL = SignalPreprocess((16,), (0.0, 0.0), (1.0, 1.0))


def test_pictures_are_cropped_and_mirrored_once():
    plan = plan_augmentation(COLOUR, Recipe(crop=0.4, crop_prob=0.9, flip=0.5, policy="randaugment", magnitude=3))
    assert plan.per_example == Variation(COLOUR, crop=0.4, crop_prob=0.9, flip=0.5, policy="randaugment", magnitude=3)
    assert (plan.per_batch.crop, plan.per_batch.flip) == (1.0, 0.0)
    plan = plan_augmentation(SIGNAL, Recipe(crop=0.4, flip=0.5))
    assert plan.per_example is None
    assert (plan.per_batch.crop, plan.per_batch.flip) == (0.4, 0.5)


def test_a_batch_is_augmented_in_a_fixed_order():
    x, mask, targets = torch.randn(8, 2, 16), torch.ones(8, 16, dtype=torch.bool), torch.eye(8)
    recipe = Recipe(
        crop=0.5, warp=0.3, crop_prob=0.7, flip=0.5, scale=0.1, channel_drop=0.2, noise=0.1, erase=0.3, mixup=0.2,
        cutmix=1.0, mix_prob=1.0,
    )  # fmt: skip
    torch.manual_seed(1)
    made = plan_augmentation(SIGNAL, recipe).per_batch(x, mask, targets)
    torch.manual_seed(1)
    a, m = batches.random_crop_resize(x, mask, 0.5, 0.3, 0.7)
    a, m = batches.random_flip(a, m, 0.5)
    a = batches.random_scale(a, 0.1)
    a = batches.channel_drop(a, 0.2)
    a = batches.random_noise(a, 0.1)
    a = batches.random_erase(a, 0.3)
    torch.rand(())
    mix, alpha = [(batches.mixup, 0.2), (batches.cutmix, 1.0)][int(torch.randint(2, ()))]
    assert all(torch.equal(one, two) for one, two in zip(made, mix(a, m, targets, alpha), strict=True))
    off = Recipe(crop=1.0, mixup=0.0)
    assert plan_augmentation(SIGNAL, off).per_batch(x, None, targets) == (x, None, targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jitter": 0.1}, "^jitter: .* leave it out"),
        ({"policy": "3-augment", "jitter": 1}, "^jitter and policy: .*them"),
    ],
)
def test_policies_are_for_pictures(options, message):
    with pytest.raises(ValueError, match=message):
        plan_augmentation(SIGNAL, Recipe(**options))


@pytest.mark.parametrize("resize", ["pad", "squash"])
def test_crops_have_the_aspect_of_the_picture_where_nothing_else_is_cut(resize, monkeypatch):
    preprocess = ImagePreprocess((24, 24), (0.5,), (0.2,), "L", resize=resize)
    parts = []
    whole = Image.Image.crop
    monkeypatch.setattr(Image.Image, "crop", lambda self, box: parts.append(box) or whole(self, box))
    image = Image.fromarray(np.tile(np.linspace(1, 255, 100).astype(np.uint8)[:, None], (1, 400)))
    made = [Variation(preprocess, crop=0.5)(image, seed) for seed in range(20)]
    assert all(x.shape == (1, 24, 24) for x in made)
    first = [right - left for left, _, right, bottom in parts if bottom > 24]  # widths of the random parts
    assert max(first) > 340
    padded = [int((x == 0).all(2).sum()) for x in made]  # rows of the mean
    assert (min(padded) > 12) == (resize == "pad")


def test_unused_channels_stay_at_their_mean():
    signal = SignalPreprocess((16,), (0.0,) * 3, (1.0,) * 3, unused_channels=(1,))
    recipe = Recipe(noise=0.5, erase=1.0, channel_drop=0.9, mixup=0.0)
    x = torch.randn(64, 3, 16)
    x[:, 1] = 0
    made, *_ = plan_augmentation(signal, recipe).per_batch(x, None, torch.eye(64))
    assert (made[:, 1] == 0).all()
    assert (made[:, [0, 2]] != 0).any(-1).any(-1).all()
