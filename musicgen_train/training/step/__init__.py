"""One optimizer step: its scores, its optimizer and schedule, and the verdict on whether it is made."""
