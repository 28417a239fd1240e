"""Modules of tools/mutate_python.py: edits of sources, test coverage by line, and test runs in forked processes."""
