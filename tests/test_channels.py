"""Names of channels: new data whose channels stand in another order than in the training are refused on every door."""

import numpy as np
import pytest

from exports import small_model
from ndvit.data.channels import check_channels
from ndvit.data.messages import DataWarning
from ndvit.data.sources.load import load_source
from tinyruns import QUIET

SIGNAL = np.random.default_rng(0).normal(size=(2, 24)).astype(np.float32)
REFUSED = r"has the channels gyro, acc, and the model was trained on acc, gyro, in this order"


def write(path, names, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, np.asarray(values).T, delimiter=",", header=",".join(names), comments="")
    return str(path)


@pytest.fixture
def model():
    made = small_model("signal")
    made.provenance["channel_names"] = ["acc", "gyro"]
    return made


def test_a_recording_with_its_channels_in_another_order_is_refused(model, tmp_path):
    same = write(tmp_path / "same.csv", ("acc", "gyro"), SIGNAL)
    turned = write(tmp_path / "turned.csv", ("gyro", "acc"), SIGNAL[::-1])
    expected = model.predict_proba(same, log=str)
    for ask in (model.predict_proba, model.explain):
        with pytest.raises(ValueError, match=REFUSED):
            ask(turned, log=str)
    np.testing.assert_allclose(model.predict_proba(turned, channels="acc,gyro", log=str), expected, rtol=1e-6)
    faults = []
    assert len(model.predict(same, turned, on_fault=faults.append, **QUIET)) == 1
    assert "another" not in faults[0]
    assert "in this order: change the order of the data" in faults[0]


def test_data_sets_with_their_channels_in_another_order_are_refused(model, tmp_path):
    for number, name in enumerate(model.classes * 2):
        write(tmp_path / "turned" / name / f"{number}.csv", ("gyro", "acc"), SIGNAL[::-1] + number)
    source = str(tmp_path / "turned")
    for ask in (model.evaluate, model.embed):
        with pytest.raises(ValueError, match=REFUSED):
            ask(source, **QUIET)
    with pytest.raises(ValueError, match=REFUSED):
        model.export(tmp_path / "model.onnx", data=source, log=str)
    assert len(model.embed(source, channels="acc,gyro", **QUIET)) == 2 * len(model.classes)


def test_other_names_are_doubtful(model, tmp_path):
    path = write(tmp_path / "other.csv", ("x", "y"), SIGNAL)
    with pytest.warns(DataWarning, match="has the channels x, y, and the model was trained on acc, gyro: they are"):
        model.predict(path, **QUIET)


def test_a_training_and_a_test_set_have_their_channels_in_one_order(tmp_path):
    """Long tables, in which the rows of an id are an example."""
    for split, names in (("TRAIN", "acc,gyro"), ("TEST", "gyro,acc")):
        rows = [f"{i},{'ab'[i % 2]},{t},{i + t / 7},{i - t / 3}" for i in range(8) for t in range(12)]
        (tmp_path / f"toy_{split}.csv").write_text("\n".join([f"id,label,time,{names}", *rows]))
    with pytest.raises(ValueError, match=r"the test set: has the channels gyro, acc, and the training set has acc"):
        load_source(tmp_path / "toy_TRAIN.csv", progress=False)


@pytest.mark.parametrize(
    "names", [("acc", "gyro"), ("Acc", " GYRO "), ("acc_", "gyro"), (), ("acc",), ("acc", "gyro", "mag")]
)
def test_names_that_do_not_differ_are_read(names):
    check_channels(names, ("acc", "gyro"), "x.csv")


def test_names_that_differ_in_their_punctuation_only_are_compared_as_they_are():
    check_channels(("a+", "a-"), ("a+", "a-"), "x.csv")
    with pytest.raises(ValueError, match=r"x.csv: has the channels a-, a\+"):
        check_channels(("a-", "a+"), ("a+", "a-"), "x.csv")
