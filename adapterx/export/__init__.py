"""Write an adapted model as TorchScript or ONNX, and check the file against PyTorch before it is yours."""

from adapterx.export.metadata import read_metadata
from adapterx.export.onnx_file import to_onnx
from adapterx.export.torchscript import to_torchscript
from adapterx.export.validation import validate

__all__ = ["read_metadata", "to_onnx", "to_torchscript", "validate"]
