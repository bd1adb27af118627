"""The report page: what it contains, that it stands alone, and that names cannot break it."""

import base64
import io
import re
import subprocess
import sys
from collections import namedtuple
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ndvit.evaluation.cards import cards_of, draw_example
from ndvit.evaluation.classification import ClassificationEvaluation
from ndvit.evaluation.figures import thin
from ndvit.evaluation.report import Report, render, write_report
from test_evaluation import Counting

Recording = namedtuple("Recording", "values rate")
EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
HISTORY = [
    {"step": 10, "train_loss": 0.9, "train_accuracy": 0.5, "learning_rate": 1e-3},
    {"step": 20, "train_loss": 0.5, "train_accuracy": 0.8, "learning_rate": 5e-4},
    {"step": 20, "val_loss": 0.6, "val_accuracy": 0.75},
]
CURVE = re.compile(r"stroke: var\(--c\d\); stroke-width: 1.6")
VOID = {"meta", "img", "br", "link", "input", "hr"}
pytestmark = pytest.mark.usefixtures("_drawn")
EMPTY = np.zeros((1, 0))  # an example that needs no figure, which keeps a test quick


def evaluation(n=12, classes=3, wrong=4, names=None, class_names=None):
    """n examples. The first `wrong` are predicted as the next class, with decreasing confidence."""
    labels = np.arange(n) % classes
    predicted = np.where(np.arange(n) < wrong, (labels + 1) % classes, labels)
    confidence = 0.97 - 0.2 * np.arange(n)[:, None] / n
    p = (1 - confidence) / (classes - 1) * (1 - np.eye(classes)[predicted]) + confidence * np.eye(classes)[predicted]
    class_names = class_names or tuple(f"class {i}" for i in range(classes))
    return ClassificationEvaluation(class_names, labels, p, names or tuple(f"file_{i}.wav" for i in range(n)))


def report(ev=None, examples=(), history=(), notes=(), view=None, **changes):
    """A report; `examples` are the worst ones, and the others are empty."""
    ev = ev or evaluation()
    all_examples = dict.fromkeys(range(len(ev)), EMPTY) | dict(zip(ev.worst(), examples))
    fields = {
        "title": "gunpoint · vit_nano",
        "summary": {"model": "vit_nano", "time": "31 s"},
        "notes": tuple(notes),
        "history": list(history),
        "evaluation": ev,
        "cards": cards_of(ev, all_examples, view),
        "viewed": view is not None,
        "config": "seed: 0\n",
        "command": "ndvit train gunpoint --seed 0",
    }
    return Report(**(fields | changes))


class Page(HTMLParser):
    """HTML as a parser sees it: tags must be closed in order; text, attributes and tags are kept apart."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.source = source
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words).replace("\N{NBSP}", " "))

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def labels(self):
        return [svg["aria-label"] for svg in self.all("svg")]

    @property
    def curves(self):
        return [path for path in self.all("path") if CURVE.search(path.get("style", ""))]

    @property
    def dots(self):
        return [use for use in self.all("use") if "var(--c" in use.get("style", "")]


def page(**fields):
    return Page(render(report(**fields)))


def card(example):
    """The figure of an example, and its note."""
    figure, note = draw_example(example, "file", "example 0")
    return Page(str(figure)), note


def decode(img):
    return Image.open(io.BytesIO(base64.b64decode(img["src"].partition(",")[2])))


# the page


def test_numbers_and_facts():
    got = page(notes=["no split found: 20 % held out"])
    assert "test accuracy66.7 %12 examples, 4 mistakes; 95 % interval 39.1 % to 86.2 % (Wilson)" in got.text
    for part in ("vit_nano", "31 s", "no split found: 20 % held out", "ndvit train gunpoint --seed 0", "seed: 0"):
        assert part in got.text
    assert got.all("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in got.all("meta"))
    # Each class has 4 examples, of which classes 0, 1, 2 lose 2, 1, 1 to the next.
    matrix = re.search(r'"numbers confusion.*?</table>', got.source, re.S)[0]
    cells = re.findall(r'<td(?: class="(\w+)")?[^>]*>(\d+)</td>', matrix)
    assert [int(count) for _, count in cells] == [2, 2, 0, 0, 3, 1, 1, 0, 3]
    assert [kind for kind, _ in cells] == ["hit", "", "none", "none", "hit", "", "", "none", "hit"]
    assert all(th.get("scope") in ("row", "col") for th in got.all("th"))
    assert "the fairer number" not in got.text
    assert "balanced" not in got.text.partition("test accuracy")[0]


def test_unbalanced_data_has_both_accuracies_in_the_title():
    ev = ClassificationEvaluation(("x", "y"), np.array([0, 0, 0, 0, 1]), np.eye(2)[[0] * 5], tuple("abcde"))
    got = page(ev=ev)
    assert "80.0 % test accuracy, 50.0 % balanced" in got.text
    assert "the fairer number, because class sizes differ" in got.text


def test_another_task_has_a_default_page():
    class Ordered(Counting):
        def worst(self):
            return [1, 0]

        def caption(self, index):
            return {"target": str(index), "answer": EVIL}

    got = page(
        ev=Ordered(tuple("ab"), np.array([1.0, -2.0])),
        examples=[np.zeros((1, 3, 3))],
        history=[{"step": 1, "train_mean_error": 2.0}, {"step": 1, "val_mean_error": 3.0}],
    )
    assert "gunpoint · vit_nano: score -1.5000 on 2 examples" in got.text
    assert re.search("mean error ?1.5000", got.text)
    assert "Worst examples 2 of 2, the worst first." in got.text
    assert f"target 1, answer {EVIL}" in got.text
    assert got.labels == ["mean error against the training step: training and validation"]
    assert len(got.all("img")) == 1
    assert not re.search("class [0-9]|accuracy|Confusion", got.text)
    assert "Worst" not in page(ev=Counting(tuple("ab"), np.ones(2))).text


def test_mistakes_are_drawn():
    got = page(examples=[np.arange(20.0)[None]] * 2)
    assert "true class 0, predicted class 1, confidence 97.0 %" in got.text
    assert "file_0.wav 20 samples" in got.text
    assert "4 of 4, the most confident first" in got.text
    assert [label for label in got.labels if "file_" in label] == [
        "example file_0.wav against sample",
        "example file_1.wav against sample",
    ]
    got = page(ev=evaluation(n=60, wrong=50))
    assert "24 of 50, the most confident first" in got.text
    assert got.source.count("<li>") == 24
    assert "None: every test example was predicted correctly." in page(ev=evaluation(wrong=0)).text


@pytest.mark.parametrize("classes", [2, 20, 21, 100, 300])
def test_any_number_of_classes(classes):
    names = tuple(f"category {i} with a rather long descriptive name" for i in range(classes))
    got = page(ev=evaluation(n=3 * classes, classes=classes, wrong=1, class_names=names))
    assert all(name in got.text for name in names)
    assert len(got.source) < 300_000
    if classes <= 20:
        assert "numbers confusion upright" in got.source or classes == 2
    else:
        (matrix,) = got.all("image")
        assert decode({"src": matrix["href"]}).size == (classes, classes)
        assert "category 0 with a rat…" in got.text
        assert "The most frequent confusions" in got.text
        assert got.text.count("category 0 with a rather long") == 3  # its row, the first confusion and the card
    if classes > 50:
        assert f"The other {classes - 50} classes" in got.text


def test_a_class_without_examples():
    got = page(ev=ClassificationEvaluation(("x", "y", "z"), np.array([0, 1]), np.eye(3)[:2], ("a", "b")))
    assert re.search(r"<bdi>z</bdi></th><td>0</td><td class=\"share\">–</td><td>–</td><td>–</td>", got.source)
    assert "mean over the 2 classes with examples" in got.text


def test_reliability():
    """14 predictions of confidence 0.95, of which 12 are correct, and 3 of 0.55, of which 1 is: a faint bin."""
    labels = np.array([0] * 12 + [1] * 2 + [0] + [1] * 2)
    p = np.array([[0.95, 0.05]] * 14 + [[0.55, 0.45]] * 3)
    ev = ClassificationEvaluation(("x", "y"), labels, p, tuple(map(str, range(17))))
    got = page(ev=ev, summary={"probabilities": "not calibrated: no validation data"})
    assert got.labels[-1].endswith("confidence 55 %: accuracy 33 % of 3; confidence 95 %: accuracy 86 % of 14")
    assert "The probabilities are not calibrated: no validation data." in got.text
    figure = re.search('<figure class="reliability">.*?</figure>', got.source, re.S)[0]
    assert re.findall("fill: var\\(--c0\\); opacity: ([0-9.]+)", figure) == ["0.2", "0.4", "0.4", "0.8"]  # faint first
    assert "var(--ink)" in figure
    assert {"14", "3", "0", "20", "40", "60", "80", "100"} <= set(re.findall(">([0-9]+)<", figure))
    ece = (14 * abs(12 / 14 - 0.95) + 3 * abs(1 / 3 - 0.55)) / 17
    assert re.search(rf"calibration error \(ECE\) ?{100 * ece:.1f} %", got.text)


# learning curves


def test_curves():
    got = page(history=HISTORY)
    assert got.labels == [
        "loss against the training step: training and validation",
        "accuracy (%) against the training step: training and validation",
        "learning rate against the training step: training",
        "ROC curves; areas: class 0 0.469; class 1 0.562; class 2 0.688",
        "precision-recall curves; areas: class 0 0.450; class 1 0.442; class 2 0.570",
        "reliability diagram. confidence 79 %: accuracy 100 % of 1; confidence 83 %: accuracy 100 % of 4; "
        "confidence 89 %: accuracy 75 % of 4; confidence 95 %: accuracy 0 % of 3",
    ]
    assert "No validation set" not in got.text
    assert [path["d"].count("L") for path in got.curves] == [1, 0, 1, 0, 1]  # two of training, one of validation
    assert ["var(--c1)" in dot["style"] for dot in got.dots] == [True, True]


@pytest.mark.parametrize(("balanced", "curves"), [(0.5, 6), (0.75, 5), (None, 5)])
def test_balanced_accuracy_has_a_curve_where_it_differs(balanced, curves):
    got = page(history=[row | {"val_balanced_accuracy": balanced} if "val_loss" in row else row for row in HISTORY])
    assert len(got.curves) == curves
    kinds = "training and validation" + " and validation, balanced" * (curves == 6)
    assert got.labels[1] == f"accuracy (%) against the training step: {kinds}"
    assert len([dot for dot in got.dots if "var(--c2)" in dot["style"]]) == (curves == 6)


@pytest.mark.parametrize(
    ("history", "text", "curves", "dots"),
    [
        (HISTORY[:2], "No validation set: the curves show training only.", 3, 0),
        (HISTORY[:1], "No validation set", 3, 3),  # one row is a dot
        ([], "nothing was trained by steps", 0, 0),
        ([*HISTORY, {"step": 30, "train_loss": np.nan, "val_loss": np.inf}], "2 values are not finite", 5, 2),
    ],
)
def test_histories(history, text, curves, dots):
    got = page(history=history)
    assert text in got.text
    assert (len(got.curves), len(got.dots)) == (curves, dots)
    assert not re.search("nan|inf", " ".join(path["d"] for path in got.all("path")))


def test_history_without_step_is_an_error():
    with pytest.raises(ValueError, match=r"needs a 'step', got one with \['train_loss'\]"):
        page(history=[{"train_loss": 1.0}])


def test_long_history_is_thinned():
    history = [{"step": i, "train_loss": 1 / i, "train_accuracy": 0.5, "learning_rate": 1e-3} for i in range(1, 50_000)]
    assert len(page(history=history).source) < 100_000


def test_thinning_keeps_the_outline():
    y = np.sin(np.linspace(0, 9, 100_003))
    y[77_777], y[30_000:40_000] = 7.0, np.nan
    x, got = thin(np.arange(len(y)), y, 100)
    assert len(x) == len(got) <= 200
    assert got[np.isfinite(got)].max() == 7.0
    assert (np.diff(x) >= 0).all()
    assert np.isnan(got[(x > 31_100) & (x < 38_900)]).all()
    assert np.isfinite(got[(x < 28_000) | (x > 40_000)]).all()


# examples


def test_missing_values_are_gaps():
    signal = np.sin(np.arange(30.0))[None].repeat(2, axis=0)
    signal[0, 10:15] = np.nan
    signal[0, 12] = 0.5  # alone between gaps: a dot
    got, note = card(signal)
    assert [path["d"].count("M") for path in got.curves] == [3, 1]
    (dot,) = got.dots
    assert "var(--c0)" in dot["style"]
    assert note == "2 channels, 30 samples; 6.7\N{NBSP}% missing"
    got, note = card(np.where(np.arange(200) < 50, 1.0, np.nan)[None])
    assert {"50", "100", "150"} <= set(got.words)  # the axis includes missing values at the end


@pytest.mark.parametrize("shape", [(1, 48_000), (48_000,)])
def test_recordings_have_seconds(shape):
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    got, note = card(Recording(noise, 16_000))
    assert note == "3 s at 16000 Hz"
    assert "0 1 2 time (s)" in " ".join(w.strip() for w in got.words if w.strip())
    assert len(got.source) < 15_000


def test_many_channels():
    got, note = card(np.random.default_rng(0).normal(size=(20, 500)))
    assert note == "20 channels, 500 samples; the first 8 are drawn"
    assert len({CURVE.search(path["style"])[0] for path in got.curves}) == len(got.curves) == 8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize(("size", "drawn"), [((8, 6), (96, 72)), ((1600, 400), (192, 48))])
def test_pictures(mode, size, drawn):
    got, note = card(Image.new(mode, size))
    (img,) = got.all("img")
    assert decode(img).size == drawn
    assert img["alt"] == "example file"
    assert note == f"{size[0]} × {size[1]} pixels"


def test_arrays_of_more_dimensions():
    volume = np.zeros((1, 9, 12, 12))
    volume[0, 4, 6:] = 5.0  # only the middle slice has values
    volume[0, 4, :, 0] = np.nan
    got, note = card(volume)
    pixels = np.asarray(decode(got.all("img")[0]))
    assert pixels[0, -1].tolist() == [0, 0, 0, 255]
    assert pixels[-1, -1].tolist() == [255, 255, 255, 255]
    assert pixels[0, 0, 3] == 0  # missing values are transparent
    assert note == "9 × 12 × 12, slice 5 of 9, 1 channel"
    assert card(np.zeros((5, 200, 100)))[1] == "200 × 100, channel 1 of 5"
    assert card(np.zeros((3, 4, 4), np.uint8))[1] == "4 × 4, 3 channels"


@pytest.mark.parametrize(
    ("example", "note"),
    [
        (EMPTY, "empty"),
        (np.full((1, 30), np.nan), "30 samples; 100.0\N{NBSP}% missing"),
        (np.full((1, 3, 3), np.nan), "3 × 3, 1 channel"),
        (np.array([[np.inf, 1.0]]), "2 samples; 50.0\N{NBSP}% missing"),
    ],
)
def test_unusual_examples(example, note):
    assert card(example)[1] == note


@pytest.mark.parametrize("scale", [0, 1e-300, 1e-9, 1e12, 3e38])
@pytest.mark.parametrize("length", [1, 99])
def test_signals_of_any_scale(scale, length):
    got, _ = card(scale * np.sin(np.arange(length))[None] + scale)
    assert (len(got.curves), len(got.dots)) == (1, length == 1)
    assert not re.search("nan|inf", " ".join(path["d"] for path in got.all("path")))


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize(
    "example",
    [
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 800, 4), dtype=np.uint8)),
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (95, 95, 3), dtype=np.uint8)),
        Recording(noise(12, 60_000), 8000),
        np.where(noise(8, 259) < 0, np.nan, noise(8, 259)),  # many points without neighbours
    ],
    ids=["photograph", "small picture", "recording", "gaps"],
)
def test_24_noisy_examples_stay_small(example):
    assert 24 * len(card(example)[0].source) < 1_450_000


# what the page may contain


def test_figures_follow_the_theme():
    """No colour or font of matplotlib is left, ids are unique, and every reference points into its own figure."""
    got = page(
        ev=evaluation(n=60, classes=30),
        examples=[np.where(np.arange(30) == 9, 1, np.nan)[None]] * 4,
        history=[*HISTORY, HISTORY[0]],
    )
    assert len(got.all("svg")) == 11
    svg = "".join(re.findall("<svg.*?</svg>", got.source, re.S))
    assert not re.search(r"#0|#f|black|white|rgb|font: ", svg.replace('"#', ""))
    assert "color: currentColor" not in svg
    assert "fill: currentColor" in svg
    assert "stroke: var(--line)" in svg
    ids = [attrs["id"] for _, attrs in got.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = {use["href"] for use in got.all("use")}
    assert used
    assert used <= {f"#{i}" for i in ids}
    assert not re.search("xmlns|xlink|<!--|<metadata|<style.*<style|<[?]xml", got.source, re.S)


def test_settings_of_matplotlib_do_not_matter():
    import matplotlib

    want = page(history=HISTORY).source
    settings = {"svg.fonttype": "path", "axes.grid": False, "text.usetex": True, "savefig.bbox": "tight"}
    with matplotlib.rc_context(settings):
        before = dict(matplotlib.rcParams)
        assert page(history=HISTORY).source == want
        assert dict(matplotlib.rcParams) == before


def test_nothing_from_outside():
    got = page(examples=[Image.new("RGB", (300, 200), "red"), np.zeros((1, 50)), Recording(np.zeros((1, 800)), 8000)])
    source = re.sub(r'"data:image/\w+;base64,[\w+/=]+"', "", got.source)
    assert not re.search(r"https?:|//\w|data:image|@import|url\(|<link|<script|<iframe|<object", source)
    for _, attrs in got.tags:
        for name in ("src", "href", "srcset", "action"):
            assert re.match("data:image/|#[0-9a-z]+$", attrs.get(name, "data:image/"))
        assert not re.search("[(](?!--c[0-7][)]|--ink[)]|--line[)])", attrs.get("style", ""))  # var(), never url()


@pytest.mark.parametrize("classes", [8, 25])  # a table of counts, and a picture with labels
def test_names_cannot_break_out(classes):
    names = (
        EVIL,
        "$x_1$ {{ 7 * 7 }}",
        "\"a\" & 'b' \ud800",
        '"/><script>a</script>',
        "--><!--]]>&lt;",
        'd="1.234\n#00fe01',
    )
    names += tuple(f"日本 😀 \u202e{i}" for i in range(classes - len(names)))
    files = (f"{EVIL}.png", *(f"bad \udcff {i}" for i in range(11)))
    evil = dict.fromkeys(("title", "config", "command"), EVIL)
    source = render(
        report(
            ev=evaluation(classes=classes, class_names=names, names=files),
            examples=[np.zeros((1, 9)), Image.new("L", (8, 8))],
            notes=[EVIL],
            history=HISTORY,
            summary={EVIL: EVIL},
            **evil,
        )
    )
    got = Page(source.encode("utf-8", errors="replace").decode())
    assert got.all("script") == []
    assert not any(name.startswith("on") for _, attrs in got.tags for name in attrs)
    assert [img["src"][:10] for img in got.all("img")] == ["data:image"]
    for text in (EVIL, "{{ 7 * 7 }}", "\"a\" & 'b' ?", "日本 😀"):
        assert text in got.text
    assert "script-src" not in got.source
    assert "default-src 'none'" in got.source
    if classes > 20:
        figure = re.sub("<[^>]*>", "|", re.findall("<svg.*?</svg>", got.source, re.S)[3])
        labels = [text for text in figure.split("|") if text.strip()]
        for name in (
            "&lt;script&gt;alert('x')&lt;/s…",
            "\"a\" &amp; 'b' ?",
            "--&gt;&lt;!--]]&gt;&amp;lt;",
            'd="1.234 #00fe01',
            '"/&gt;&lt;script&gt;a&lt;/script&gt;',
            "$x_1$ {{ 7 * 7 }}",
        ):
            assert labels.count(name) == 2, labels  # its row and its column


# writing


def test_a_failure_keeps_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(TypeError, match=r"'file_0.wav' cannot be drawn: it must be a PIL image, .*, got str"):
        report(examples=["file_0.wav"])

    def full(self, data):
        self.write_text("half", encoding="utf-8")
        raise OSError("no space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        write_report(report(), path)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_report(report(notes=["bad \udcff"]), str(path))
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_import_is_light():
    code = """if True:
        import sys
        import ndvit.evaluation.report
        print([name for name in ("matplotlib", "jinja2", "PIL", "sklearn", "torch") if name in sys.modules])
        ndvit.evaluation.charts.learning_curves([{"step": 1, "train_loss": 1.0}])
        print("matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules)
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n") == ["[]", "True False", ""]


def test_examples_are_drawn_as_the_network_reads_them():
    figure, note = draw_example(Image.new("RGB", (400, 936)), "a", "example 0", lambda image: image.resize((100, 100)))
    assert note == "400 × 936 pixels, drawn as 100 × 100 pixels"
    assert decode(Page(str(figure)).all("img")[0]).size == (100, 100)
    assert draw_example(np.zeros((1, 5)), "a", "example 0", lambda values: values)[1] == "5 samples"
    assert "drawn as the network reads it" in page(examples=[np.zeros((1, 5))], view=lambda values: values).text
