"""The report of a plan: verdict, tables and figures as one page that needs nothing else."""
