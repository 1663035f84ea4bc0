"""Population evaluation beside what people use today: `python -m experiments.bench.population`."""
