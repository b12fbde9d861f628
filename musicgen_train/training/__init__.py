"""Training the decoder on latents: the module, its optimizer and callbacks, the checks around a run, and the run."""
