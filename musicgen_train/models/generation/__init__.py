"""Generation: the loop over delayed steps, the steps themselves, and the draw of codes."""
