"""C code for a CPU, where torch takes up to twice the time or more: steps of generation, the codec's convolutions and
its LSTM.

Raw tensors go in and come out; the callers know which tensors of a model these are (`generation/steps.py`,
`codec/fused_layers.py`, `codec/encodec.py`). No result depends on this package: where `door.choose` says no, torch
computes the same. `decode_step.py`, `convolution.py` and `lstm.py` have a C file of their name each, which share the
headers; `structures.py` says how arguments lie in memory, and `compiler.py` compiles the files when they are first
needed.
"""
