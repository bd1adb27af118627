"""The bench of speed on a tiny network: who computes the same, what ratios are of, and where it goes on."""

import importlib
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
bench = importlib.import_module("speed")
case_of = importlib.import_module("speed_case")
goals = importlib.import_module("speed_goals")
parties = importlib.import_module("speed_parties")
report = importlib.import_module("speed_report")
work = importlib.import_module("speed_work")

TINY = (("input_size", (32, 32)), ("num_classes", 7))
PEERS = ("timm", "ours", "transformers", "torchvision")
QUICK = {"arguments": TINY, "seconds": 0.0, "rounds": 5}
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")


def row(party, ratio, table="forward", network="vit_base_patch16_224", batch=8, **more):
    values = {"device": "cpu", "precision": "float32", "ms": 100 / ratio, "low": 99 / ratio, "high": 102 / ratio}
    values |= {"rounds": 9, "ratio": ratio, "share": 0.5, "difference": 0.0, "more": {"ceiling": 180.0, **more}}
    values |= {
        "threads": 2,
        "cores": 2,
        "machine": "a CPU",
        "software": "torch 2",
        "commit": "abc",
        "command": "python speed.py",
    }
    return work.Row(table=table, network=network, batch=batch, party=party, **values)


def test_every_library_computes_the_same_and_ratios_are_to_timm():
    found = case_of.forward(work.Case("forward", "vit_pico", 2, PEERS, **QUICK))["rows"]
    assert list(found) == list(PEERS)
    assert found["timm"]["ratio"] == 1
    assert all(0 <= values["difference"] < 1e-4 for values in found.values())
    assert all(
        values["rounds"] == 5 and 0 < values["low"] <= values["ms"] <= values["high"] for values in found.values()
    )
    assert all(0 < values["share"] < 2 for values in found.values())


@pytest.mark.parametrize("kind", ["forward", "training"])
def test_in_bfloat16_one_party_stays_in_float32(kind):
    ways = ("timm", "timm, float32", "ours", "ours, OpenVINO")[: 4 if kind == "forward" else 3]
    case = work.Case("bfloat16", "vit_pico", 2, ways, kind, precision="bfloat16", **QUICK)
    found = case_of.KINDS[kind](case)["rows"]
    assert list(found) == list(ways)
    if kind == "forward":
        assert found["timm, float32"]["difference"] < 1e-4
        assert all(1e-3 < found[party]["difference"] < 0.1 for party in ("timm", "ours"))


def test_the_network_with_other_weights_is_told_so():
    pytest.importorskip("vit_pytorch")
    for size, patch in (((32, 32), 16), ((64,), 16)):
        given = (("input_size", size), ("patch_size", patch), ("num_classes", 7), ("in_channels", 3))
        found = case_of.forward(work.Case("signals", "vit_pico", 2, ("vit-pytorch", "ours"), arguments=given, rounds=5))
        assert found["rows"]["vit-pytorch"]["difference"] == -1
        assert found["rows"]["vit-pytorch"]["ratio"] == 1  # where timm has no such network, the first is the measure


def test_graphs_of_both_are_run_and_merged_tokens_are_less_work():
    ways = ("timm", "ours", "timm, ONNX Runtime", "ours, OpenVINO", "ours, 1 merged")
    found = case_of.forward(work.Case("exact", "vit_pico", 2, ways, **QUICK))["rows"]
    assert all(found[party]["difference"] < 1e-4 for party in ways[:4])
    assert found["ours, 1 merged"]["difference"] > 1e-4
    model = case_of.model_of(work.Case("exact", "vit_pico", 2, ways, **QUICK)).eval()
    x = torch.zeros(1, 3, 32, 32)
    costs = [case_of.forward_party(work.Case("", "vit_pico", 2, ways, **QUICK), p, model, x)[1] for p in ways]
    assert costs[0] == costs[2] > costs[1] == costs[3] > costs[4]


def test_a_party_that_answers_otherwise_stops_its_case(monkeypatch):
    def wrong(model):
        network = parties.timm_network(model)
        network.head.weight.data.mul_(1.01)
        return network

    monkeypatch.setitem(parties.NETWORKS, "timm", wrong)
    with pytest.raises(RuntimeError, match="timm answers otherwise than ours: by"):
        case_of.forward(work.Case("forward", "vit_pico", 2, ("timm", "ours"), **QUICK))


def test_training_steps_change_the_weights_and_memory_is_of_the_network():
    case = work.Case("training", "vit_pico", 2, PEERS, "training", **QUICK)
    found = case_of.training(case)["rows"]
    assert list(found) == list(PEERS)
    assert all(values["share"] > 0 for values in found.values())
    model = case_of.model_of(case)
    before = model.head.weight.clone()
    case_of.step_of(case, "ours", model)()
    assert (model.head.weight != before).any()
    dropping = replace(case, arguments=(*TINY, ("drop_path_rate", 0.2)), parties=("timm", "ours"))
    assert case_of.training(dropping)["rows"]["ours"]["share"] == 0  # nobody counts what was dropped
    if Path("/proc/self/clear_refs").exists():
        # gradients and two moments of AdamW beside the 22 MB of weights
        alone = replace(case, network="vit_tiny", parties=("ours",), kind="memory")
        taken = bench.in_process(alone)["rows"]["ours"]["more"]
        assert 80 < taken["MB"] < 200
        assert 80 < taken["live"] < 120


def test_turns_begin_with_another_and_the_clock_is_waited_for(monkeypatch):
    assert [case_of.turned("abc", count) for count in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
    clock, order = [0.0], []
    monkeypatch.setattr(case_of.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(case_of.time, "sleep", lambda seconds: None)

    def takes(name, seconds):
        def call():
            order.append(name)
            clock[0] += seconds * (1 + len(order) // 5)  # the machine becomes slower

        return call

    case = work.Case("forward", "vit_pico", 2, ("timm", "ours"), seconds=1e9, rounds=8)
    times = case_of.measure({"timm": takes("timm", 3.0), "ours": takes("ours", 2.0)}, case)
    assert [len(seconds) for seconds in times.values()] == [8, 8]
    assert order[:8] == ["timm", "ours"] * 2 + ["timm", "ours", "ours", "timm"]
    few = case_of.measure({"timm": takes("timm", 3.0)}, replace(case, seconds=1))
    assert len(few["timm"]) == case_of.LEAST_ROUNDS


def test_a_bench_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    done = []

    def measured(case):
        done.append(case)
        if case.batch == 2:
            raise RuntimeError("out of memory")
        values = {
            "ms": 12.3456789,
            "low": 12.0,
            "high": 13.0,
            "rounds": 5,
            "ratio": 1.5,
            "share": 0.5,
            "difference": 0.0,
        }
        return {"rows": {party: values for party in case.parties}, "ceiling": 180.0}

    monkeypatch.setattr(bench, "in_process", measured)
    cases = [work.Case("forward", "vit_pico", batch, ("timm", "ours")) for batch in (1, 2)]
    path = tmp_path / "performance.json"
    failed = bench.work_off(cases, path, "abc", "python speed.py", False)
    assert failed == ["forward vit_pico batch 2: out of memory"]
    rows = work.read_rows(path)
    assert [(r.party, r.batch, r.ms, r.more) for r in rows] == [
        ("timm", 1, 12.3457, {"ceiling": 180.0}),
        ("ours", 1, 12.3457, {"ceiling": 180.0}),
    ]
    bench.work_off(cases, path, "abc", "python speed.py", False)
    assert [case.batch for case in done] == [1, 2, 2]
    bench.work_off(cases, path, "def", "python speed.py", False)  # another commit is another program
    assert [case.batch for case in done] == [1, 2, 2, 1, 2]
    assert len(work.read_rows(path)) == 2
    path.write_text(json.dumps([{"table": "forward"}]))
    with pytest.raises(ValueError, match="has other columns than"):
        work.read_rows(path)


def test_cases_travel_between_processes(tmp_path):
    case = work.Case("signals", "vit_tiny", 1, ("ours",), arguments=tuple(bench.SIGNAL.items()))
    (tmp_path / "case.json").write_text(json.dumps(work.asdict(case)))
    assert work.Case.read(tmp_path / "case.json") == case


def test_a_gpu_has_two_precisions_and_no_runtimes_of_cpus():
    cases = list(bench.cases_of([], "", ("vit_tiny_patch16_224",), (1, 8)))
    on_gpu = [made for case in cases for made in bench.on_gpu(case)]
    assert {case.precision for case in on_gpu} == {"float32", "bfloat16"}
    assert {case.device for case in on_gpu} == {"cuda"}
    ways = {party.partition(", ")[2] for case in on_gpu for party in case.parties}
    assert ways == {"", "torch.compile", "8 merged", "13 merged", "16 merged"}
    assert not any(case.kind == "memory" for case in on_gpu)


def test_goals_tell_the_worst_and_the_best():
    rows = [row("timm", 1.0), row("ours", 1.04), row("timm", 1.0, batch=1), row("ours", 0.98, batch=1)]
    table = dict(line.strip("| ").split(" | ", 1) for line in report.goals_table(rows)[2:])
    whole = table["as it is written: at least 1.00× timm, every size and batch"]
    assert whole == "0.98× (ViT-B/16, batch 1) to 1.04× (ViT-B/16, batch 8) | 1 of 2"
    assert table["training step: at least 1.10× timm"] == "not measured | –"
    exact = [row("timm", 1.0, "exact"), row("timm, ONNX Runtime", 1.2, "exact"), row("ours, OpenVINO", 1.26, "exact")]
    found = {goal.text: goal.cells(exact) for goal in goals.GOALS}
    assert found["fastest exact way at batch 8: at least 1.10× timm"][1:] == [
        "1.26× (ViT-B/16, batch 8, OpenVINO)",
        "yes",
    ]
    assert found["and at least ONNX Runtime's of timm's graph, batch 8"][1].startswith("1.05×")
    taken = {"timm": (200.0, 100.0), "ours": (190.0, 88.0)}
    memory = [row(party, 1.0, "memory of training", MB=mb, live=live) for party, (mb, live) in taken.items()]
    told = {
        goal.text: goal.cells(memory)[1:] for goal in goals.GOALS if "memory" in goal.text or "tensors" in goal.text
    }
    assert list(told.values()) == [["0.95× (ViT-B/16, batch 8)", "no"], ["0.88× (ViT-B/16, batch 8)", "yes"]]


def test_merging_counts_where_it_costs_half_a_point_at_most():
    table = "merging a trained model"
    rows = [row("ours", 1.1, table, accuracy=0.99), row("ours, 4 merged", 1.5, table, accuracy=0.986)]
    rows.append(row("ours, 8 merged", 1.9, table, accuracy=0.98))
    (point,) = goals.merged(rows)
    assert (point.value, point.where) == (1.5, "vit_base_patch16_224, ours, 4 merged, -0.40 points")


def test_the_report_has_its_tables_and_its_picture(tmp_path):
    rows = [row("timm", 1.0), row("ours", 1.04), row("timm", 1.0, "training"), row("ours", 1.1, "training")]
    rows.append(row("import torch", 1.0, "start-up", "", 0))
    work.write_rows(tmp_path / "performance.json", rows)
    text = report.write_report(tmp_path).read_text()
    assert (
        "| vit_base_patch16_224, 8 | 1.00×<br>100 ms (99.0–102)<br>0.50 of the ceiling | **1.04×**<br>96.2 ms" in text
    )
    assert "| `import torch` | 0.10 (0.10–0.10) | 1.00 |" in text
    assert "- On a CPU, 2 cores, 2 threads; torch 2." in text
    assert (tmp_path / "performance.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--only", "speed"], "there is no table speed: there are forward"),
        (["--device", "tpu"], "device must be cpu or cuda"),
        (["--run", "nowhere"], "give both, trained models and their pictures"),
        (["--report"], "has no rows"),
    ],
)
def test_complaints(words, complaint, tmp_path):
    with pytest.raises(SystemExit, match=complaint):
        bench.app([*words, "--out", str(tmp_path)], result_action="return_value")
