"""The agent: first process of every worker. Starts the ranks, watches them, answers probes. Never imports torch."""
