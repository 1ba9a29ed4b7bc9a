"""The version of this installation."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("percept")
except PackageNotFoundError:  # run from a source tree that was not installed
    VERSION = "0+source"
