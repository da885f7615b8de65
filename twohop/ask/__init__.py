"""Items are asked: their prompts, where they run, and what was answered."""
