"""A household text world: the rules of ALFWorld (arXiv:2010.03768)."""
