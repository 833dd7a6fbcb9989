"""Many runs: jobs, their records, their beginning and end."""
