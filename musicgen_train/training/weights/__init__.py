"""Where the trained weights come from, which of them are trained, and how they are averaged, divided and adapted."""
