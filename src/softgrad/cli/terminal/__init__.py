"""Results, messages and progress in the terminal."""
