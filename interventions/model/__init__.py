"""What is loaded, what its parts are called, and what is in them."""
