import re
import subprocess
import sys
from collections import namedtuple
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ndvit.evaluation.figures import _thin
from ndvit.evaluation.metrics import Evaluation
from ndvit.evaluation.report import Report, _percent, write_report

Recording = namedtuple("Recording", "values rate")
EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
HISTORY = [
    {"step": 10, "train_loss": 0.9, "train_accuracy": 0.5, "learning_rate": 1e-3},
    {"step": 20, "train_loss": 0.5, "train_accuracy": 0.8, "learning_rate": 5e-4},
    {"step": 20, "val_loss": 0.6, "val_accuracy": 0.75},
]
CURVE = re.compile(r"stroke: var\(--c\d\); stroke-width: 1.6")
VOID = {"meta", "img", "br", "link", "input", "hr"}


def evaluation(n=12, classes=3, wrong=4, names=None, class_names=None):
    """n examples of which the first `wrong` are taken for the next class, the first with the most confidence."""
    labels = np.arange(n) % classes
    said = np.where(np.arange(n) < wrong, (labels + 1) % classes, labels)
    sure = 0.97 - 0.2 * np.arange(n)[:, None] / n
    p = (1 - sure) / (classes - 1) * (1 - np.eye(classes)[said]) + sure * np.eye(classes)[said]
    class_names = class_names or tuple(f"class {i}" for i in range(classes))
    return Evaluation(class_names, labels, p, names or tuple(f"file_{i}.wav" for i in range(n)))


def report(ev=None, mistakes=(), history=HISTORY, notes=(), **changes):
    fields = {
        "title": "gunpoint · vit_nano",
        "summary": {"model": "vit_nano", "time": "31 s"},
        "notes": tuple(notes),
        "history": list(history),
        "evaluation": ev or evaluation(),
        "mistakes": list(mistakes),
        "config": "seed: 0\n",
        "command": "ndvit train gunpoint --seed 0",
    }
    return Report(**(fields | changes))


class Page(HTMLParser):
    """The page as a parser sees it: tags must be closed in order, and text, attributes and tags are kept apart."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
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
        return re.sub(r"\s+", " ", "".join(self.words))

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def curves(self):
        return [path for path in self.all("path") if CURVE.search(path.get("style", ""))]

    @property
    def dots(self):
        return [use for use in self.all("use") if "var(--c" in use.get("style", "")]


@pytest.fixture
def page(tmp_path):
    def write(**kwargs):
        write_report(report(**kwargs), tmp_path / "report.html")
        return Page(tmp_path / "report.html")

    return write


def test_tells_the_numbers(page):
    got = page(notes=["no split given: 20 % held out"])
    assert "test accuracy66.7 %12 examples, 4 mistakes; 95 % interval 39.1 % to 86.2 % (Wilson)" in got.text
    for part in ("vit_nano", "31 s", "no split given: 20 % held out", "ndvit train gunpoint --seed 0", "seed: 0"):
        assert part in got.text
    assert got.all("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in got.all("meta"))
    # the confusion matrix: each class has 4 examples of which classes 0, 1, 2 lose 2, 1, 1 to the next
    cells = re.findall(
        r'<td(?: class="(\w+)")?[^>]*>(\d+)</td>', re.search(r'"numbers confusion.*?</table>', got.source, re.S)[0]
    )
    assert [int(count) for _, count in cells] == [2, 2, 0, 0, 3, 1, 1, 0, 3]
    assert [kind for kind, _ in cells] == ["hit", "", "none", "none", "hit", "", "", "none", "hit"]
    assert all(th.get("scope") in ("row", "col") for th in got.all("th"))


def test_curves(page):
    got = page()
    labels = [svg["aria-label"] for svg in got.all("svg")]
    assert labels == [
        "loss against the step of training: training and validation",
        "accuracy (%) against the step of training: training and validation",
        "learning rate against the step of training: training",
        "reliability diagram. confidence 79 %: accuracy 100 % of 1; confidence 83 %: accuracy 100 % of 4; "
        "confidence 89 %: accuracy 75 % of 4; confidence 95 %: accuracy 0 % of 3",
    ]
    assert "no validation split" not in got.text
    assert got.text.count("step") >= 3
    assert [path["d"].count("L") for path in got.curves] == [1, 0, 1, 0, 1]  # two of training, one of validation
    assert len(got.dots) == 2
    assert ["var(--c1)" in dot["style"] for dot in got.dots] == [True, True]


@pytest.mark.parametrize(("balanced", "curves"), [(0.5, 6), (0.75, 5), (None, 5)])
def test_balanced_accuracy_has_a_curve_where_it_differs(page, balanced, curves):
    got = page(history=[row | {"val_balanced_accuracy": balanced} if "val_loss" in row else row for row in HISTORY])
    assert len(got.curves) == curves
    assert ("balanced over the classes" in got.text) == (curves == 6)
    told = "training and validation" + " and validation, balanced over the classes" * (curves == 6)
    assert got.all("svg")[1]["aria-label"] == f"accuracy (%) against the step of training: {told}"
    assert len([dot for dot in got.dots if "var(--c2)" in dot["style"]]) == (curves == 6)


def test_accuracy_ends_at_100(page):
    got = page(
        history=[{"step": i, "train_accuracy": 1 - 0.5**i} for i in range(9)] + [{"step": 9, "train_accuracy": 1}]
    )
    assert "100" in got.words
    assert "110" not in got.words
    assert "120" not in got.words


def test_figures_follow_the_theme(page):
    """No colour of matplotlib's is left, ids do not repeat, and every reference finds its own figure's."""
    got = page(
        ev=evaluation(n=60, classes=30),
        mistakes=[(i, np.where(np.arange(30) == 9, 1, np.nan)[None]) for i in range(4)],
        history=[*HISTORY, HISTORY[0]],
    )
    assert len(got.all("svg")) == 9
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


def test_settings_of_matplotlib_do_not_matter(page):
    import matplotlib

    want = page(mistakes=[(0, np.arange(9.0)[None])]).source
    with matplotlib.rc_context(
        {"svg.fonttype": "path", "axes.grid": False, "text.usetex": True, "savefig.bbox": "tight"}
    ):
        before = dict(matplotlib.rcParams)
        assert page(mistakes=[(0, np.arange(9.0)[None])]).source == want
        assert dict(matplotlib.rcParams) == before


def test_import_is_light():
    code = """if True:
        import sys
        import ndvit.evaluation.report
        print([name for name in ("matplotlib", "jinja2", "PIL", "sklearn", "torch") if name in sys.modules])
        ndvit.evaluation.figures.learning_curves([{"step": 1, "train_loss": 1.0}])
        print("matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules)
    """
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split("\n") == ["[]", "True False", ""]


def test_curves_without_validation_or_history(page):
    got = page(history=HISTORY[:2])
    assert "no validation split: the curves show training only" in got.text
    assert not any("validation" in svg["aria-label"] for svg in got.all("svg"))
    got = page(history=[])
    assert "No history was recorded" in got.text
    assert [svg["aria-label"][:11] for svg in got.all("svg")] == ["reliability"]


def test_reliability(page):
    """14 answers of confidence 0.95, of which 12 are right, and 3 of 0.55, of which 1 is: a faint bin."""
    labels = np.array([0] * 12 + [1] * 2 + [0] + [1] * 2)
    p = np.array([[0.95, 0.05]] * 14 + [[0.55, 0.45]] * 3)
    ev = Evaluation(("x", "y"), labels, p, tuple(map(str, range(17))))
    got = page(ev=ev, summary={"probabilities": "not calibrated: no validation data"})
    told = next(svg["aria-label"] for svg in got.all("svg") if "reliab" in svg["aria-label"])
    assert told.endswith("confidence 55 %: accuracy 33 % of 3; confidence 95 %: accuracy 86 % of 14")
    assert "These probabilities: not calibrated: no validation data." in got.text
    figure = re.search('<figure class="reliability">.*?</figure>', got.source, re.S)[0]
    assert re.findall("fill: var\\(--c0\\); opacity: ([0-9.]+)", figure) == ["0.2", "0.4", "0.4", "0.8"]  # faint first
    assert "var(--ink)" in figure
    assert {"14", "3", "0", "20", "40", "60", "80", "100"} <= set(re.findall(">([0-9]+)<", figure))
    ece = (14 * abs(12 / 14 - 0.95) + 3 * abs(1 / 3 - 0.55)) / 17
    assert f"calibration error (ECE){100 * ece:.1f} %" in got.text.replace("\N{NBSP}", " ")


def test_unbalanced_data_is_headed_by_both_accuracies(page):
    assert "balanced" not in "".join(page().words[:8]).partition("test accuracy")[0]
    ev = Evaluation(("x", "y"), np.array([0, 0, 0, 0, 1]), np.eye(2)[[0, 0, 0, 0, 0]], tuple("abcde"))
    got = page(ev=ev)
    assert "80.0 % test accuracy, 50.0 % balanced" in got.text.replace("\N{NBSP}", " ")
    assert "the fairer number, as class sizes differ" in got.text
    assert "the fairer number" not in page().text


def test_one_row_of_history_is_a_dot(page):
    got = page(history=HISTORY[:1])
    assert len(got.dots) == 3
    assert "nan" not in got.source.lower().replace("nano", "").replace("nan (", "").replace("nan or", "")


def test_diverged_loss_is_told(page):
    got = page(history=[*HISTORY, {"step": 30, "train_loss": float("nan"), "val_loss": float("inf")}])
    assert "2 values were not finite" in got.text


def test_history_without_step_is_refused(page):
    with pytest.raises(ValueError, match=r"needs a 'step', got one with \['train_loss'\]"):
        page(history=[{"train_loss": 1.0}])


def test_long_history_is_thinned(page):
    history = [{"step": i, "train_loss": 1 / i, "train_accuracy": 0.5, "learning_rate": 1e-3} for i in range(1, 50_000)]
    assert len(page(history=history).source) < 100_000


def test_nothing_from_outside(page):
    picture = Image.new("RGB", (300, 200), "red")
    got = page(mistakes=[(0, picture), (1, np.zeros((1, 50))), (2, Recording(np.zeros((1, 800)), 8000))])
    source = re.sub(r'"data:image/\w+;base64,[\w+/=]+"', "", got.source)
    assert not re.search(r"https?:|//\w|data:image|@import|url\(|<link|<script|<iframe|<object", source)
    for _, attrs in got.tags:
        for name in ("src", "href", "srcset", "action"):
            assert re.match("data:image/|#[0-9a-z]+$", attrs.get(name, "data:image/"))
        assert not re.search("[(](?!--c[0-7][)]|--ink[)]|--line[)])", attrs.get("style", ""))  # var(), never url()


@pytest.mark.parametrize("classes", [8, 25])  # a table of counts, and a picture with labels
def test_names_cannot_break_out(page, classes):
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
    ev = evaluation(classes=classes, class_names=names, names=files)
    signal, picture = np.zeros((1, 9)), Image.new("L", (8, 8))
    got = page(
        ev=ev,
        mistakes=[(0, signal), (1, picture)],
        notes=[EVIL],
        summary={EVIL: EVIL},
        title=EVIL,
        config=EVIL,
        command=EVIL,
    )
    assert got.all("script") == []
    assert not any(name.startswith("on") for _, attrs in got.tags for name in attrs)
    assert [img["src"][:10] for img in got.all("img")] == ["data:image"]
    assert EVIL in got.text
    assert "{{ 7 * 7 }}" in got.text
    assert "\"a\" & 'b' ?" in got.text
    if classes > 20:
        figure = re.sub("<[^>]*>", "|", re.findall("<svg.*?</svg>", got.source, re.S)[3])
        told = [text for text in figure.split("|") if text.strip()]
        for name in (
            "&lt;script&gt;alert('x')&lt;/s…",
            "\"a\" &amp; 'b' ?",
            "--&gt;&lt;!--]]&gt;&amp;lt;",
            'd="1.234 #00fe01',
        ):
            assert told.count(name) == 2, told  # its row and its column
        assert told.count('"/&gt;&lt;script&gt;a&lt;/script&gt;') == 2
        assert told.count("$x_1$ {{ 7 * 7 }}") == 2
    assert "日本 😀" in got.text
    assert "script-src" not in got.source
    assert "default-src 'none'" in got.source


def test_no_mistakes(page):
    got = page(ev=evaluation(wrong=0))
    assert "100.0 %" in got.text
    assert "None: every test example was predicted rightly." in got.text
    assert "cards" not in [attrs.get("class") for attrs in got.all("ul")]
    assert "none of them is drawn" in page(ev=evaluation(wrong=1)).text


def test_mistakes_are_told(page):
    got = page(mistakes=[(i, np.arange(20.0)[None]) for i in range(4)])
    assert "true class 0, said class 1 (97.0 %)" in got.text
    assert "file_0.wav" in got.text
    assert "20 samples" in got.text
    assert len([1 for svg in got.all("svg") if "file_" in svg["aria-label"]]) == 4
    got = page(ev=evaluation(n=60, wrong=50), mistakes=[(i, np.arange(20.0)[None]) for i in range(50)])
    assert "24 of 50, the most confident first" in got.text
    assert len([1 for svg in got.all("svg") if "file_" in svg["aria-label"]]) == 24


def test_missing_values_are_gaps(page):
    signal = np.sin(np.arange(30.0))[None].repeat(2, axis=0)
    signal[0, 10:15] = np.nan
    signal[0, 12] = 0.5  # alone between gaps: a dot
    got = page(mistakes=[(0, signal)], history=[])
    first, second = got.curves
    assert first["d"].count("M") == 3
    assert second["d"].count("M") == 1
    (dot,) = got.dots
    assert "var(--c0)" in dot["style"]
    assert "2 channels, 30 samples; 6.7 % missing" in got.text
    assert "100.0 % missing" in page(mistakes=[(0, np.full((1, 30), np.nan))]).text


def test_recordings_have_seconds(page):
    noise = np.random.default_rng(0).normal(size=(1, 48_000)).astype(np.float32)
    got = page(mistakes=[(0, Recording(noise, 16_000))], history=[])
    assert "time (s)" in got.text
    assert "3 s at 16000 Hz" in got.text
    assert "0 1 2 time (s)" in " ".join(w.strip() for w in got.words if w.strip())
    assert len(page(mistakes=[(0, Recording(noise[0], 16_000))], history=[]).source) < 35_000  # (time,) does too


def test_many_channels(page):
    got = page(mistakes=[(0, np.random.default_rng(0).normal(size=(20, 500)))], history=[])
    assert "20 channels, 500 samples; the first 8 drawn" in got.text
    assert len({CURVE.search(path["style"])[0] for path in got.curves}) == len(got.curves) == 8


def decode(img):
    import base64
    import io

    return Image.open(io.BytesIO(base64.b64decode(img["src"].partition(",")[2])))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_pictures(page, mode):
    tiny, big = Image.new(mode, (8, 6)), Image.new(mode, (1600, 400))
    got = page(mistakes=[(0, tiny), (1, big)])
    first, second = (decode(img) for img in got.all("img"))
    assert first.size == (96, 72)
    assert second.size == (192, 48)
    assert "8 × 6 pixels" in got.text
    assert "1600 × 400 pixels" in got.text
    assert [img["alt"] for img in got.all("img")] == ["test example file_0.wav", "test example file_1.wav"]


def test_arrays_of_more_dimensions(page):
    volume = np.zeros((1, 9, 12, 12))
    volume[0, 4, 6:] = 5.0  # the middle slice alone has something in it
    volume[0, 4, :, 0] = np.nan
    got = page(mistakes=[(0, volume), (1, np.zeros((5, 200, 100))), (2, np.zeros((3, 4, 4), np.uint8))])
    pixels = np.asarray(decode(got.all("img")[0]))
    assert pixels[0, -1].tolist() == [0, 0, 0, 255]
    assert pixels[-1, -1].tolist() == [255, 255, 255, 255]
    assert pixels[0, 0, 3] == 0  # missing is transparent
    assert "9 × 12 × 12, slice 5 of 9, 1 channel" in got.text
    assert "200 × 100, channel 1 of 5" in got.text
    assert "4 × 4, 3 channels" in got.text


def test_odd_examples(page):
    got = page(mistakes=[(0, np.zeros((1, 0))), (1, np.full((1, 3, 3), np.nan)), (2, np.array([[np.inf, 1.0]]))])
    assert "empty" in got.text
    with pytest.raises(TypeError, match=r"'file_0.wav' must be a PIL image, a real array or a recording .*, got str"):
        page(mistakes=[(0, "file_0.wav")])
    with pytest.raises(ValueError, match="index must lie in 0 to 11, got 12"):
        page(mistakes=[(12, np.zeros((1, 9)))])


@pytest.mark.parametrize("scale", [0, 1e-300, 1e-9, 1e12, 3e38])
def test_signals_of_any_size(page, scale):
    got = page(mistakes=[(0, scale * np.sin(np.arange(99.0))[None] + scale), (1, np.full((1, 1), scale))], history=[])
    assert len(got.curves) == 1 + 1
    assert len(got.dots) == 1
    assert not re.search("nan|inf", " ".join(path["d"] for path in got.all("path")))


def test_a_missing_end_has_its_time(page):
    signal = np.where(np.arange(200) < 50, 1.0, np.nan)
    assert {"50", "100", "150"} <= set(page(mistakes=[(0, signal)], history=[]).words)


@pytest.mark.parametrize("classes", [2, 20, 21, 100, 300])
def test_any_number_of_classes(page, classes):
    names = tuple(f"category {i} with a rather long descriptive name" for i in range(classes))
    got = page(ev=evaluation(n=3 * classes, classes=classes, wrong=classes, class_names=names), history=[])
    assert all(name in got.text for name in names)
    assert len(got.source) < 300_000
    if classes <= 20:
        assert "numbers confusion upright" in got.source or classes == 2
    else:
        (matrix,) = got.all("image")
        assert decode({"src": matrix["href"]}).size == (classes, classes)
        assert "category 0 with a rat…" in got.text
        assert "The commonest confusions" in got.text
        assert got.text.count("category 0 with a rather long") == 2  # its row, and the first confusion
    if classes > 50:
        assert f"The other {classes - 50} classes" in got.text


def test_a_class_without_examples(page):
    got = page(ev=Evaluation(("x", "y", "z"), np.array([0, 1]), np.eye(3)[:2], ("a", "b")))
    assert re.search(r"<bdi>z</bdi></th><td>0</td><td class=\"share\">–</td><td>–</td><td>–</td>", got.source)
    assert "mean over the 2 classes tested" in got.text


def test_two_dozen_noisy_examples_stay_small(page):
    rng = np.random.default_rng(0)
    ev = evaluation(n=30, wrong=24)
    photo = Image.fromarray(rng.integers(0, 256, (600, 800, 4), dtype=np.uint8))
    small = Image.fromarray(rng.integers(0, 256, (95, 95, 3), dtype=np.uint8))
    noise = Recording(rng.normal(size=(12, 60_000)), 8000)
    patchy = np.where(rng.random((8, 259)) < 0.5, np.nan, noise.values[:8, :259])  # many points without neighbours
    for example in (photo, small, noise, patchy):
        assert len(page(ev=ev, mistakes=[(i, example) for i in range(24)]).source) < 1_500_000


def test_a_failure_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_report(report(mistakes=[(0, object())]), path)

    def full(self, data):
        self.write_text("half", encoding="utf-8")
        raise OSError("no space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        write_report(report(), path)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_report(report(), str(path))
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_percent():
    got = [_percent(x).replace("\N{NBSP}", " ") for x in (None, 0.0, 1.0, 0.98765, 0.9999, 0.0001)]
    assert got == ["–", "0.0 %", "100.0 %", "98.8 %", "> 99.9 %", "< 0.1 %"]


def test_thinning_keeps_the_outline():
    y = np.sin(np.linspace(0, 9, 100_003))
    y[77_777], y[30_000:40_000] = 7.0, np.nan
    x, got = _thin(np.arange(len(y)), y, 100)
    assert len(x) == len(got) <= 200
    assert got[np.isfinite(got)].max() == 7.0
    assert (np.diff(x) >= 0).all()
    assert np.isnan(got[(x > 31_100) & (x < 38_900)]).all()
    assert np.isfinite(got[(x < 28_000) | (x > 40_000)]).all()
