"""The model: a decoder mixture-of-experts transformer that knows nothing of ranks, data or checkpoints.

Shape suffixes used in this folder: B sequences, T positions, D hidden width, H query heads, K key-value heads,
A head width, N = B*T tokens, E experts, C experts per token, R routed rows (N*C, plus padding), F expert width,
V vocabulary, L layers.
"""
