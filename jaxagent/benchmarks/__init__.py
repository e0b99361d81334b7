"""Benchmarks: what models are measured on."""
