"""Records what a result was made with: command, code, packages, machine. Every stage writes it beside its result."""
