"""The version of the package: read by the build, by the CLI and by saved files."""

__version__ = "0.1.0"
