"""What gives lost answers back: transplants, back-patching, chains of thought."""
