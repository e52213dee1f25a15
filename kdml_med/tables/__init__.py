"""What people's tables mean: columns, labels, images."""
