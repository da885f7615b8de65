"""One forward pass, what is patched in it, and going on from it."""
