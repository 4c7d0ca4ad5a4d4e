"""What a request adds to a memory or a prompt cache, as steps for the batch."""
