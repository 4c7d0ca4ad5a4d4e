"""Published benchmarks: their files, prompts, answers and scores."""
