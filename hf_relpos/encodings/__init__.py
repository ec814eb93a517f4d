"""Mathematics: what position adds to attention. Imports torch and nothing else."""
