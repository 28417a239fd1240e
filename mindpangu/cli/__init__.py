"""The command line: one short file per verb that parses, calls and prints. `main.py` combines them."""
