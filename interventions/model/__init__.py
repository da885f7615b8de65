"""What is loaded and done with: its places and streams, its traces, and what it is by content."""
