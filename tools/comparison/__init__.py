"""Shared code of the comparison tools: command line, runs, and confidence intervals over several seeds."""
