"""Serves a sandbox until it is stopped: ``python -m airflow_provider_luma.sandbox``."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import threading

from airflow_provider_luma.sandbox import Faults, Sandbox
from airflow_provider_luma.sandbox.account import RATES

DESCRIPTION = """\
Serve a relay and a CDN on loopback that behave like the documented ones and cost nothing: tasks that finish
or fail by the clock, and real videos to download. What to set in Airflow is printed at the start.
"""
EPILOG = """\
example:
  python -m airflow_provider_luma.sandbox --tasks 20 --seconds 60 --rate-limit 0.3 --retry-after 2
"""


def main(arguments: list[str] | None = None) -> None:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        sandbox = _sandbox(options)
    except ValueError as error:
        parser.error(str(error))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        sandbox.start()
    except OSError as error:
        raise SystemExit(f"cannot listen on {options.host}: {error}") from error
    print(_welcome(sandbox), flush=True)
    stop.wait()
    sandbox.stop()
    print(f"\nServed {len(sandbox.requests)} requests and {len(sandbox.downloads)} downloads.", flush=True)


def _sandbox(options: argparse.Namespace) -> Sandbox:
    faults = Faults(
        rate_limited=options.rate_limit,
        retry_after=options.retry_after,
        server_errors=options.server_errors,
        latency=options.latency,
        truncated_downloads=options.truncated_downloads,
    )
    return Sandbox(
        tasks=options.tasks,
        seconds=options.seconds,
        fail=options.fail,
        shape=options.shape,
        api_key=options.api_key,
        faults=faults,
        seed=options.seed,
        host=options.host,
        relay_port=options.port,
        cdn_port=options.cdn_port,
        video_bytes=options.video_bytes,
        link_ttl=options.link_ttl,
        balance=options.balance,
        price=options.price,
        unit=options.unit,
        billing=None if options.billing == "none" else options.billing,
        max_running=options.max_running,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_luma.sandbox",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_tasks(parser.add_argument_group("tasks"))
    _add_money(parser.add_argument_group("money"))
    _add_servers(parser.add_argument_group("servers"))
    _add_faults(parser.add_argument_group("faults (a SHARE is the part of requests affected, from 0 to 1)"))
    return parser


def _add_tasks(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--tasks", type=int, default=6, metavar="N", help="tasks that exist from the start (default: 6)")
    add("--seconds", type=float, default=20, metavar="S", help="how long the slowest takes (default: 20)")
    add("--fail", type=float, default=0.2, metavar="SHARE", help="share of tasks that fail (default: 0.2)")
    add("--video-bytes", type=int, metavar="N", help="size of each video (default: about 65,000)")
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="decides ids and faults; the same seed gives the same",
    )


def _add_money(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--balance", type=float, metavar="N", help="balance of the account (default: unlimited)")
    add("--price", type=float, default=1, metavar="N", help="price of a generation (default: 1)")
    add("--unit", choices=sorted(RATES), default="USD", help="of both (default: USD)")
    add(
        "--billing",
        choices=("token", "dashboard", "none"),
        default="token",
        help="balance endpoints: of the key, with prices; the older form; none (default: token)",
    )
    add("--max-running", type=int, metavar="N", help="most unfinished submits (default: no limit)")


def _add_servers(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--host", default="127.0.0.1", help="address to listen on and to put in URLs (default: 127.0.0.1)")
    add("--port", type=int, default=0, metavar="N", help="port of the relay (default: a free one)")
    add("--cdn-port", type=int, default=0, metavar="N", help="port of the CDN (default: a free one)")
    add("--api-key", default="sk-sandbox", metavar="KEY", help="key to accept (default: sk-sandbox)")
    add(
        "--shape",
        choices=("bare", "wrapped"),
        default="bare",
        help="format of status responses: an array of tasks, or rows in an envelope (default: bare)",
    )


def _add_faults(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--rate-limit", type=float, default=0, metavar="SHARE", help="status queries that get a 429")
    add("--retry-after", type=float, metavar="S", help="Retry-After of those, in seconds (default: none)")
    add(
        "--server-errors",
        type=float,
        default=0,
        metavar="SHARE",
        help="status queries that get a 500, 502 or 503",
    )
    add("--latency", type=float, default=0, metavar="S", help="seconds added to each response")
    add("--truncated-downloads", type=float, default=0, metavar="SHARE", help="downloads truncated half way")
    add("--link-ttl", type=float, metavar="S", help="seconds for which a URL is valid (default: 7 days)")


def _welcome(sandbox: Sandbox) -> str:
    connection = shlex.quote(json.dumps(sandbox.connection))
    key = shlex.quote(f"Authorization: Bearer {sandbox.api_key}")
    query = shlex.quote(json.dumps({"ids": sandbox.task_ids[:2]}))
    task_ids = "\n".join(sandbox.task_ids)
    return f"""\
Relay: {sandbox.base_url}
CDN:   {sandbox.cdn_url}

The connection, for the environment or for Airflow's database:

export AIRFLOW_CONN_LUMA_DEFAULT={connection}
airflow connections add luma_default --conn-json {connection}

Task ids:

{task_ids}

Try it:

curl -s {sandbox.base_url}/luma/tasks -H {key} -d {query}

Ctrl-C stops it."""


if __name__ == "__main__":
    main()
