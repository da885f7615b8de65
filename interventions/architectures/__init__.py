"""Where the parts of each architecture are, and what it can do."""
