"""The thin shell: reads the world into an Observation, carries a Decision out."""
