"""Anyone's logs as what a diagnosis is made from: lines that word a failure, tracebacks, and how far the run came."""
