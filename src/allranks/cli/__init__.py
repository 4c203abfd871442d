"""The command line: one file a command. Import its modules by name; this file imports nothing."""
