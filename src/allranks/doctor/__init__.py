"""What went wrong: evidence of ranks and nodes made into findings, and which of them was the first."""
