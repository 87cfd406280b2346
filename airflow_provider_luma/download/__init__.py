"""From the links of completed tasks to verified objects in a store, without Airflow."""
