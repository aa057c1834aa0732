"""The operators in plain PyTorch, for installations without a compiled library for the torch at hand."""
