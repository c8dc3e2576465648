"""The session simulator: users, videos, responses, leaving, rollout."""
