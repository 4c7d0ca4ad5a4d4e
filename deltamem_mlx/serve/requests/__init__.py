"""What a request asks, checked: its body as values."""
