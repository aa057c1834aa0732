"""What AdapterHub's `adapters` computed: archives of tiny models, adapters and outputs (`tests/adapterhub/`)."""

import json
import sys
import tarfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from adapterx.integrations import adapterhub

FOLDER = Path(__file__).resolve().parents[1] / "adapterhub"
TOLERANCE = 1e-5
sys.path.append(str(FOLDER))

import cases  # noqa: E402


class Golden:
    """One model type: its base, its cases, what they gave.

    Args:
        model_type: a key of `cases.MODELS`.
        folder: an empty folder to unpack the archive in.
    """

    def __init__(self, model_type, folder):
        self.model_type, self.folder = model_type, Path(folder)
        with tarfile.open(FOLDER / "goldens" / f"{model_type}.tar.xz") as archive:
            if hasattr(tarfile, "data_filter"):  # not in the first releases of Python 3.10 and 3.11
                archive.extraction_filter = tarfile.data_filter
            archive.extractall(folder)
        self.inputs, self.outputs = (load_file(self.folder / f"{name}.safetensors") for name in ("inputs", "outputs"))
        self.cases = json.loads((self.folder / "cases.json").read_text())

    def base(self, class_name=None):
        """Return the base model, or what stands above it, with the golden weights."""
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        own = getattr(transformers, class_name or cases.MODELS[self.model_type][0])
        place = self.folder / ("with_head" if class_name else "base")
        return own.from_pretrained(place, dtype=torch.float32, attn_implementation="eager").eval()

    def path(self, case):
        """Return the folder of a case."""
        return self.folder / self.cases[case]["folder"]

    def run(self, model):
        """Return what the goldens hold: last hidden states, those of both towers, or logits."""
        with torch.no_grad():
            out = model(**self.inputs)
        if hasattr(out, "text_model_output"):
            towers = (out.text_model_output, out.vision_model_output)
            return torch.cat([tower.last_hidden_state.flatten() for tower in towers])
        return out.logits if hasattr(out, "logits") else out[0]

    def difference(self, model, case):
        """Return the largest difference between what a model gives and the output of a case."""
        return float((self.run(model) - self.outputs[case]).abs().max())

    def load(self, model, case):
        """Load the adapter, or all that a composition needs, of a case."""
        return adapterhub.load_adapter(model, self.path(case))
