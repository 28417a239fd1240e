"""The parts of tools/mutate_python.py: edits of sources, which tests run which lines, and runs in forked processes."""
