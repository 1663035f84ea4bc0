"""Black-box and gradient optimisers over a population of search vectors."""
