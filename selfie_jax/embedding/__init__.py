"""From audio to vectors, by an encoder that is trained: what evaluations read, and what people use."""
