"""The TrainingJob controller: turns the resource into workers, watches them, decides on failures, restarts."""
