"""A whole demo on one machine: real PostgreSQL and S3 servers and a sample database."""
