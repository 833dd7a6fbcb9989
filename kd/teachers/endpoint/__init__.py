"""A teacher behind a server with OpenAI's protocol: requests, replies, what is kept of them, and what they cost."""
