"""What a model is: its parts, by one name in every architecture, and how it is opened."""
