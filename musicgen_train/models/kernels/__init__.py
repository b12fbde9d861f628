"""What is done in C on a CPU, since torch takes up to twice the time for it, or more.

These are steps of generation, the codec's convolutions and LSTM, and attention of training. Nothing depends on it:
where there is no compiler, torch does the same. Each module has a C file of its name; `vectors.h` and `tiles.h` are
what they share, `structures.py` is what they are handed, and `compiler.py` is how they come to be compiled.
"""
