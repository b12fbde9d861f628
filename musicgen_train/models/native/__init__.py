"""What is written in C because a call of torch costs more than what it computes: the step of generation on a CPU.

Nothing depends on it: where there is no compiler, torch does the same.
"""
