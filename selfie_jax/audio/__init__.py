"""Log-mel front-end and augmentations, on device."""
