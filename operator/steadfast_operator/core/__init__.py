"""The decision core: pure functions of what was observed. No clock, client, logger or random number in here."""
