"""Training data: how it is prepared, in which order it is read, and how it gets from the bucket to a rank.

Importing any module of this package starts no thread and touches no object store: a warm process imports and forks.
"""
