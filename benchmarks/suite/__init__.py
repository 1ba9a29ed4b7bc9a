"""The benchmark suite: Percept and its peers, one after the other, under the same load."""
