"""Runs cloud-init's EC2 datasource once, and prints all that it found as one line of JSON.

argv[1] is the platform that SMBIOS would say, or what SMBIOS says as a JSON object by dmidecode's keywords; argv[2] the datasource's settings, as in cloud.cfg; argv[3], if given, the
only version of the metadata that it may ask for.
"""

import base64
import contextlib
import io
import json
import logging
import sys

import requests
from cloudinit import distros, dmi, helpers
from cloudinit.sources import DataSourceEc2

platform, settings = sys.argv[1], json.loads(sys.argv[2])
log = io.StringIO()
logging.basicConfig(stream=log, level=logging.DEBUG, force=True)
if platform.startswith("{"):
    dmi.read_dmi_data = json.loads(platform).get
else:
    DataSourceEc2.identify_platform = lambda: platform

methods = set()
send = requests.Session.request


def request(self, method, *args, **kwargs):
    methods.add(method)
    return send(self, method, *args, **kwargs)


requests.Session.request = request

paths = helpers.Paths({"cloud_dir": "/tmp", "run_dir": "/tmp"})
distro = distros.fetch("debian")("debian", {}, paths)
source = DataSourceEc2.DataSourceEc2({"datasource": {"Ec2": settings}}, distro, paths)
if len(sys.argv) > 3:
    source.extended_metadata_versions = [sys.argv[3]]
    source.min_metadata_version = sys.argv[3]
with contextlib.redirect_stdout(sys.stderr):
    found = source._get_data()

levels = ("WARNING", "ERROR", "CRITICAL")
report = {
    "found": found,
    "methods": sorted(methods),
    "complaints": [line for line in log.getvalue().splitlines() if line.startswith(levels)],
}
if found:
    crawled = source._crawled_metadata
    user_data = crawled["user-data"]
    user_data = user_data.encode() if isinstance(user_data, str) else user_data
    hostname = source.get_hostname()
    report |= {
        "version": crawled["_metadata_api_version"],
        "address": source.metadata_address,
        "metadata": source.metadata,
        "user_data": base64.b64encode(user_data or b"").decode(),
        "identity": source.identity,
        "instance_id": source.get_instance_id(),
        "hostname": str(getattr(hostname, "hostname", hostname)),
        "region": source.region,
        "availability_zone": source.availability_zone,
        "public_keys": source.get_public_ssh_keys(),
        "network": source.network_config,
        "launch_index": source.launch_index,
    }
print(json.dumps(report))
