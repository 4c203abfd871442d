"""What links and devices really do, measured for a second each: nothing here judges."""
