"""The command line: a short file for each verb, which parses, calls and prints. `main.py` puts them together."""
