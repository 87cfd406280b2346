"""A relay and a CDN on loopback, to try Dags against without spending credits. Needs no Airflow."""

from airflow_provider_luma.sandbox.faults import Faults, ScriptedResponse
from airflow_provider_luma.sandbox.sandbox import Sandbox

__all__ = ["Faults", "Sandbox", "ScriptedResponse"]
