"""A real S3 server: Ceph's object gateway over one monitor and one disk, on loopback.

Acknowledged writes are on disk, so a test may kill any of its processes: `client.rgw` is the S3
gateway, `osd.0` stores the bytes and `mon.a` has the cluster map. It starts in two seconds and
restarts in one, because the settings remove Ceph's default delays: a second to batch decisions of
the monitor, a quarter second for each disk thread to end, ten seconds before a client looks up the
server again, and half a minute until a killed gateway learns of new buckets.
"""

from __future__ import annotations

import shutil
import subprocess
import uuid
from pathlib import Path

from stores import KEY, SECRET, Daemon, Server, free_port

PROGRAMS = ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-osd", "monmaptool")

_SETTINGS = """
[global]
fsid = {cluster}
mon_host = v2:127.0.0.1:{monitor}/0
mon_initial_members = a
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_bind_ipv6 = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
run_dir = {folder}
log_file = {folder}/$name.log
admin_socket =
# One disk in a file that grows up to this size; no replicas.
osd_objectstore = bluestore
osd_data = {folder}/osd
bluestore_block_create = true
bluestore_block_size = 21474836480
mon_allow_pool_size_one = true
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_data = {folder}/mon
mon_data_avail_warn = 2
mon_data_avail_crit = 1
# Without delays; see the docstring.
paxos_propose_interval = 0.01
paxos_min_wait = 0.01
bdev_aio_poll_ms = 10
objecter_tick_interval = 0.5
objecter_timeout = 1
rgw_cache_enabled = false
# Little memory.
bluestore_cache_autotune = false
bluestore_cache_size = 33554432
osd_op_num_shards = 1
[client.rgw]
ms_mon_client_mode = crc secure
rgw_data = {folder}
rgw_frontends = beast endpoint=127.0.0.1:{gateway} tcp_nodelay=1
rgw_override_bucket_index_max_shards = 1
# Seconds until deleted and replaced objects free their space.
rgw_gc_obj_min_wait = 60
"""


def missing() -> str | None:
    """Return why Ceph cannot run on this machine, or `None` if it can."""
    programs = [program for program in PROGRAMS if shutil.which(program) is None]
    if programs:
        return f"{', '.join(programs)} not found: apt-get install radosgw ceph-mon ceph-osd"
    return None


def start_ceph(folder: Path) -> Server:
    """Create a cluster in an empty folder, and return its gateway.

    Its processes are `mon.a`, `osd.0` and `client.rgw`.
    """
    cluster, disk = str(uuid.uuid4()), str(uuid.uuid4())
    gateway, monitor = free_port(), free_port()
    settings, members = folder / "ceph.conf", str(folder / "monmap")
    for name in ("mon", "osd"):
        (folder / name).mkdir()
    settings.write_text(
        _SETTINGS.format(cluster=cluster, folder=folder, gateway=gateway, monitor=monitor)
    )

    def command(program: str, *arguments: str) -> list[str]:
        return [program, "--conf", str(settings), *arguments]

    def daemon(name: str, program: str, *arguments: str) -> Daemon:
        # In the foreground, because the kernel would not kill a forked daemon with its parent.
        return Daemon(command(program, "-f", *arguments), folder / f"{name}.out")

    daemons = {
        "mon.a": daemon("mon.a", "ceph-mon", "--id", "a"),
        "osd.0": daemon("osd.0", "ceph-osd", "--id", "0"),
        "client.rgw": daemon("client.rgw", "radosgw", "--name", "client.rgw"),
    }
    address = f"[v2:127.0.0.1:{monitor}]"
    _run(["monmaptool", "--create", "--fsid", cluster, "--addv", "a", address, members])
    _run(command("ceph-mon", "--mkfs", "--id", "a", "--monmap", members))
    daemons["mon.a"].start()
    _run(command("ceph", "--connect-timeout", "30", "osd", "new", disk))
    _run(command("ceph-osd", "--mkfs", "--id", "0", "--osd-uuid", disk))
    daemons["osd.0"].start()
    user = ["user", "create", "--uid=test", "--display-name=test"]
    keys = [f"--access-key={KEY}", f"--secret-key={SECRET}"]
    _run(command("radosgw-admin", "--name", "client.rgw", *user, *keys))
    server = Server("s3", f"http://127.0.0.1:{gateway}", daemons)
    server.start()
    return server


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
