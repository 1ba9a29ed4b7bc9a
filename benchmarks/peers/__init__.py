"""The servers that the suite puts under the same load: how each is installed, started and ended."""
