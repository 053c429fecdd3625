"""What several fused operators share."""
