"""Teachers and what is learned from them: losses by hand, inputs and classes translated, networks, classifiers."""

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

from ndvit import Recipe, VisionTransformer, ViTConfig, save_model
from ndvit.data.examples import Examples
from ndvit.data.loading import Batch, Inputs
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.training.distillation import Teacher, _columns, _same_threads, distillation_loss, make_teacher
from ndvit.training.fit import fit
from ndvit.training.module import SupervisedTask, supervised_loss
from smallnetworks import spread

CLASSES = ("ash", "birch", "cedar")
PLAIN = {"mixup": 0.0, "crop": 1.0, "label_smoothing": 0.0}


def network(preprocess=None, classes=CLASSES, **options):
    """A small network whose answers differ; for signals of two channels, or whatever the preprocessing gives."""
    if preprocess is not None:
        options = {"input_size": preprocess.size, "in_channels": preprocess.channels} | options
    made = {"input_size": (16,), "in_channels": 2, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = spread(VisionTransformer(ViTConfig(**made | options, num_classes=len(classes))))
    model.classes, model.preprocess = classes, preprocess
    return model.eval()


def signals(n=24, length=16, channels=2, classes=3):
    """Noise whose mean tells the class, on another scale in each channel."""
    labels = np.arange(n) % classes
    noise = np.random.default_rng(0).normal(size=(n, channels, length)) + labels[:, None, None]
    return [(x * [[3.0]] + [[50.0]]).astype(np.float32) for x in noise], labels


def inputs(n=24, **options):
    values, labels = signals(n, **options)
    examples = Examples(values, labels=labels)
    return Inputs(examples, SignalPreprocess.fit(examples))


def everything(given):
    return given.__getitems__(range(len(given)))


# losses


def test_hard_loss_by_hand():
    student = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    teacher = torch.tensor([[0.1, 0.0], [-5.0, 3.0]])  # its first, then its second class, however sure it is
    found = distillation_loss(student, teacher, Recipe(distillation="hard"))
    assert found.item() == pytest.approx((math.log(1 + math.exp(-2)) + math.log(2)) / 2)


def test_soft_loss_by_hand():
    student = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    teacher = torch.tensor([[4.0, 0.0], [0.0, 2.0]])
    temperature = 2.0

    def divergence(p, q):
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    def sigmoid(z):
        return 1 / (1 + math.exp(-z))

    expected = 4 * (divergence(sigmoid(2), sigmoid(1)) + divergence(sigmoid(1), 0.5)) / 2
    found = distillation_loss(student, teacher, Recipe(distillation="soft", temperature=temperature))
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert distillation_loss(teacher, teacher, Recipe(distillation="soft")).item() == pytest.approx(0, abs=1e-6)


def test_soft_loss_is_kullback_leibler():
    student, teacher = torch.randn(2, 9, 5)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p.log() - q.log())).sum(1).mean()
    assert torch.allclose(distillation_loss(student, teacher, Recipe(distillation="soft")), expected, atol=1e-6)
    # at a high temperature its gradient is that of matching logits, whatever the temperature (Hinton et al., 2015)
    student.requires_grad_()
    distillation_loss(student, teacher, Recipe(distillation="soft", temperature=1e3)).backward()
    centred = [z.detach() - z.detach().mean(1, keepdim=True) for z in (student, teacher)]
    assert torch.allclose(student.grad, (centred[0] - centred[1]) / 5 / 9, atol=1e-4)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_how_labels_and_teacher_share(kind):
    first, second, teacher = torch.randn(3, 6, 4)
    targets = torch.rand(6, 4).softmax(1)
    recipe = Recipe(distillation=kind, distillation_weight=0.3, stem_loss=0.2)
    label = [F.cross_entropy(z, targets) for z in (first, second)]
    taught = [distillation_loss(z, teacher, recipe) for z in (first, second)]
    # one head learns both; a distillation head learns from the teacher, the class head from labels
    plain = supervised_loss(first, targets, recipe, teacher=teacher)
    assert torch.allclose(plain, 0.7 * label[0] + 0.3 * taught[0])
    distilled = supervised_loss((first, second), targets, recipe, distilled=True, teacher=teacher)
    assert torch.allclose(distilled, 0.7 * label[0] + 0.3 * taught[1])
    # the stem's head learns from labels alone
    stem = supervised_loss((first, second), targets, recipe, teacher=teacher)
    assert torch.allclose(stem, plain + 0.2 * label[1])
    # classes weigh in what is learned from labels
    weight = torch.tensor([1.0, 2.0, 0.5, 0.1])
    weighted = supervised_loss(first, targets, recipe, class_weight=weight, teacher=teacher)
    expected = -(weight * targets * first.log_softmax(1)).sum(1).mean()
    assert torch.allclose(weighted, 0.7 * expected + 0.3 * taught[0])


# networks that teach


class Net(nn.Module):
    """Logits by batch norm and a linear layer; notes what it was given."""

    def __init__(self, shape=(2, 16), classes=3):
        super().__init__()
        self.norm = nn.BatchNorm1d(math.prod(shape))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(math.prod(shape), classes)

    def forward(self, x):
        self.seen = x
        return self.head(self.drop(self.norm(x.flatten(1))))


def test_a_module_sees_what_the_student_sees():
    given, net = inputs(), Net()
    batch = everything(given)
    teacher = make_teacher(net, network(given.preprocess), given, Recipe())
    assert isinstance(teacher, Teacher)
    logits = teacher(batch.x, None)
    assert torch.equal(net.seen, batch.x)
    assert torch.equal(logits, net(batch.x))  # net is in eval mode now: no dropout
    assert not net.training
    assert not logits.requires_grad


def test_a_module_with_a_mask_argument_gets_the_mask():
    given, model = inputs(), network()  # without classes' preprocess it is a module as any other
    teacher = make_teacher(model, network(inputs().preprocess), given, Recipe())
    x, mask = torch.randn(5, 2, 16), torch.rand(5, 16) > 0.5
    assert torch.equal(teacher(x, mask), model(x, mask))
    assert not torch.allclose(teacher(x, mask), model(x), atol=1e-3)


def test_a_teacher_is_left_as_it_is(tmp_path):
    given, net = inputs(), Net()
    student = network(given.preprocess)
    teacher = make_teacher(net, student, given, Recipe())
    before = copy.deepcopy(net.state_dict())
    recipe = Recipe(steps=3, batch_size=8, ema_decay=0.9, device="cpu")
    fit(student, given, None, recipe, tmp_path, progress=False, teacher=teacher)
    assert net.norm.num_batches_tracked == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    checkpoint = torch.load(next((tmp_path / "checkpoints").glob("step=*.ckpt")), weights_only=True)
    names = [name for name in checkpoint["state_dict"] if "." in name]  # of modules
    assert set(names) == {f"model.{name}" for name in student.state_dict()}
    task = SupervisedTask(student, recipe, 3, 1, teacher=teacher)
    assert len(list(task.parameters())) == len(list(student.parameters()))
    assert copy.deepcopy(task).teacher is teacher


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("distilled", [False, True])
def test_a_step_with_a_teacher_by_hand(kind, distilled):
    given, net = inputs(), Net()
    student = network(given.preprocess, distilled=distilled).train()
    teacher = make_teacher(net, student, given, Recipe())
    recipe = Recipe(distillation=kind, distillation_weight=0.4, temperature=2.0, **PLAIN)
    task = SupervisedTask(student, recipe, steps=10, log_every=100, teacher=teacher)
    batch = everything(given)
    loss = task.training_step(Batch(batch.x, None, batch.labels), 0)
    first, second = student(batch.x) if distilled else (student(batch.x),) * 2
    expected = 0.6 * F.cross_entropy(first, batch.labels)
    said = net(batch.x)
    if kind == "hard":
        expected += 0.4 * F.cross_entropy(second, said.argmax(1))
    else:
        expected += 0.4 * 4 * F.kl_div((second / 2).log_softmax(1), (said / 2).softmax(1), reduction="batchmean")
    assert torch.allclose(loss, expected, atol=1e-5)


def test_the_teacher_sees_the_augmented_batch():
    given, net = inputs(), Net()
    student = network(given.preprocess).train()
    teacher = make_teacher(net, student, given, Recipe())
    recipe = Recipe(mixup=0.5, mix_prob=1.0, warp=0.7, noise=0.1)
    task = SupervisedTask(student, recipe, steps=10, log_every=100, teacher=teacher)
    batch = everything(given)
    seen = []
    student.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    first = task.training_step(batch, 3)
    assert torch.equal(net.seen, seen[0])
    assert not torch.allclose(net.seen, batch.x, atol=0.1)
    assert torch.equal(task.training_step(batch, 3), first)  # all of it follows from (seed, step)
    assert not torch.equal(task.training_step(batch, 4), first)


@pytest.mark.parametrize("distilled", [False, True])
def test_a_student_comes_to_agree_with_its_teacher(tmp_path, distilled):
    given, net = inputs(n=32), Net()
    nn.init.normal_(net.head.weight, std=0.5)
    batch = everything(given)
    student = VisionTransformer(
        ViTConfig(
            input_size=(16,),
            in_channels=2,
            patch_size=4,
            embed_dim=32,
            depth=2,
            num_heads=2,
            num_classes=3,
            distilled=distilled,
            weight_init="balanced",
        )
    )
    student.classes, student.preprocess = CLASSES, given.preprocess
    teacher = make_teacher(net, student, given, Recipe())
    said = teacher(batch.x, None).argmax(1)
    assert (said == batch.labels).float().mean() < 0.7  # what it learns is not what the labels say
    weight = {"distillation": "soft", "distillation_weight": 1.0}
    recipe = Recipe(steps=150, batch_size=32, learning_rate=3e-3, device="cpu", **weight, **PLAIN)
    fit(student, given, None, recipe, tmp_path, progress=False, teacher=teacher)
    pair = student.train()(batch.x)
    assert ((pair[1] if distilled else pair).argmax(1) == said).float().mean() == 1


# networks with a preprocessing and classes of their own


def raw_answers(model, values):
    """What a network says of raw examples that its own preprocessing prepares."""
    pairs = [model.preprocess.masked(value) for value in values]
    full = torch.ones(model.preprocess.size, dtype=torch.bool)
    mask = torch.stack([full if m is None else m for _, m in pairs])
    with torch.no_grad():
        return model(torch.stack([x for x, _ in pairs]), mask)


def student_sees(student, values):
    made = Inputs(Examples(values, labels=np.arange(len(values)) % 3), student.preprocess)
    return made, everything(made)


def test_another_standardisation_is_translated():
    values, _ = signals()
    values = [v + np.float32([[1e4], [0]]) for v in values]  # of float32's seven digits, a mean of 10,000 costs five
    student = network(SignalPreprocess((16,), (1e4, 50.0), (3.0, 3.0)))
    other = network(SignalPreprocess((16,), (1e4 - 2, 40.0), (1.0, 7.0)))
    given, batch = student_sees(student, values)
    teacher = make_teacher(other, student, given, Recipe())
    assert torch.allclose(teacher(batch.x, None), raw_answers(other, values), atol=1e-2)
    assert torch.equal(teacher(batch.x, None).argmax(1), raw_answers(other, values).argmax(1))
    plain = network(SignalPreprocess((16,), (1e4, 50.0), (1.0, 1.0)))
    exact = make_teacher(plain, student, given, Recipe())
    assert torch.allclose(exact(batch.x, None), raw_answers(plain, values), atol=1e-3)


@pytest.mark.parametrize(("size", "patch"), [((16,), 4), ((6, 8), 2)])
def test_a_teacher_says_what_it_would_of_the_raw_data(size, patch):
    values = [np.random.default_rng(i).normal(5, 2, (2, *size)).astype(np.float32) for i in range(9)]
    for i, value in enumerate(values[:4]):
        value[..., len(value.T) - 2 * i :] = np.nan  # its end was not observed
        value[0, ..., :1] = np.nan  # and here the other channel was
    student = network(SignalPreprocess(size, (5.0, 4.0), (2.0, 3.0)), patch_size=patch)
    other = network(SignalPreprocess(size, (4.0, 6.0), (1.5, 2.0)), patch_size=patch)
    given, batch = student_sees(student, values)
    teacher = make_teacher(other, student, given, Recipe())
    assert batch.mask is not None
    assert torch.allclose(teacher(batch.x, batch.mask), raw_answers(other, values), atol=1e-4)
    assert not torch.allclose(teacher(batch.x, None), raw_answers(other, values), atol=1e-3)


def test_classes_meet_by_name():
    values, _ = signals()
    preprocess = SignalPreprocess((16,), (50.0, 50.0), (3.0, 3.0))
    student = network(preprocess)
    other = network(preprocess, classes=("dogwood", "cedar", "ash", "birch"))  # it may know more
    given, batch = student_sees(student, values)
    teacher = make_teacher(other, student, given, Recipe())
    assert torch.equal(teacher(batch.x, None), other(batch.x)[:, [2, 3, 1]])
    other = network(preprocess, classes=("ash", "birch", "elm"))
    with pytest.raises(ValueError, match="teacher VisionTransformer does not know the classes cedar; it knows ash, bi"):
        make_teacher(other, student, given, Recipe())


def test_numbers_meet_by_value():
    assert _columns([2.0, 1.0], ("1", "2"), "t") == [1, 0]
    assert _columns(np.array([0, 1]), ("0", "1"), "t") == [0, 1]
    assert _columns(["1", "01"], ("01", "1"), "t") == [1, 0]  # by name first
    assert _columns(["nan", "x"], ("x", "nan"), "t") == [1, 0]
    assert _columns(np.array([False, True]), ("False", "True"), "t") == [0, 1]
    with pytest.raises(ValueError, match=r"t does not know the classes 3; it knows 1.0, 2.0: rename them"):
        _columns([1.0, 2.0], ("1", "3"), "t")


def test_an_earlier_run_teaches(tmp_path):
    values, _ = signals()
    student = network(SignalPreprocess((16,), (50.0, 50.0), (3.0, 3.0)))
    other = network(SignalPreprocess((16,), (40.0, 60.0), (1.0, 2.0)), classes=("cedar", "birch", "ash"))
    save_model(other, tmp_path / "model.safetensors")
    given, batch = student_sees(student, values)
    teacher = make_teacher(tmp_path / "model.safetensors", student, given, Recipe())
    assert torch.allclose(teacher(batch.x, None), raw_answers(other, values).flip(1), atol=1e-4)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make_teacher(str(tmp_path / "nowhere"), student, given, Recipe())


class Estimator:
    """As our scikit-learn face: what it was trained on is its network's business."""

    def __init__(self, model):
        self.model_ = model


def test_a_fitted_estimator_of_ours_is_its_network():
    values, _ = signals()
    student = network(SignalPreprocess((16,), (50.0, 50.0), (3.0, 3.0)))
    other = network(SignalPreprocess((16,), (40.0, 60.0), (1.0, 2.0)))
    given, batch = student_sees(student, values)
    teacher = make_teacher(Estimator(other), student, given, Recipe())
    assert torch.allclose(teacher(batch.x, None), raw_answers(other, values), atol=1e-4)


@pytest.mark.parametrize("length", [12, 20])
@pytest.mark.parametrize("dims", [1, 2])
def test_padding_is_made_or_taken_away(length, dims):
    # examples of at most 11: the student pads them to 16, the teacher would to 12 or 20
    rng = np.random.default_rng(0)
    values = [rng.normal(5, 2, (2, *[int(n)] * dims)).astype(np.float32) for n in rng.integers(5, 12, 8)]
    student = network(SignalPreprocess((16,) * dims, (5.0, 4.0), (2.0, 3.0)))
    other = network(SignalPreprocess((length,) * dims, (4.0, 6.0), (1.5, 2.0)))
    given, batch = student_sees(student, values)
    teacher = make_teacher(other, student, given, Recipe())
    assert torch.allclose(teacher(batch.x, batch.mask), raw_answers(other, values), atol=1e-4)


def test_what_is_longer_than_the_teachers_input_is_resampled():
    values = [np.random.default_rng(i).normal(size=(2, n)).astype(np.float32) for i, n in enumerate((16, 16, 9, 16))]
    student = network(SignalPreprocess((16,), (0.0, 0.0), (1.0, 1.0)))
    other = network(SignalPreprocess((12,), (0.0, 0.0), (1.0, 1.0)))
    given, batch = student_sees(student, values)
    teacher = make_teacher(other, student, given, Recipe())
    assert torch.allclose(teacher(batch.x, batch.mask), raw_answers(other, values), atol=1e-4)
    whole = [v for v in values if v.shape[1] == 16]
    for size in (12, 24):  # stretched by both
        student = network(SignalPreprocess((16,), (0.0, 0.0), (1.0, 1.0), resize="resample"))
        other = network(SignalPreprocess((size,), (0.0, 0.0), (1.0, 1.0), resize="resample"))
        given, batch = student_sees(student, whole)
        teacher = make_teacher(other, student, given, Recipe())
        assert torch.allclose(teacher(batch.x, None), raw_answers(other, whole), atol=1e-4)


def picture(seed, size=16, mode="RGB"):
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((size, size))
    return smooth.convert(mode)


def picture_network(size, mode, mean, std):
    count = len(mode) if mode == "RGB" else 1
    return network(ImagePreprocess((size, size), (mean,) * count, (std,) * count, mode), patch_size=4)


@pytest.mark.parametrize("modes", ["RGB RGB", "L RGB", "RGB L", "L L"])
def test_pictures_of_another_mode(modes):
    first, second = modes.split()
    pictures = [picture(i, mode=first) for i in range(6)]
    student, other = picture_network(16, first, 0.4, 0.3), picture_network(16, second, 0.5, 0.2)
    made = Inputs(Examples(pictures, labels=np.arange(6) % 3), student.preprocess)
    teacher = make_teacher(other, student, made, Recipe())
    expected = other(torch.stack([other.preprocess(p) for p in pictures]))
    # PIL rounds grey to 256 levels
    assert torch.allclose(teacher(everything(made).x, None), expected, atol=0.05 if modes == "RGB L" else 1e-4)


def test_pictures_of_another_size():
    pictures = [picture(i, 24) for i in range(6)]
    student, other = picture_network(24, "RGB", 0.4, 0.3), picture_network(16, "RGB", 0.5, 0.2)
    made = Inputs(Examples(pictures, labels=np.arange(6) % 3), student.preprocess)
    teacher = make_teacher(other, student, made, Recipe())
    seen = []
    other.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    teacher(everything(made).x, None)
    expected = torch.stack([other.preprocess(p) for p in pictures])
    assert seen[0].shape == expected.shape
    assert (seen[0] - expected).abs().max() < 0.05  # PIL's bicubic filter, which rounds to 256 levels: .004 / .2


# what cannot teach


def test_teachers_that_cannot_teach_say_why():
    given = inputs()
    student = network(given.preprocess)

    def refused(teacher, message, of=student):
        with pytest.raises(ValueError, match=message):
            make_teacher(teacher, of, given, Recipe())

    refused(Net(classes=4), r"teacher Net must answer 4 examples with logits of shape \(4, 3\); got .*32 \(4, 4\)")
    refused(Net(shape=(2, 9)), r"teacher Net fails on a batch of shape \(4, 2, 16\): ")
    broken = Net()
    nn.init.constant_(broken.head.bias, float("nan"))
    refused(broken, "teacher Net answers with logits that are NaN or infinite")
    refused(nn.Identity(), r"logits of shape \(4, 3\); got torch.float32 \(4, 2, 16\)")
    refused(3, "teacher int cannot teach: give a torch module, a run .* one of minirocket, multirocket")
    fresh = network(given.preprocess)
    fresh.untrained = ("head.weight", "head.bias")
    refused(fresh, r"has 2 newly initialised tensors \(head.weight, ...\), so it has nothing to teach: train it first")
    refused(network(SignalPreprocess((16,), (0.0,), (1.0,))), "reads 1 channels, the student 2")
    refused(network(SignalPreprocess((8, 8), (0.0, 0.0), (1.0, 1.0))), "reads signals of 2 axes, the student signals o")
    refused(picture_network(16, "RGB", 0.5, 0.2), "reads images of 2 axes, the student signals of 1 axis")
    hears = [network(SignalPreprocess((16,), (0.0, 0.0), (1.0, 1.0), sample_rate=r)) for r in (100.0, 200.0)]
    refused(hears[0], "hears signals of 1 axis at 100 Hz, the student signals of 1 axis at 200 Hz", hears[1])
    refused(hears[0], "has a preprocessing and the student none", network())
    flat = picture_network(16, "L", 0.5, 0.2)
    refused("minirocket", "teacher minirocket reads signals, of one axis; the student's examples have 2", flat)


# classifiers


@pytest.mark.parametrize("name", ["minirocket", "multirocket", "multirocket-hydra"])
def test_rockets_teach(name):
    given = inputs(n=30, length=32)
    student = network(given.preprocess)
    teacher = make_teacher(name, student, given, Recipe(seed=4))
    batch = everything(given)
    x = batch.x + 0.5 * torch.randn(batch.x.shape)
    logits = teacher(x, batch.mask)
    assert logits.shape == (30, 3)
    assert logits.dtype == torch.float32
    # what it decides is what the classifier predicts, and how surely is more than its probabilities of 0 and 1
    assert [CLASSES[i] for i in logits.argmax(1)] == teacher.classifier.predict(x.numpy()).tolist()
    assert set(np.unique(teacher.classifier.predict_proba(x.numpy())).tolist()) == {0.0, 1.0}
    between = logits.softmax(1)
    assert ((between > 0.01) & (between < 0.99)).any(1).float().mean() > 0.5
    assert (teacher(batch.x, None).argmax(1) == batch.labels).float().mean() == 1
    again = make_teacher(name, student, given, Recipe(seed=4))  # as a resumed run makes it
    assert torch.equal(again(x, None), logits)
    assert not torch.equal(make_teacher(name, student, given, Recipe(seed=5))(x, None), logits)


def test_a_minirocket_teaches_a_student(tmp_path):
    given = inputs(n=30, length=32)
    student = network(given.preprocess)
    teacher = make_teacher("minirocket", student, given, Recipe())
    recipe = Recipe(steps=3, batch_size=8, device="cpu")
    result = fit(student, given, None, recipe, tmp_path, progress=False, teacher=teacher)
    assert result.steps == 3
    assert all(math.isfinite(row["train_loss"]) for row in result.history)


def flat(*steps):
    return make_pipeline(FunctionTransformer(lambda x: x.reshape(len(x), -1)), *steps)


def test_ridge_scores_are_twice_a_probability():
    given = inputs(n=30)
    values, labels = everything(given).x.numpy(), everything(given).labels.numpy()
    fitted = flat(RidgeClassifier(alpha=30.0)).fit(values, np.array(CLASSES)[labels])
    teacher = make_teacher(fitted, network(given.preprocess), given, Recipe())
    chance = (1 + fitted.decision_function(values)) / 2
    assert chance.sum(1) == pytest.approx(1)  # as least squares has it
    assert teacher(torch.from_numpy(values), None).exp().numpy() == pytest.approx(chance.clip(1e-3), rel=1e-4)


def test_two_classes_have_one_score():
    given = inputs(n=30, classes=2)
    student = network(given.preprocess, classes=("no", "yes"))
    batch = everything(given)
    for classifier in (RidgeClassifier(), LogisticRegression()):
        teacher = make_teacher(flat(classifier), student, given, Recipe())
        logits = teacher(batch.x, None)
        assert logits.shape == (30, 2)
        assert torch.equal(logits.argmax(1), batch.labels)
    # a logistic regression's scores are its logits, which stand half each to either side
    said = teacher.classifier.predict_proba(batch.x.numpy())
    assert (2 * logits).softmax(1).numpy()[:, 1] == pytest.approx(1 / (1 + np.exp(-2 * 2 * logits[:, 1].numpy())))
    assert 1 / (1 + np.exp(-logits[:, 1].numpy())) == pytest.approx(said[:, 1], rel=1e-4)


def test_probabilities_become_logits():
    given = inputs(n=30)
    forest = flat(RandomForestClassifier(20, max_depth=2))
    teacher = make_teacher(forest, network(given.preprocess), given, Recipe(seed=3))
    assert not hasattr(forest[-1], "classes_")  # a copy was fitted
    assert teacher.classifier[-1].random_state == 3
    batch = everything(given)
    said = teacher.classifier.predict_proba(batch.x.numpy())
    assert teacher.classifier.classes_.tolist() == list(CLASSES)
    assert teacher(batch.x, None).softmax(1).numpy() == pytest.approx(said, abs=5e-3)
    kept = flat(RandomForestClassifier(5, random_state=8))
    assert make_teacher(kept, network(given.preprocess), given, Recipe()).classifier[-1].random_state == 8


def test_a_fitted_classifier_keeps_its_labels():
    given = inputs(n=30)
    batch = everything(given)
    fitted = flat(LogisticRegression()).fit(batch.x.numpy(), 2.0 - batch.labels.numpy())  # 2.0, 1.0 and 0.0
    student = network(given.preprocess, classes=("2", "1", "0"))
    teacher = make_teacher(fitted, student, given, Recipe())
    assert teacher.classifier is fitted
    assert torch.equal(teacher(batch.x, None).argmax(1), batch.labels)
    with pytest.raises(ValueError, match=r"teacher Pipeline does not know the classes ash, .*; it knows 0.0, 1.0, 2.0"):
        make_teacher(fitted, network(given.preprocess), given, Recipe())


def test_a_student_whose_classes_nobody_named():
    given = inputs(n=30)
    student = network(given.preprocess)
    student.classes = ()
    teacher = make_teacher(flat(LogisticRegression()), student, given, Recipe())
    batch = everything(given)
    assert torch.equal(teacher(batch.x, None).argmax(1), batch.labels)


def test_classifiers_that_take_other_shapes_say_so():
    given = inputs()
    with pytest.raises(ValueError, match=r"teacher LogisticRegression cannot be fitted to arrays of shape \(24, 2, 16"):
        make_teacher(LogisticRegression(), network(given.preprocess), given, Recipe())
    short = inputs(length=8)
    with pytest.raises(ValueError, match=r"teacher minirocket cannot be fitted to arrays of shape \(24, 2, 8\): .*9"):
        make_teacher("minirocket", network(short.preprocess), short, Recipe())


def test_pictures_are_taught_by_classifiers():
    pictures = [picture(i, mode="L") for i in range(9)]
    student = picture_network(16, "L", 0.4, 0.3)
    made = Inputs(Examples(pictures, labels=np.arange(9) % 3), student.preprocess)
    teacher = make_teacher(flat(LogisticRegression()), student, made, Recipe())
    batch = everything(made)
    assert torch.equal(teacher(batch.x, None).argmax(1), batch.labels)


def test_a_rocket_leaves_torch_its_threads(monkeypatch):
    set_to: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with _same_threads():
        pass
    assert set_to == [7]
