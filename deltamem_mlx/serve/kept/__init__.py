"""What a server keeps of answers and conversations besides their memories."""
