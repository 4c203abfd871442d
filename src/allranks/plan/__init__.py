"""Memory, step time and floating-point operations, predicted from shapes."""
