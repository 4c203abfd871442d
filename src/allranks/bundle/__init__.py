"""What a bug report needs of a run, in one file, without its secrets."""
