"""Which labels are doubtful, in numpy: evidence, scores, ranking, noise level and guard."""
