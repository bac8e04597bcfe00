"""How good, how costly and how well founded a run is: utility, sample grids and the report."""
