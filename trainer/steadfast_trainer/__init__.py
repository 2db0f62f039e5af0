"""The trainer: a mixture-of-experts transformer and one readable loop. Runs under the agent, torchrun or alone."""
