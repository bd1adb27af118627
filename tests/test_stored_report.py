"""The page of a run written again from what the run stored: languages, figures, channel names, references."""

import csv
import json
import re
import string
from dataclasses import replace

import numpy as np
import pytest
from jinja2 import nodes

from ndvit.evaluation.base import wilson_interval
from ndvit.evaluation.maps import feature_map, places
from ndvit.evaluation.recordings import RecordingEvaluation
from ndvit.evaluation.report import page_environment, render
from ndvit.evaluation.stored import STORED_FILE, load_report, store_report
from ndvit.evaluation.words import current_language, language, table, translated, translated_line
from ndvit.explain.reasons import nearest
from ndvit.model import load_model
from test_evaluation import Counting
from test_report import Page, report
from tinyruns import QUIET, command, run_tiny

CHANNELS = ["acc_x [m/s2]", "acc_y [m/s2]"]
CHINESE = re.compile("[\u4e00-\u9fff]")


def write_long_table(path):
    """40 recordings of 12 moments at 50 Hz, two named channels, of 10 patients; the class is the mean."""
    random = np.random.default_rng(0)
    lines = [",".join(["id", "time_s", *CHANNELS, "label", "patient"])]
    for i in range(40):
        x = random.normal(size=(12, 2)) + 0.8 * (i % 2)
        lines += [f"r{i:02},{t / 50:.2f},{a:.4f},{b:.4f},{'ab'[i % 2]},p{i % 10}" for t, (a, b) in enumerate(x)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on the table, grouped by patient, and the table."""
    folder = tmp_path_factory.mktemp("stored")
    data = write_long_table(folder / "long.csv")
    options = {"group_by": "patient", "test_fraction": 0.4, "steps": 3, "batch_size": 8, "patch_size": 4}
    return run_tiny(str(data), folder / "run", **options), data


@pytest.fixture(scope="module")
def stored(made):
    return load_report(made[0].folder / STORED_FILE)


def test_the_page_is_the_same_again(made, tmp_path, capsys):
    run, _ = made
    assert command("report", run.folder, "--output", tmp_path / "again.html") == 0
    assert (tmp_path / "again.html").read_text() == run.report.read_text()
    assert "written from the results" in capsys.readouterr().out
    assert command("report", run.folder, "--output", tmp_path / "again.html") == 2
    assert "again.html exists" in capsys.readouterr().err


@pytest.mark.usefixtures("_drawn")
def test_channels_have_their_names_and_seconds(made, stored):
    run, _ = made
    assert load_model(run.folder).provenance["channel_names"] == CHANNELS
    assert stored.reasons[0].example.channels == tuple(CHANNELS)
    assert stored.reasons[0].example.rate == 50
    got = Page(render(stored))
    assert got.text.count("acc_x [m/s2]") > len(stored.reasons)
    assert "time (s)" in got.text


def test_each_mistake_has_a_correct_example_of_its_class_beside_it(stored):
    ev = stored.evaluation
    names = list(ev.names)
    compared = [reason for reason in stored.reasons if reason.reference is not None]
    assert compared
    for reason in compared:
        one, other = names.index(reason.name), names.index(reason.reference_name)
        assert ev.labels[one] == ev.labels[other] == ev.predicted[other]
        assert reason.reference.rows == reason.example.rows
        assert reason.reference.relevance is None


def test_the_reference_is_the_nearest_by_features():
    features = np.array([[0.0], [5.0], [1.0], [0.9]])
    indices = np.array([2, 4, 6, 8])
    assert nearest(2, np.array([4, 6, 8]), indices, features) == 8
    assert nearest(2, np.array([3, 4]), indices, features) == 4  # of those whose features are known
    assert nearest(2, np.array([3, 5]), indices, features) == 3
    assert nearest(2, np.array([], dtype=int), indices, features) is None


def test_groups_are_in_page_and_results(made, stored):
    run, _ = made
    results = json.loads((run.folder / "results.json").read_text())
    assert results["resampled"] == "groups"
    assert {row["name"] for row in results["by_group"]} == set(stored.evaluation.groups)
    text = Page(run.report.read_text()).text
    assert "Results by group" in text
    assert f"bootstrap over {len(results['by_group'])} groups" in text


def test_a_single_group_is_a_caveat_everywhere(stored):
    only = replace(stored, evaluation=stored.evaluation.grouped(["p7"] * len(stored.evaluation)))
    ev = only.evaluation
    assert ev.accuracy_interval == wilson_interval(len(ev) - len(ev.mistakes), len(ev))
    [caveat] = ev.caveats()
    assert caveat.startswith(
        "All examples tested are of one group, p7: the intervals describe the result for this group only"
    )
    assert ev.to_dict()["caveats"] == [caveat]
    assert ev.table().endswith(f"\n\n{caveat}")
    text = Page(render(only)).text
    assert caveat in text
    assert "(Wilson, within the only group)" in text
    assert "groups that" not in text
    assert "over groups" not in text
    with language("zh"):
        assert "p7" in ev.caveats()[0]
        assert not re.search("[a-z]{3}", ev.caveats()[0])
    assert "Only 4 groups" in ev.grouped([f"p{i % 4}" for i in range(len(ev))]).caveats()[0]
    assert not ev.grouped([f"p{i % 5}" for i in range(len(ev))]).caveats()
    assert not ev.grouped(None).grouped([str(i) for i in range(len(ev))]).caveats()


def test_counts_name_recordings_and_windows(stored):
    ev = stored.evaluation
    both = RecordingEvaluation(ev, ev.grouped(["r0"] * len(ev)))
    page = replace(stored, evaluation=both, cards=(), reasons=(), map=None)
    got = Page(render(page))
    text = got.text
    assert f"{len(ev)} recordings, " in text
    assert "recordings" in got.words  # the head of a column of the table of classes
    assert not re.search(r"\d examples", text.partition("The run")[0])
    table = both.table()
    assert len(re.findall(r"^(recordings|windows) +\d+", table, re.M)) == 2
    assert not both.windows.caveats()  # of the recording itself, which is no group of recordings
    assert f"{len(ev)} 条记录" in Page(render(page, "zh")).text


@pytest.mark.usefixtures("_drawn")
def test_the_map_has_every_test_example(stored):
    assert stored.map.indices.tolist() == list(range(len(stored.evaluation)))
    assert stored.map.components.shape[1] <= 32
    with language("zh"):
        figure, legend = stored.evaluation.draw_map(stored.map, "pca")
    assert list(legend) == ["a", "b"]
    assert f"共 {len(stored.evaluation)} 个样本的嵌入图" in figure


def test_a_map_needs_examples_that_differ():
    assert feature_map(np.arange(2), np.eye(2)) is None
    assert feature_map(np.arange(5), np.ones((5, 4))) is None
    found = feature_map(np.arange(40), spread())
    assert found.shares[:2] == pytest.approx([0.9, 0.1], abs=0.06)
    assert places(found, "tsne").shape == (40, 2)


def spread():
    values = np.zeros((40, 5))
    values[:, :2] = np.random.default_rng(0).normal(size=(40, 2)) * [3, 1]
    return values


@pytest.mark.slow
@pytest.mark.usefixtures("_drawn")
def test_figures_are_written_for_a_paper(made, stored, tmp_path, capsys):
    run, _ = made
    figures = tmp_path / "figures"
    assert command("report", run.folder, "--output", tmp_path / "page.html", "--figures", figures) == 0
    found = sorted(path.name for path in figures.iterdir())
    for name in ("loss", "roc", "precision-recall", "reliability", "matrix", "embedding-map", "reason-0"):
        assert {f"{name}.svg", f"{name}.pdf"} <= set(found)
    assert f"{len(found) // 2} figures" in capsys.readouterr().out
    assert (figures / "roc.pdf").read_bytes().startswith(b"%PDF")
    svg = (figures / "loss.svg").read_text()
    assert "#2563eb" in svg
    assert "var(--" not in svg
    assert (tmp_path / "page.html").read_text() == render(stored)  # and not in the colours of paper


@pytest.mark.usefixtures("_drawn")
def test_a_page_in_chinese(made, tmp_path):
    run, _ = made
    assert command("report", run.folder, "--output", tmp_path / "zh.html", "--language", "zh") == 0
    got = Page((tmp_path / "zh.html").read_text(encoding="utf-8"))
    assert got.all("html") == [{"lang": "zh-Hans"}]
    for words in ("混淆矩阵", "学习曲线", "决定因素", "各组结果", "时间 (s)", "acc_x [m/s2]", "灵敏度"):
        assert words in got.text
    assert all(CHINESE.search(label) for label in got.labels)
    headings = re.findall("<h[23][^>]*>(.*?)</h", got.source)
    assert len(headings) > 8
    assert all(CHINESE.search(heading) for heading in headings)
    assert current_language() == "en"


def test_every_text_of_the_templates_is_in_the_table():
    environment = page_environment()
    for name in environment.list_templates(extensions=["jinja"]):
        source, _, _ = environment.loader.get_source(environment, name)
        for call in environment.parse(source).find_all(nodes.Call):
            if isinstance(call.node, nodes.Name) and call.node.name == "_":
                texts = [one.value for one in call.args[0].find_all(nodes.Const)] or [
                    getattr(call.args[0], "value", "")
                ]
                for text in texts:
                    assert not isinstance(text, str) or not text or text in table("zh"), f"{name}: {text}"


def test_places_for_values_are_the_same_in_each_language():
    for english, chinese in table("zh").items():
        fields = [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in (english, chinese)]
        assert fields[0] == fields[1], english


def test_texts_and_lines():
    assert translated("The other {n} groups", n=3) == "The other 3 groups"
    with language("zh"):
        assert translated("The other {n} groups", n=3) == "其余 3 个组"
        assert translated_line("30 training, 0 validation, 20 test") == "训练 30，验证 0，测试 20"
        steps = translated_line("100 of 8 examples, peak learning rate 0.003, then 15 on all training examples")
        assert steps == "100 步，每步 8 个样本，最高学习率 0.003，然后用全部训练样本再训练 15 步"
        for line in ("a line of its own", "the way to a file"):  # which the table lacks, and which {low} to {high} fits
            assert translated_line(line) == line
    with pytest.raises(ValueError, match="language must be one of en, zh, got 'fr'"), language("fr"):
        pass


def test_a_chinese_run_and_table(tmp_path, capsys, made):
    run, data = made
    assert command("evaluate", run.folder, data, "--language", "zh", "--no-progress") == 0
    printed = capsys.readouterr().out
    assert "准确率" in printed
    assert "平衡准确率" in printed
    assert command("train", data, "--language", "fr", "--output", tmp_path / "no") == 2


def test_the_language_is_a_setting_of_the_run(made):
    run, _ = made
    assert "language" not in (run.folder / "config.yaml").read_text()


def test_predictions_of_an_evaluation_are_written(made, tmp_path):
    run, data = made
    path = tmp_path / "out.csv"
    run.model.evaluate(str(data), predictions=path, **QUIET)
    assert path.read_text() == (run.folder / "predictions.csv").read_text()
    with path.open() as file:
        assert list(csv.DictReader(file).fieldnames) == ["name", "true", "group", "class", "a", "b"]
    with pytest.raises(FileExistsError, match=r"out\.csv exists"):
        run.model.evaluate(str(data), predictions=path, **QUIET)


def test_what_cannot_be_stored_is_left_out(tmp_path):
    ev = Counting(tuple("ab"), np.array([1.0, -2.0]))
    assert not store_report(report(ev=ev), tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()
    with pytest.raises(FileNotFoundError, match=r"has no report\.npz"):
        load_report(tmp_path / STORED_FILE)


@pytest.mark.parametrize("damage", ["cut", "format", "class"])
def test_damaged_files_are_refused(tmp_path, damage):
    path = tmp_path / STORED_FILE
    assert store_report(report(), path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        with np.load(path) as old:
            arrays = {name: old[name] for name in old.files}
        head = arrays["report"].tobytes()
        head = (
            head.replace(b'"format": 1', b'"format": 9') if damage == "format" else head.replace(b"Report", b"system")
        )
        np.savez(path, **arrays | {"report": np.frombuffer(head, dtype=np.uint8)})
    with pytest.raises(ValueError, match=r"report\.npz is damaged, or no file of ndvit"):
        load_report(path)
