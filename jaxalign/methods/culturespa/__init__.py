"""CultureSPA: questions, answers, selection and training data (Xu et al., NAACL 2025)."""
