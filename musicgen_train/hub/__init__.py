"""Reading and writing folders in the layout of the Hugging Face hub. Knows files and tensors, no model."""
