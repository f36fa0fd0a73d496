"""What is wrong with a text, by the position of its tokens, and a copy without it."""
