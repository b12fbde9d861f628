"""What a result was made with: command, code, packages, machine. Written beside every result of a stage."""
