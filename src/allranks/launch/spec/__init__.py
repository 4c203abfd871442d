"""What was asked for: options, variables, files and programs, checked and made one launch."""
