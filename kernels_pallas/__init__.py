"""Kernels that need nothing but JAX: gated delta rules and sparse attention."""
