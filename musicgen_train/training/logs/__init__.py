"""What a run prints and logs: on the console, in its own files, and to loggers."""
