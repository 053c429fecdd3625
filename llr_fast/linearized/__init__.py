"""One evaluation of a network on tensors that carry what is known of their derivatives."""
