"""Many runs under one protocol: an experiment file, cells in processes of their own, results and a leaderboard."""
