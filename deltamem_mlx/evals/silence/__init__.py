"""Whether a memory is silent where it has nothing to say."""
