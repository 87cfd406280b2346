"""
The relay's protocol, without Airflow.

.. code-block:: python

    from airflow_provider_luma.relay import RelayClient

    with RelayClient(api_key) as client:
        for task in client.get_tasks(["4665a07c-7641-4809-a133-10786201bb56"]).values():
            print(task.id, task.state, task.failure_reason)
"""

from typing import TYPE_CHECKING, Any

from airflow_provider_luma.arguments import FailWhen
from airflow_provider_luma.relay.batch import TaskBatch
from airflow_provider_luma.relay.media import Media
from airflow_provider_luma.relay.money import Money
from airflow_provider_luma.relay.result import BatchResult, Outcome
from airflow_provider_luma.relay.retry import RetryPolicy
from airflow_provider_luma.relay.states import TaskState
from airflow_provider_luma.relay.task import LumaTask

if TYPE_CHECKING:
    from airflow_provider_luma.relay.client import RelayClient

__all__ = [
    "BatchResult",
    "FailWhen",
    "LumaTask",
    "Media",
    "Money",
    "Outcome",
    "RelayClient",
    "RetryPolicy",
    "TaskBatch",
    "TaskState",
]


def __getattr__(name: str) -> Any:
    if name == "RelayClient":  # brings requests, which the parsing of a Dag file must not pay for
        from airflow_provider_luma.relay.client import RelayClient

        return RelayClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
