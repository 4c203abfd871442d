"""What other programs' files and options say: Accelerate's, DeepSpeed's, and those of Qwen's scripts."""
