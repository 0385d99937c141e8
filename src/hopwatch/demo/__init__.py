"""What does hopwatch show? Three real A2A agents, a user, and the ways in which work gets lost between them."""
