"""Apache Airflow provider for Luma video generations behind an API relay."""

__version__ = "0.1.0"
