"""Text and images become rows whose tokens have roles."""
