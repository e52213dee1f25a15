"""Workers for any job: processes of this machine or a Dask cluster, and one walk of jobs through them."""

from kdml_med.workers.cluster import ClusterWorkers, reach_cluster
from kdml_med.workers.jobs import Count, Order, Work, Workers, work_through
from kdml_med.workers.local import LocalWorkers, run_jobs

__all__ = [
    "ClusterWorkers",
    "Count",
    "LocalWorkers",
    "Order",
    "Work",
    "Workers",
    "reach_cluster",
    "run_jobs",
    "work_through",
]
