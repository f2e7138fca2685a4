"""What is logged to Rerun. Knows Rerun and numpy, never torch."""
