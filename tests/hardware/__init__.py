"""What only hardware shows: models at their true size, and a GPU."""
