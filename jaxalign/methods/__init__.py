"""Ways to align a model to a group: prompting, soft prompts, CultureSPA."""
