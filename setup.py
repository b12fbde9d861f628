"""Puts the top-level `configs/` into the package that a wheel holds, which pyproject.toml cannot say."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["musicgen_train*"]), "musicgen_train.configs"],
    package_dir={"musicgen_train.configs": "configs"},
)
