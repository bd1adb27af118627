"""Teachers: their losses by hand, inputs and classes translated, networks and classifiers that teach."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import nn

from ndvit import Classification, Model, Recipe, VisionTransformer, ViTConfig, save_model
from ndvit.data.augment import plan_augmentation
from ndvit.data.examples import Examples
from ndvit.data.loading import Batch, Inputs
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.tasks.classification import ClassificationCriterion
from ndvit.training.distillation import Teacher, _same_threads, make_teacher
from ndvit.training.fit import fit
from ndvit.training.module import TrainingModule, training_loss
from ndvit.training.plan import Request, plan
from smallnetworks import spread
from tinyruns import QUIET, TINY, UNSPLIT

CLASSES = ("ash", "birch", "cedar")
PLAIN = {"mixup": 0.0, "crop": 1.0, "label_smoothing": 0.0}


def model(preprocess, classes=CLASSES, **options):
    """A small model of large weights, whose outputs differ, with the input of its preprocessing."""
    options = {"input_size": preprocess.size, "in_channels": preprocess.channels, "patch_size": 4} | options
    config = ViTConfig(embed_dim=16, depth=1, num_heads=2, num_classes=len(classes), **options)
    return Model(spread(VisionTransformer(config)), Classification(classes), preprocess)


def signals(n=24, length=16, channels=2, classes=3):
    """Noise whose mean depends on the class, on another scale in each channel."""
    targets = np.arange(n) % classes
    noise = np.random.default_rng(0).normal(size=(n, channels, length)) + targets[:, None, None]
    return [(x * [[3.0]] + [[50.0]]).astype(np.float32) for x in noise], targets


def inputs(n=24, **options):
    values, targets = signals(n, **options)
    examples = Examples(values, targets)
    return Inputs(examples, SignalPreprocess.fit(examples))


def whole(examples):
    """All examples as one batch."""
    return examples.__getitems__(range(len(examples)))


def module(student, recipe, teacher, augment=None):
    """The training of a student."""
    return TrainingModule(
        student.network.train(), student.task, recipe, steps=10, log_every=100, teacher=teacher, augment=augment
    )


def run_of(teacher, n=24, classes=3, length=16, **options):
    """The plan of a training on signals."""
    values, targets = signals(n, classes=classes, length=length)
    options = {**{k: v for k, v in TINY.items() if k != "model"}, "patch_size": 4, "device": "cpu", **options}
    source = (values, np.array(CLASSES)[targets])
    return plan(
        Request(source=source, preset="basic", model="vit_pico", teacher=teacher, reading=UNSPLIT, options=options)
    )


# losses


def distance(student, teacher, **options):
    return ClassificationCriterion(Recipe(**options), student.shape[1]).distillation_loss(student, teacher, student)


def test_hard_loss_by_hand():
    student = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    teacher = torch.tensor([[0.1, 0.0], [-5.0, 3.0]])  # the first, then the second class, however confident it is
    found = distance(student, teacher, distillation="hard")
    assert found.item() == pytest.approx((math.log(1 + math.exp(-2)) + math.log(2)) / 2)


def test_soft_loss_by_hand():
    student = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    teacher = torch.tensor([[4.0, 0.0], [0.0, 2.0]])

    def divergence(p, q):
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    def sigmoid(z):
        return 1 / (1 + math.exp(-z))

    expected = 4 * (divergence(sigmoid(2), sigmoid(1)) + divergence(sigmoid(1), 0.5)) / 2
    found = distance(student, teacher, distillation="soft", temperature=2.0)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert distance(teacher, teacher, distillation="soft").item() == pytest.approx(0, abs=1e-6)


def test_soft_loss_is_kullback_leibler():
    student, teacher = torch.randn(2, 9, 5)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p.log() - q.log())).sum(1).mean()
    assert torch.allclose(distance(student, teacher, distillation="soft"), expected, atol=1e-6)
    # at a high temperature its gradient is that of matching logits, whatever the temperature (Hinton et al., 2015)
    student.requires_grad_()
    distance(student, teacher, distillation="soft", temperature=1e3).backward()
    centred = [z.detach() - z.detach().mean(1, keepdim=True) for z in (student, teacher)]
    assert torch.allclose(student.grad, (centred[0] - centred[1]) / 5 / 9, atol=1e-4)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_shares_of_targets_and_teacher(kind):
    first, second, teacher = torch.randn(3, 6, 4)
    targets = torch.rand(6, 4).softmax(1)
    recipe = Recipe(distillation=kind, distillation_weight=0.3, stem_loss=0.2)
    criterion = ClassificationCriterion(recipe, 4)
    label = [F.cross_entropy(z, targets) for z in (first, second)]
    taught = [criterion.distillation_loss(z, teacher, targets) for z in (first, second)]
    # a single head learns from both; a distillation head from the teacher, and the class head from the targets
    plain = training_loss(first, targets, criterion, recipe, teacher=teacher)
    assert torch.allclose(plain, 0.7 * label[0] + 0.3 * taught[0])
    distilled = training_loss((first, second), targets, criterion, recipe, distilled=True, teacher=teacher)
    assert torch.allclose(distilled, 0.7 * label[0] + 0.3 * taught[1])
    # the auxiliary head over the stem learns from the targets alone
    stem = training_loss((first, second), targets, criterion, recipe, teacher=teacher)
    assert torch.allclose(stem, plain + 0.2 * label[1])
    # class weights apply to both
    weighted = ClassificationCriterion(recipe, 4, torch.tensor([1.0, 2.0, 0.5, 0.1]))
    targets = weighted.prepare(torch.arange(6) % 4)
    found = training_loss(first, targets, weighted, recipe, teacher=teacher)
    taught = weighted.distillation_loss(first, teacher, targets)
    assert torch.allclose(found, 0.7 * weighted.loss(first, targets) + 0.3 * taught)


# networks that teach


class Net(nn.Module):
    """Logits by batch norm and a linear layer; keeps its last input."""

    def __init__(self, shape=(2, 16), classes=3):
        super().__init__()
        self.norm = nn.BatchNorm1d(math.prod(shape))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(math.prod(shape), classes)

    def forward(self, x):
        self.seen = x
        return self.head(self.drop(self.norm(x.flatten(1))))


def test_a_module_sees_what_the_student_sees():
    examples, net = inputs(), Net()
    batch = whole(examples)
    teacher = make_teacher(net, model(examples.preprocess), examples, Recipe())
    assert isinstance(teacher, Teacher)
    logits = teacher(batch.x, None)
    assert torch.equal(net.seen, batch.x)
    assert torch.equal(logits, net(batch.x))  # net is in eval mode now: no dropout
    assert not net.training
    assert not logits.requires_grad


def test_a_module_with_a_mask_argument_gets_the_mask():
    examples = inputs()
    network = model(examples.preprocess).network  # without its task and preprocessing, a module like any other
    teacher = make_teacher(network, model(examples.preprocess), examples, Recipe())
    x, mask = torch.randn(5, 2, 16), torch.rand(5, 16) > 0.5
    assert torch.equal(teacher(x, mask), network(x, mask))
    assert not torch.allclose(teacher(x, mask), network(x), atol=1e-3)


def test_training_leaves_a_teacher_unchanged(tmp_path):
    net = Net()
    before = copy.deepcopy(net.state_dict())
    student = fit(run_of(net, steps=3, batch_size=8, ema_decay=0.9), tmp_path, **QUIET).model
    assert net.norm.num_batches_tracked == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    checkpoint = torch.load(next((tmp_path / "checkpoints").glob("step=*.ckpt")), weights_only=True)
    names = [name for name in checkpoint["state_dict"] if "." in name]  # of modules
    assert set(names) == {f"model.{name}" for name in student.network.state_dict()}
    teacher = make_teacher(net, student, inputs(), Recipe())
    made = module(student, Recipe(), teacher)
    assert len(list(made.parameters())) == len(list(student.network.parameters()))
    assert copy.deepcopy(made).teacher is teacher


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("distilled", [False, True])
def test_a_step_with_a_teacher_by_hand(kind, distilled):
    examples, net = inputs(), Net()
    student = model(examples.preprocess, distilled=distilled)
    recipe = Recipe(distillation=kind, distillation_weight=0.4, temperature=2.0, **PLAIN)
    made = module(student, recipe, make_teacher(net, student, examples, recipe))
    batch = whole(examples)
    loss = made.training_step(Batch(batch.x, None, batch.targets), 0)
    first, second = student.network(batch.x) if distilled else (student.network(batch.x),) * 2
    expected = 0.6 * F.cross_entropy(first, batch.targets)
    logits = net(batch.x)
    if kind == "hard":
        expected += 0.4 * F.cross_entropy(second, logits.argmax(1))
    else:
        expected += 0.4 * 4 * F.kl_div((second / 2).log_softmax(1), (logits / 2).softmax(1), reduction="batchmean")
    assert torch.allclose(loss, expected, atol=1e-5)


def test_the_teacher_sees_the_augmented_batch():
    examples, net = inputs(), Net()
    student = model(examples.preprocess)
    recipe = Recipe(mixup=0.5, mix_prob=1.0, warp=0.7, noise=0.1)
    augment = plan_augmentation(examples.preprocess, recipe).per_batch
    made = module(student, recipe, make_teacher(net, student, examples, recipe), augment)
    batch = whole(examples)
    seen = []
    student.network.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    first = made.training_step(batch, 3)
    assert torch.equal(net.seen, seen[0])
    assert not torch.allclose(net.seen, batch.x, atol=0.1)
    assert torch.equal(made.training_step(batch, 3), first)  # all of it follows from (seed, step)
    assert not torch.equal(made.training_step(batch, 4), first)


@pytest.mark.parametrize("distilled", [False, True])
def test_a_student_comes_to_agree_with_its_teacher(distilled):
    net = Net()
    nn.init.normal_(net.head.weight, std=0.5)
    options = {"steps": 80, "batch_size": 32, "learning_rate": 5e-3, "embed_dim": 32, **PLAIN}
    planned = run_of(net, 32, distillation="soft", distillation_weight=1.0, distilled=distilled, **options)
    batch = whole(planned.inputs()[0])
    answers = net.eval()(batch.x).argmax(1)
    assert (answers == batch.targets).float().mean() < 0.7  # the targets would teach something else
    pair = fit(planned, **QUIET).model.network.train()(batch.x)
    assert ((pair[1] if distilled else pair).argmax(1) == answers).float().mean() == 1


# models with a preprocessing and classes of their own


def raw_outputs(model, values):
    """Outputs for raw examples that the model's own preprocessing prepares."""
    pairs = [model.preprocess.masked(value) for value in values]
    full = torch.ones(model.preprocess.size, dtype=torch.bool)
    mask = torch.stack([full if m is None else m for _, m in pairs])
    with torch.no_grad():
        return model(torch.stack([x for x, _ in pairs]), mask)


def teach(other, student, values):
    """The teacher made of a model, and the examples as one batch of the student."""
    examples = Inputs(Examples(values, np.arange(len(values)) % 3), student.preprocess)
    return make_teacher(other, student, examples, Recipe()), whole(examples)


def test_another_standardisation_is_translated():
    values, _ = signals()
    values = [v + np.float32([[1e4], [0]]) for v in values]  # of float32's seven digits, a mean of 10,000 costs five
    student = model(SignalPreprocess((16,), (1e4, 50.0), (3.0, 3.0)))
    other = model(SignalPreprocess((16,), (1e4 - 2, 40.0), (1.0, 7.0)))
    teacher, batch = teach(other, student, values)
    assert torch.allclose(teacher(batch.x, None), raw_outputs(other, values), atol=1e-2)
    assert torch.equal(teacher(batch.x, None).argmax(1), raw_outputs(other, values).argmax(1))
    plain = model(SignalPreprocess((16,), (1e4, 50.0), (1.0, 1.0)))
    exact, _ = teach(plain, student, values)
    assert torch.allclose(exact(batch.x, None), raw_outputs(plain, values), atol=1e-3)


@pytest.mark.parametrize(("size", "patch"), [((16,), 4), ((6, 8), 2)])
def test_a_teacher_answers_as_for_the_raw_data(size, patch):
    values = [np.random.default_rng(i).normal(5, 2, (2, *size)).astype(np.float32) for i in range(9)]
    for i, value in enumerate(values[:4]):
        value[..., len(value.T) - 2 * i :] = np.nan  # its end was not observed
        value[0, ..., :1] = np.nan  # and here the other channel was
    student = model(SignalPreprocess(size, (5.0, 4.0), (2.0, 3.0)), patch_size=patch)
    other = model(SignalPreprocess(size, (4.0, 6.0), (1.5, 2.0)), patch_size=patch)
    teacher, batch = teach(other, student, values)
    assert batch.mask is not None
    assert torch.allclose(teacher(batch.x, batch.mask), raw_outputs(other, values), atol=1e-4)
    assert not torch.allclose(teacher(batch.x, None), raw_outputs(other, values), atol=1e-3)


def test_classes_are_matched_by_name():
    values, _ = signals()
    preprocess = SignalPreprocess((16,), (50.0, 50.0), (3.0, 3.0))
    student = model(preprocess)
    other = model(preprocess, classes=("dogwood", "cedar", "ash", "birch"))  # it may know more
    teacher, batch = teach(other, student, values)
    assert torch.equal(teacher(batch.x, None), other.network(batch.x)[:, [2, 3, 1]])
    other = model(preprocess, classes=("ash", "birch", "elm"))
    with pytest.raises(ValueError, match="teacher Model does not know the classes cedar; it knows ash, birch, elm"):
        teach(other, student, values)


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([2.0, 1.0], ("1", "2"), [1, 0]),
        (np.array([0, 1]), ("0", "1"), [0, 1]),
        (["1", "01"], ("01", "1"), [1, 0]),  # by name first
        (["nan", "x"], ("x", "nan"), [1, 0]),
        (np.array([False, True]), ("False", "True"), [0, 1]),
    ],
)
def test_numbers_are_matched_by_value(labels, classes, expected):
    assert Classification(classes).match_outputs(labels, "t") == expected
    with pytest.raises(ValueError, match=r"t does not know the classes 3; it knows 1.0, 2.0: rename them"):
        Classification(("1", "3")).match_outputs([1.0, 2.0], "t")


class Estimator:
    """A fitted classifier with a `model_`, as `ViTClassifier` is one."""

    def __init__(self, model):
        self.model_ = model


def test_an_earlier_run_and_a_fitted_estimator_teach(tmp_path):
    values, _ = signals()
    student = model(SignalPreprocess((16,), (50.0, 50.0), (3.0, 3.0)))
    other = model(SignalPreprocess((16,), (40.0, 60.0), (1.0, 2.0)), classes=("cedar", "birch", "ash"))
    save_model(other, tmp_path / "model.safetensors")
    for source in (tmp_path / "model.safetensors", Estimator(other)):
        teacher, batch = teach(source, student, values)
        assert torch.allclose(teacher(batch.x, None), raw_outputs(other, values).flip(1), atol=1e-4)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        teach(str(tmp_path / "nowhere"), student, values)


@pytest.mark.parametrize("length", [12, 20])
@pytest.mark.parametrize("dims", [1, 2])
def test_padding_is_made_or_taken_away(length, dims):
    # examples of at most 11: the student pads them to 16, the teacher would to 12 or 20
    rng = np.random.default_rng(0)
    values = [rng.normal(5, 2, (2, *[int(n)] * dims)).astype(np.float32) for n in rng.integers(5, 12, 8)]
    student = model(SignalPreprocess((16,) * dims, (5.0, 4.0), (2.0, 3.0)))
    other = model(SignalPreprocess((length,) * dims, (4.0, 6.0), (1.5, 2.0)))
    teacher, batch = teach(other, student, values)
    assert torch.allclose(teacher(batch.x, batch.mask), raw_outputs(other, values), atol=1e-4)


@pytest.mark.parametrize(("size", "resize", "short"), [(12, "pad", 9), (12, "resample", 16), (24, "resample", 16)])
def test_examples_of_another_length_than_the_teachers_input_are_resampled(size, resize, short):
    values = [
        np.random.default_rng(i).normal(size=(2, n)).astype(np.float32) for i, n in enumerate((16, 16, short, 16))
    ]
    student = model(SignalPreprocess((16,), (0.0, 0.0), (1.0, 1.0), resize=resize))
    other = model(SignalPreprocess((size,), (0.0, 0.0), (1.0, 1.0), resize=resize))
    teacher, batch = teach(other, student, values)
    assert torch.allclose(teacher(batch.x, batch.mask), raw_outputs(other, values), atol=1e-4)


def picture(seed, size=16, mode="RGB"):
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((size, size))
    return smooth.convert(mode)


def picture_model(size, mode, mean, std):
    count = len(mode) if mode == "RGB" else 1
    return model(ImagePreprocess((size, size), (mean,) * count, (std,) * count, mode))


@pytest.mark.parametrize("modes", ["RGB RGB", "L RGB", "RGB L", "L L"])
def test_pictures_of_another_mode(modes):
    first, second = modes.split()
    pictures = [picture(i, mode=first) for i in range(6)]
    student, other = picture_model(16, first, 0.4, 0.3), picture_model(16, second, 0.5, 0.2)
    teacher, batch = teach(other, student, pictures)
    expected = other(torch.stack([other.preprocess(p) for p in pictures]))
    # PIL rounds grey to 256 levels
    assert torch.allclose(teacher(batch.x, None), expected, atol=0.05 if modes == "RGB L" else 1e-4)


def test_pictures_of_another_size():
    pictures = [picture(i, 24) for i in range(6)]
    student, other = picture_model(24, "RGB", 0.4, 0.3), picture_model(16, "RGB", 0.5, 0.2)
    teacher, batch = teach(other, student, pictures)
    seen = []
    other.network.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    teacher(batch.x, None)
    expected = torch.stack([other.preprocess(p) for p in pictures])
    assert seen[0].shape == expected.shape
    assert (seen[0] - expected).abs().max() < 0.05  # PIL's bicubic filter, which rounds to 256 levels: .004 / .2


# what cannot teach


def damaged():
    net = Net()
    nn.init.constant_(net.head.bias, float("nan"))
    return net


def untrained():
    fresh = model(inputs().preprocess)
    fresh.untrained = ("head.weight", "head.bias")
    return fresh


def at(rate):
    return model(SignalPreprocess((16,), (0.0, 0.0), (1.0, 1.0), sample_rate=rate))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (lambda: Net(classes=4), r"teacher Net must return logits of shape \(4, 3\) for 4 examples; got .*32 \(4, 4\)"),
        (lambda: Net(shape=(2, 9)), r"teacher Net fails on a batch of shape \(4, 2, 16\): "),
        (damaged, "teacher Net returns NaN or infinite logits"),
        (nn.Identity, r"logits of shape \(4, 3\) for 4 examples; got torch.float32 \(4, 2, 16\)"),
        (lambda: 3, "teacher int cannot teach: use a torch module, a run .* one of minirocket, multirocket"),
        (
            untrained,
            r"has 2 newly initialised tensors \(head.weight, ...\), so it has nothing to teach: train it first",
        ),
        (lambda: model(SignalPreprocess((16,), (0.0,), (1.0,))), "takes 1 channels, the student 2"),
        (
            lambda: model(SignalPreprocess((8, 8), (0.0, 0.0), (1.0, 1.0))),
            "takes signals of 2 axes, the student signals of 1 axis",
        ),
        (lambda: picture_model(16, "RGB", 0.5, 0.2), "takes images of 2 axes, the student signals of 1 axis"),
    ],
)
def test_teachers_that_cannot_teach_give_the_reason(teacher, message):
    examples = inputs()
    with pytest.raises(ValueError, match=message):
        make_teacher(teacher(), model(examples.preprocess), examples, Recipe())


def test_teachers_of_other_recordings_give_the_reason():
    with pytest.raises(ValueError, match="takes signals of 1 axis at 100 Hz, the student signals of 1 axis at 200 Hz"):
        make_teacher(at(100.0), at(200.0), inputs(), Recipe())
    with pytest.raises(ValueError, match="teacher minirocket takes signals of one axis; the student's examples have 2"):
        make_teacher("minirocket", picture_model(16, "L", 0.5, 0.2), inputs(), Recipe())


# classifiers


@pytest.mark.slow  # numba compiles each of them for half a minute
@pytest.mark.parametrize("name", ["minirocket", "multirocket", "multirocket-hydra"])
def test_rockets_teach(name):
    examples = inputs(n=30, length=32)
    student = model(examples.preprocess)
    teacher = make_teacher(name, student, examples, Recipe(seed=4))
    batch = whole(examples)
    x = batch.x + 0.5 * torch.randn(batch.x.shape)
    logits = teacher(x, batch.mask)
    assert logits.shape == (30, 3)
    assert logits.dtype == torch.float32
    # the decisions are the classifier's predictions, and the logits are finer than its probabilities of 0 and 1
    assert [CLASSES[i] for i in logits.argmax(1)] == teacher.classifier.predict(x.numpy()).tolist()
    assert set(np.unique(teacher.classifier.predict_proba(x.numpy())).tolist()) == {0.0, 1.0}
    between = logits.softmax(1)
    assert ((between > 0.01) & (between < 0.99)).any(1).float().mean() > 0.5
    assert (teacher(batch.x, None).argmax(1) == batch.targets).float().mean() == 1
    again = make_teacher(name, student, examples, Recipe(seed=4))  # as a resumed run makes it
    assert torch.equal(again(x, None), logits)
    if name == "minirocket":
        assert not torch.equal(make_teacher(name, student, examples, Recipe(seed=5))(x, None), logits)


@pytest.mark.slow
def test_a_minirocket_teaches_a_student(tmp_path):
    trained = fit(run_of("minirocket", n=30, length=32, steps=3, batch_size=8), tmp_path, **QUIET)
    assert trained.fit.steps == 3
    assert all(math.isfinite(row["train_loss"]) for row in trained.fit.history)


def flat(*steps):
    return make_pipeline(FunctionTransformer(lambda x: x.reshape(len(x), -1)), *steps)


def test_ridge_scores_are_twice_a_probability():
    examples = inputs(n=30)
    values, targets = whole(examples).x.numpy(), whole(examples).targets.numpy()
    fitted = flat(RidgeClassifier(alpha=30.0)).fit(values, np.array(CLASSES)[targets])
    teacher = make_teacher(fitted, model(examples.preprocess), examples, Recipe())
    chance = (1 + fitted.decision_function(values)) / 2
    assert chance.sum(1) == pytest.approx(1)  # a property of least squares
    assert teacher(torch.from_numpy(values), None).exp().numpy() == pytest.approx(chance.clip(1e-3), rel=1e-4)


def test_two_classes_have_one_score():
    examples = inputs(n=30, classes=2)
    student = model(examples.preprocess, classes=("no", "yes"))
    batch = whole(examples)
    for classifier in (RidgeClassifier(), LogisticRegression()):
        teacher = make_teacher(flat(classifier), student, examples, Recipe())
        logits = teacher(batch.x, None)
        assert logits.shape == (30, 2)
        assert torch.equal(logits.argmax(1), batch.targets)
    # a logistic regression's scores are its logits, which stand half each to either side
    chance = teacher.classifier.predict_proba(batch.x.numpy())
    assert (2 * logits).softmax(1).numpy()[:, 1] == pytest.approx(1 / (1 + np.exp(-2 * 2 * logits[:, 1].numpy())))
    assert 1 / (1 + np.exp(-logits[:, 1].numpy())) == pytest.approx(chance[:, 1], rel=1e-4)


def test_probabilities_become_logits():
    examples = inputs(n=30)
    forest = flat(RandomForestClassifier(20, max_depth=2))
    teacher = make_teacher(forest, model(examples.preprocess), examples, Recipe(seed=3))
    assert not hasattr(forest[-1], "classes_")  # a copy was fitted
    assert teacher.classifier[-1].random_state == 3
    batch = whole(examples)
    chance = teacher.classifier.predict_proba(batch.x.numpy())
    assert teacher.classifier.classes_.tolist() == list(CLASSES)
    assert teacher(batch.x, None).softmax(1).numpy() == pytest.approx(chance, abs=5e-3)
    kept = flat(RandomForestClassifier(5, random_state=8))
    assert make_teacher(kept, model(examples.preprocess), examples, Recipe()).classifier[-1].random_state == 8


def test_a_fitted_classifier_keeps_its_labels():
    examples = inputs(n=30)
    batch = whole(examples)
    fitted = flat(LogisticRegression()).fit(batch.x.numpy(), 2.0 - batch.targets.numpy())  # 2.0, 1.0 and 0.0
    student = model(examples.preprocess, classes=("2", "1", "0"))
    teacher = make_teacher(fitted, student, examples, Recipe())
    assert teacher.classifier is fitted
    assert torch.equal(teacher(batch.x, None).argmax(1), batch.targets)
    with pytest.raises(ValueError, match=r"teacher Pipeline does not know the classes ash, .*; it knows 0.0, 1.0, 2.0"):
        make_teacher(fitted, model(examples.preprocess), examples, Recipe())


@pytest.mark.parametrize(
    ("teacher", "length", "message"),
    [
        (LogisticRegression(), 16, r"teacher LogisticRegression cannot be fitted to arrays of shape \(24, 2, 16"),
        ("minirocket", 8, r"teacher minirocket cannot be fitted to arrays of shape \(24, 2, 8\): .*9"),
    ],
)
def test_classifiers_that_take_other_shapes_give_the_reason(teacher, length, message):
    examples = inputs(length=length)
    with pytest.raises(ValueError, match=message):
        make_teacher(teacher, model(examples.preprocess), examples, Recipe())


def test_classifiers_teach_pictures():
    pictures = [picture(i, mode="L") for i in range(9)]
    teacher, batch = teach(flat(LogisticRegression()), picture_model(16, "L", 0.4, 0.3), pictures)
    assert torch.equal(teacher(batch.x, None).argmax(1), batch.targets)


def test_a_rocket_leaves_torch_its_threads(monkeypatch):
    set_to: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with _same_threads():
        pass
    assert set_to == [7]
