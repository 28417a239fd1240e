"""The package is described in pyproject.toml; this file lets old installers find it."""

from setuptools import setup

setup()
