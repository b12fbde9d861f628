"""One optimizer step: its scores, optimizer, schedule, and whether it is made."""
