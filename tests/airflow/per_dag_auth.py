"""An auth manager whose users may read some Dags only, as Airflow's full ones do."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager


class PerDagAuthManager(SimpleAuthManager):
    """Lets the user ``neighbour`` read the Dag ``others_clips``, and no other."""

    def is_authorized_dag(self, *, user: Any, details: Any = None, **rest: Any) -> bool:
        if user.username == "neighbour" and (details is None or details.id != "others_clips"):
            return False
        return bool(super().is_authorized_dag(user=user, details=details, **rest))
