"""Use an installed adapterx as a program would: the operator, its gradients, an adapter trained, saved, loaded.

    python distribution/check_installed.py               # the compiled operators must be there
    python distribution/check_installed.py --plain       # there must be none, which a warning says
    python distribution/check_installed.py --in FOLDER   # it must be the one in that folder

Needs torch and what adapterx needs, nothing else. Ends with an error where something is wrong.
"""

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

TORCH = torch.__version__


def check_import(folder: Path | None, *, plain: bool) -> None:
    """Import the package; the one warning that it may give says that there is no library."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from adapterx import ops
    said = [str(warning.message) for warning in caught if "adapterx" in str(warning.message)]
    minor = ".".join(TORCH.split(".")[:2])
    assert folder is None or folder.resolve() in Path(ops.__file__).resolve().parents, f"another one: {ops.__file__}"
    assert (ops.LIBRARY is None) == plain, f"the operators are from {ops.LIBRARY}"
    assert len(said) == plain, said
    assert all(f"no compiled operators for torch {minor} " in words for words in said), said
    info = ops.build_info()
    assert TORCH.startswith(str(info["torch"])), info
    print(f"torch {TORCH}: {ops.LIBRARY.name if ops.LIBRARY else 'plain PyTorch'}, {json.dumps(info)}")


def arguments(dtype: torch.dtype, *, grouped: bool) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Draw the six tensors, and indices."""
    stack = (3,) if grouped else ()
    shapes = ((5, 8), (5, 6), (*stack, 4, 8), (*stack, 4), (*stack, 6, 4), (*stack, 6))
    tensors = [torch.randn(shape, dtype=torch.float64).mul_(0.5).to(dtype).requires_grad_() for shape in shapes]
    return tensors, torch.tensor([0, 2, -1, 1, 2]) if grouped else None


def check_operator() -> None:
    """Compare outputs, gradients and second derivatives with the formula, in every dtype and activation."""
    from adapterx import ops, reference

    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for activation in reference.ACTIVATIONS:
            for grouped in (False, True):
                tensors, indices = arguments(dtype, grouped=grouped)
                exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
                actual = ops.bottleneck_adapter(*tensors, activation, 0.7, indices)
                wanted = reference.bottleneck_adapter(*exact, activation, 0.7, indices)
                tolerance = 1e-12 if dtype == torch.float64 else 20 * torch.finfo(dtype).eps
                torch.testing.assert_close(actual.double(), wanted, rtol=tolerance, atol=tolerance)
                ours = torch.autograd.grad(actual.sum(), tensors)
                theirs = torch.autograd.grad(wanted.sum(), exact)
                for mine, other in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(mine.double(), other, rtol=8 * tolerance, atol=8 * tolerance)
    for grouped in (False, True):
        tensors, indices = arguments(torch.float64, grouped=grouped)
        assert torch.autograd.gradgradcheck(lambda *t, i=indices: ops.bottleneck_adapter(*t, "gelu", 0.7, i), tensors)


def check_surroundings() -> None:
    """Under vmap, autocast, TorchScript and torch.compile; wrong arguments are refused in words."""
    from adapterx import ops, reference

    tensors, _ = arguments(torch.float32, grouped=False)
    tensors = [tensor.detach() for tensor in tensors]

    def call(*given: torch.Tensor) -> torch.Tensor:
        return ops.bottleneck_adapter(*given, "silu", 0.5)

    wanted = reference.bottleneck_adapter(*tensors, "silu", 0.5)
    torch.testing.assert_close(call(*tensors), wanted)
    batched = torch.vmap(call)(*(torch.stack([tensor, tensor]) for tensor in tensors))
    torch.testing.assert_close(batched, torch.stack([wanted, wanted]))
    per_sample = torch.func.grad(lambda h: call(h, *tensors[1:]).sum())(tensors[0])
    assert per_sample.shape == tensors[0].shape
    with torch.autocast("cpu", torch.bfloat16):
        assert call(*tensors).dtype == torch.float32
        assert ops.bottleneck_adapter(tensors[0], None, *tensors[2:], "silu", 0.5).dtype == torch.bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated upstream
        traced = torch.jit.trace(call, tuple(tensors))
    torch.testing.assert_close(traced(*tensors), wanted)
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), wanted)
    for wrong, kind in ((tensors[0].double(), TypeError), (tensors[0][:, 1:], ValueError)):
        said = ""
        try:
            call(wrong, *tensors[1:])
        except kind as error:
            said = str(error)
        assert said.startswith("bottleneck_adapter: "), said


class Block(nn.Module):
    """A feed-forward sublayer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Add what the sublayer makes of the hidden states."""
        return hidden_states + self.down(torch.relu(self.up(hidden_states)))


def check_training() -> None:
    """Attach, train, save, detach, load: the loss falls, the base stays, and the outputs come back."""
    import adapterx

    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(3)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs, targets = torch.randn(64, 16), torch.randn(64, 16)
    base = model(inputs)
    config = adapterx.AdapterConfig(bottleneck_dim=4, target_modules=("0.down", "1.down", "2.down"))
    adapterx.attach(model, config, "task")
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses
    trained = model(inputs)
    with tempfile.TemporaryDirectory() as folder:
        adapterx.save_adapter(model, folder, "task")
        adapterx.detach(model)
        assert torch.equal(model(inputs), base)
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
        adapterx.load_adapter(model, folder)
    torch.testing.assert_close(model(inputs), trained, rtol=0, atol=0)


def main() -> int:
    """Check all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", action="store_true", help="no library for this torch is expected")
    parser.add_argument("--in", dest="folder", type=Path, help="where adapterx must be imported from")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    check_import(options.folder, plain=options.plain)
    check_operator()
    check_surroundings()
    check_training()
    print(f"torch {TORCH}: operator, gradients, second derivatives, transforms, training, files: right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
