"""The wire contract. Generated code stands beside its source; `make protos` writes it anew."""
