"""Where tracks come from, and what a source says of them."""
