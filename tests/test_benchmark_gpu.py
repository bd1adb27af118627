"""The script for a GPU, on a CPU: every part runs, rows are written as they come, and nothing begins too late."""

import importlib
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
gpu = importlib.import_module("gpu")
case_of = importlib.import_module("speed_case")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*LeafSpec")]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing is compiled, cases are measured in this process, a small matrix product, and no pauses."""
    monkeypatch.setattr(case_of, "SIDE", {"cpu": 64})
    monkeypatch.setattr(case_of, "PAUSE", 0)
    monkeypatch.setattr(case_of, "WAYS", {"torch.compile": lambda network, x, precision: network})
    monkeypatch.setattr(gpu.torch, "compile", lambda network: network)
    monkeypatch.setattr(gpu, "in_process", lambda case, timeout: case_of.training(case))
    monkeypatch.setattr(gpu.os, "sched_getaffinity", lambda process: {0}, raising=False)
    monkeypatch.setattr(gpu, "peak", lambda name: 1.0)


def trial(tmp_path, **more):
    gpu.main(device="cpu", tiny=True, seconds=0, output=tmp_path / "gpu.json", **more)
    return json.loads((tmp_path / "gpu.json").read_text())


def test_every_part_is_measured_and_printed(tmp_path, capsys):
    found = trial(tmp_path)
    steps = found["training steps"]
    assert [row["network"] for row in steps] == [size[0] for size in (gpu.LARGE, gpu.BASE, gpu.SMALL) for _ in range(2)]
    assert {row["party"] for row in steps} == set(gpu.PARTIES)
    for row in steps:
        assert row["pictures a second"] == pytest.approx(4000 / row["ms"])
        assert 0 < row["share of the peak"] < 1
    assert [row["step of ViT-B"] for row in found["ways"]] == [
        "as it is",
        "channels-last",
        "crop and mixing on the GPU",
    ]
    assert [row["processes that read"] for row in found["pictures"]] == [1]
    assert all(row["difference"] < limit for row, limit in zip(found["numbers"], (1e-5, 0.1), strict=True))
    printed = capsys.readouterr().out
    assert printed.count("| vit_") == 6
    assert "failed" not in printed


def test_a_batch_that_does_not_fit_is_halved_and_a_failure_ends_its_part_alone(tmp_path, monkeypatch):
    def fails(case, timeout):
        if case.network == gpu.BASE[0]:
            raise RuntimeError("no kernel")
        if case.batch > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return case_of.training(case)

    monkeypatch.setattr(gpu, "in_process", fails)
    found = trial(tmp_path)
    assert [row.get("batch", row.get("failed")) for row in found["training steps"]] == [2, 2, "no kernel", 2, 2]
    assert len(found["ways"]) == 3


def test_nothing_begins_after_the_time(tmp_path):
    assert trial(tmp_path, minutes=0)["ways"] == [{"left out": "0 minutes were over"}]
