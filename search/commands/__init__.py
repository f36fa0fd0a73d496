"""One file a command: it reads options, calls what does the work, and prints."""
