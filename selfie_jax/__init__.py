"""selfie_jax: self-supervised pre-training of audio encoders by feature diversity and decorrelation."""
