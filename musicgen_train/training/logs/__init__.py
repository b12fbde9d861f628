"""What a run says: on the console, in its own files, and to loggers."""
