"""Says what works on this machine, in a folder of latents, in a run or in a model, and what to do about the rest."""
