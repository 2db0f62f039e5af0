"""The `TrainingJob` simulator: the real decide() against a simulated fleet and clock."""
