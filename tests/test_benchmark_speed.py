"""The speed benchmark on a tiny network: equal outputs, ratios, goals, and how it continues."""

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

TINY = (("input_size", (32, 32)), ("num_classes", 7), ("depth", 4))
PEERS = ("timm", "ours", "transformers", "torchvision")
QUICK = {"arguments": TINY, "seconds": 0.0, "rounds": 5}
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*LeafSpec")]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A small matrix product, and no pauses between calls."""
    monkeypatch.setattr(case_of, "SIDE", {"cpu": 512})
    monkeypatch.setattr(case_of, "PAUSE", 0)


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


def test_a_network_with_other_weights_has_no_difference():
    pytest.importorskip("vit_pytorch")
    for size, patch in (((32, 32), 16), ((64,), 16)):
        arguments = (("input_size", size), ("patch_size", patch), ("num_classes", 7), ("in_channels", 3))
        found = case_of.forward(
            work.Case("signals", "vit_pico", 2, ("vit-pytorch", "ours"), arguments=arguments, rounds=5)
        )
        assert found["rows"]["vit-pytorch"]["difference"] == -1
        assert found["rows"]["vit-pytorch"]["ratio"] == 1  # timm has no such network, so ratios are to the first party


def test_graphs_of_both_libraries_run_and_merging_costs_less(monkeypatch):
    ways = ("timm", "ours", "ours, by MKL", "timm, ONNX Runtime", "ours, OpenVINO", "ours, 1 merged")
    costs, forward_party = {}, case_of.forward_party

    def recorded(case, party, model, x):
        answer, costs[party], more = forward_party(case, party, model, x)
        return answer, costs[party], more

    monkeypatch.setattr(case_of, "forward_party", recorded)
    found = case_of.forward(work.Case("exact", "vit_pico", 2, ways, **QUICK))["rows"]
    assert all(found[party]["difference"] < 1e-4 for party in ways[:-1])
    assert found["ours, 1 merged"]["difference"] > 1e-4
    timm, ours, mkl, timm_in_onnx, ours_in_openvino, merged = costs.values()
    assert timm == timm_in_onnx > ours == mkl == ours_in_openvino > merged


def test_by_mkl_the_linear_layers_are_plain_during_a_call(monkeypatch):
    monkeypatch.setenv("NDVIT_LINEAR", "convolution")
    network = case_of.model_of(work.Case("by MKL", "vit_pico", 2, ("ours",), **QUICK)).network
    layer, seen = network.blocks[0].mlp.fc1, []
    layer.register_forward_hook(lambda module, *_: seen.append(type(module)))
    x = torch.zeros(2, 3, 32, 32)
    for way in ("by MKL", ""):
        parties.WAYS[way](network, x, "float32")(x)
    assert seen == [torch.nn.Linear, parties.Linear]


def test_a_party_with_other_outputs_stops_its_case(monkeypatch):
    def wrong(model):
        network = parties.timm_network(model)
        network.head.weight.data.mul_(1.01)
        return network

    monkeypatch.setitem(parties.NETWORKS, "timm", wrong)
    with pytest.raises(RuntimeError, match="the outputs of timm differ from ours by"):
        case_of.forward(work.Case("forward", "vit_pico", 2, ("timm", "ours"), **QUICK))


def test_training_steps_change_the_weights_and_memory_is_measured():
    case = work.Case("training", "vit_pico", 2, PEERS, "training", **QUICK)
    found = case_of.training(case)["rows"]
    assert list(found) == list(PEERS)
    assert all(values["share"] > 0 for values in found.values())
    model = case_of.model_of(case)
    before = model.network.head.weight.clone()
    case_of.step_of(case, "ours", model)()
    assert (model.network.head.weight != before).any()
    dropping = replace(case, arguments=(*TINY, ("drop_path_rate", 0.2)), parties=("timm", "ours"))
    assert case_of.training(dropping)["rows"]["ours"]["share"] == 0  # multiply-adds are not counted with drop path
    if Path("/proc/self/clear_refs").exists():
        # gradients and two moments of AdamW in addition to 22 MB of weights
        alone = replace(case, network="vit_tiny", arguments=TINY[:1], parties=("ours",), kind="memory")
        taken = bench.in_process(alone)["rows"]["ours"]["more"]
        assert 80 < taken["MB"] < 200
        assert 80 < taken["live"] < 120


def test_parties_take_turns_until_the_time_is_over(monkeypatch):
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


def test_a_benchmark_continues_where_it_stopped(tmp_path, monkeypatch, capsys):
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
    failed = bench.measure_all(cases, path, "abc", "python speed.py", False)
    assert failed == ["forward vit_pico batch 2: out of memory"]
    rows = work.read_rows(path)
    assert [(r.party, r.batch, r.ms, r.more) for r in rows] == [
        ("timm", 1, 12.3457, {"ceiling": 180.0}),
        ("ours", 1, 12.3457, {"ceiling": 180.0}),
    ]
    bench.measure_all(cases, path, "abc", "python speed.py", False)
    assert [case.batch for case in done] == [1, 2, 2]
    bench.measure_all(cases, path, "def", "python speed.py", False)  # another commit is measured again
    assert [case.batch for case in done] == [1, 2, 2, 1, 2]
    assert len(work.read_rows(path)) == 2
    path.write_text(json.dumps([{"table": "forward"}]))
    with pytest.raises(ValueError, match="has other columns than"):
        work.read_rows(path)


def test_cases_are_passed_between_processes(tmp_path):
    case = work.Case("signals", "vit_tiny", 1, ("ours",), arguments=tuple(bench.SIGNAL.items()))
    (tmp_path / "case.json").write_text(json.dumps(work.asdict(case)))
    assert work.Case.read(tmp_path / "case.json") == case


def test_cases_of_a_gpu_have_two_precisions_and_no_cpu_runtimes():
    cases = list(bench.cases_of([], "", ("vit_tiny_patch16_224",), (1, 8)))
    on_gpu = [made for case in cases for made in bench.on_gpu(case)]
    assert {case.precision for case in on_gpu} == {"float32", "bfloat16"}
    assert {case.device for case in on_gpu} == {"cuda"}
    ways = {party.partition(", ")[2] for case in on_gpu for party in case.parties}
    assert ways == {"", "torch.compile", "8 merged", "13 merged", "16 merged"}
    assert not any(case.kind == "memory" for case in on_gpu)


def test_goals_list_the_worst_and_the_best_number():
    rows = [row("timm", 1.0), row("ours", 1.04), row("timm", 1.0, batch=1), row("ours", 0.98, batch=1)]
    table = dict(line.strip("| ").split(" | ", 1) for line in report.goals_table(rows)[2:])
    whole = table["eager: at least 1.00× timm, for every size and batch size"]
    assert whole == "0.98× (ViT-B/16, batch 1) to 1.04× (ViT-B/16, batch 8) | 1 of 2"
    assert table["training step: at least 1.10× timm"] == "not measured | –"
    exact = [row("timm", 1.0, "exact"), row("timm, ONNX Runtime", 1.2, "exact"), row("ours, OpenVINO", 1.26, "exact")]
    found = {goal.text: goal.cells(exact) for goal in goals.GOALS}
    assert found["fastest exact way, batch 8: at least 1.10× timm"][1:] == [
        "1.26× (ViT-B/16, batch 8, OpenVINO)",
        "yes",
    ]
    assert found["fastest exact way, batch 8: at least timm in ONNX Runtime"][1].startswith("1.05×")
    taken = {"timm": (200.0, 100.0), "ours": (190.0, 88.0)}
    memory = [row(party, 1.0, "memory of training", MB=mb, live=live) for party, (mb, live) in taken.items()]
    cells = [goal.cells(memory)[1:] for goal in goals.GOALS if "memory" in goal.text]
    assert cells == [["0.95× (ViT-B/16, batch 8)", "no"], ["0.88× (ViT-B/16, batch 8)", "yes"]]


def test_merging_counts_if_it_costs_at_most_half_a_point():
    table = "merging a trained model"
    rows = [row("ours", 1.1, table, accuracy=0.99), row("ours, 4 merged", 1.5, table, accuracy=0.986)]
    rows.append(row("ours, 8 merged", 1.9, table, accuracy=0.98))
    (point,) = goals.merged(rows)
    assert (point.value, point.where) == (1.5, "vit_base_patch16_224, ours, 4 merged, -0.40 points")


def test_the_report_has_tables_and_a_figure(tmp_path):
    rows = [row("timm", 1.0), row("ours", 1.04), row("timm", 1.0, "training"), row("ours", 1.1, "training")]
    rows.append(row("import torch", 1.0, "start-up", "", 0))
    work.write_rows(tmp_path / "performance.json", rows)
    text = report.write_report(tmp_path).read_text()
    assert (
        "| vit_base_patch16_224, 8 | 1.00×<br>100 ms (99.0–102)<br>0.50 of the ceiling | **1.04×**<br>96.2 ms" in text
    )
    assert "| `import torch` | 0.10 (0.10–0.10) | 1.00 |" in text
    assert "- a CPU, 2 cores, 2 threads; torch 2." in text
    assert (tmp_path / "performance.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "speed"], "unknown table speed: known are forward"),
        (["--device", "tpu"], "device must be cpu or cuda"),
        (["--run", "nowhere"], "expected existing paths for both"),
        (["--report"], "has no rows"),
    ],
)
def test_unsuitable_arguments_raise(words, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        bench.app([*words, "--out", str(tmp_path)], result_action="return_value")
