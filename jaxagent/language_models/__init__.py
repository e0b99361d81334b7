"""Language models on the host: text in, text out."""
