"""Where tracks come from: the kinds of input, and what each says of its tracks."""
