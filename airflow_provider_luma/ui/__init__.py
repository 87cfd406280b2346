"""The gallery of clips in Airflow's own UI: the plugin, its pages, and the endpoint that serves media."""
