"""The trainer: a mixture-of-experts transformer, trained by one readable loop. Runs under the agent, torchrun or alone."""
