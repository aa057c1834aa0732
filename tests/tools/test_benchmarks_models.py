"""The benchmarks of mixed batches and of a model for a GPU, run on the CPU with what belongs to a GPU replaced."""

import bench_grouped
import bench_model
import harness
import pytest
import tables
import torch
from fake_gpu import read


@pytest.mark.parametrize("layout", bench_grouped.LAYOUTS)
def test_all_ways_to_mix_adapters_give_the_same(layout):
    case = harness.Case("forward_backward", 256, 8, 2, torch.float64)
    batch = bench_grouped.make_batch(case, 3, layout, "cpu", seed=1)
    outputs = {name: operator(batch) for name, (operator, _) in bench_grouped.OPERATORS.items()}
    for name in ("loop", "adapter_names"):
        torch.testing.assert_close(outputs[name], outputs["adapterx"])
    assert not torch.allclose(outputs["one adapter"], outputs["adapterx"])
    gradients = bench_grouped.make_call("adapterx", case, batch)()
    looped = bench_grouped.make_call("loop", case, batch)()
    torch.testing.assert_close(looped[0], gradients[0])
    torch.testing.assert_close(torch.stack(looped[1::4]), gradients[1])


def test_the_benchmark_of_the_grouped_operator(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_grouped, "SHAPES", {"cpu": (128, 8, 2, 2, torch.float32)})
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.grouped_table() == "Not measured yet."
    bench_grouped.main(["--device", "cuda", "--repeats", "1", "--results", str(tmp_path)])
    table = tables.grouped_table()
    assert "NVIDIA Fake (sm_90)" in table
    assert "| 128 × 8, 2 | 2 adapters, sequences of 64 | forward + backward |" in table
    assert "–" not in table


def test_the_benchmark_of_a_model(gpu, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    scale = bench_model.Scale(32, 48, 2, 4, 4, torch.float32, (2, 5), (1, 6), (2, 3))
    monkeypatch.setattr(bench_model, "SCALES", {"cpu": scale})
    monkeypatch.setattr(bench_model, "MODES", dict(bench_model.MODES))
    monkeypatch.setattr(bench_model, "GRAPH_DEVICES", ("cpu",))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    bench_model.main(["--device", "cuda", "--repeats", "1", "--results", str(tmp_path)])
    rows = read(tmp_path, "bench_model_cuda_NVIDIA_Fake.csv")
    modes = {row["mode"]: row["num_tokens"] for row in rows}
    assert modes == {"forward": "10", "prefill": "6", "decode": "2", "decode graph": "2"}
    metrics = {row["metric"] for row in rows if row["implementation"] == "eager"}
    assert metrics == {"time", "time / adapterx", "time / base"}
    assert "| Llama with 2 layers | decode graph, 2 tokens |" in tables.model_table()


def test_the_models_share_their_weights_and_differ_by_the_adapters():
    pytest.importorskip("transformers")
    scale = bench_model.Scale(32, 48, 2, 4, 4, torch.float32, (2, 5), (1, 6), (2, 3))
    models = bench_model.make_models(scale, "cpu")
    own = {id(parameter) for parameter in models["base"].parameters()}
    added = [name for name, parameter in models["adapterx"].named_parameters() if id(parameter) not in own]
    assert len(own) + len(added) == len(list(models["adapterx"].parameters()))
    assert len({name.split(".adapterx.")[0] for name in added}) == 4
    assert not [name for name, _ in models["base"].named_modules() if "adapterx" in name]
    for name, make in bench_model.MODES.items():
        calls = [make(models[kind], scale, "cpu") for kind in ("base", "adapterx")]
        base, adapted = (bench_model.in_inference_mode(call)()[0] for call in calls)
        assert base.shape == adapted.shape, name
        torch.testing.assert_close(base, adapted, atol=1e-2, rtol=0)
        assert not torch.equal(base, adapted)


def test_decoding_forgets_its_token():
    pytest.importorskip("transformers")
    scale = bench_model.Scale(32, 48, 2, 4, 4, torch.float32, (2, 5), (1, 6), (2, 3))
    step = bench_model.decode_call(bench_model.make_models(scale, "cpu")["base"], scale, "cpu")
    with torch.inference_mode():
        assert torch.equal(step()[0], step()[0])
