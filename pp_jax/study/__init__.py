"""The whole study on a user's own files, as one command: `python -m pp_jax.study`."""
