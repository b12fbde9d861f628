"""C code for CPUs: steps of generation, the codec's convolutions and its LSTM.

torch takes up to twice the time for these, or more.
The functions take and return plain tensors; the callers know which tensors of a model these are (`generation/steps.py`,
`codec/fused_layers.py`, `codec/encodec.py`). No result depends on this package: if `door.choose` returns None, torch
computes the same. `decode_step.py`, `convolution.py` and `lstm.py` each have a C file of the same name, and these share
the headers; `structures.py` defines the memory layout of arguments, and `compiler.py` compiles the files on first use.
"""
