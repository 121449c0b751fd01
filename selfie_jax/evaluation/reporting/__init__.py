"""What is told of an evaluation: files, a table, TensorBoard, and a page."""
