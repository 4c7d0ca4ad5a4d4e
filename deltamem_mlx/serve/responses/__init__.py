"""OpenAI's Responses: an answer has an id, which is a point in a memory."""
