"""What a model is: its parts by one name in every architecture, what it can do, how it is opened."""
