"""Reading a World Values Survey beside pandas: `python -m experiments.bench.survey`."""
