"""Whether an answer in text is the one that was wanted.

A leaf of the project: environments that reward an answer and benchmarks that
score one use the same rules. Nothing here raises on what a model wrote, runs it
as code, or takes longer than it was given.
"""
