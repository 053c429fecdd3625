"""What is certain about the linear region around a point: margins, norms, patterns."""
