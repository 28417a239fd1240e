"""Shared code of the AscendC operators: calling them by name, and the headers of kernels and host side."""
