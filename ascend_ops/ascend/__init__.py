"""What the AscendC operators share: their call by name, and the headers of kernels and host side."""
