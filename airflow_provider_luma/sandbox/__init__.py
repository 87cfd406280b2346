"""A relay and a CDN on loopback, to try DAGs against without spending credits. Needs no Airflow."""

from airflow_provider_luma.sandbox.faults import Faults, ScriptedAnswer
from airflow_provider_luma.sandbox.server import Sandbox

__all__ = ["Faults", "Sandbox", "ScriptedAnswer"]
