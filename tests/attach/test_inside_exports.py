"""Everything inside an adapter at once, in exported files and compiled."""

import torch
import transformers
from tiny_adapters import randomise
from tiny_models import SIZES

from adapterx import AdapterConfig, attach
from adapterx.export import to_onnx, to_torchscript

EVERYTHING = AdapterConfig(
    bottleneck_dim=4,
    activation="mish",
    scaling="learned_per_channel",
    norm_before=True,
    norm_after="branch",
    gating=True,
    stochastic_depth=0.5,
    phm={"dim": 4},
    invertible="glow",
    train_norms=True,
)


def adapted():
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SIZES | {"max_position_embeddings": 40})).eval()
    attach(model, EVERYTHING)
    randomise(model)
    return model


def test_files_give_what_the_model_gives(tmp_path):
    model = adapted()
    # Each is compared with the model at shapes unlike the example's before it is there.
    assert to_torchscript(model, tmp_path / "model.pt")["validation"]["max_abs_diff"] < 1e-5
    assert to_onnx(model, tmp_path / "portable", mode="portable")["validation"]["max_abs_diff"] < 1e-5


def test_is_one_graph():
    model, ids = adapted(), torch.randint(3, 99, (2, 7))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids).logits, model(ids).logits)
